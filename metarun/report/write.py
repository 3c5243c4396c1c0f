"""From folders to a report: its files, and its table on the terminal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from metarun import whole_files
from metarun.errors import UserError, nearby
from metarun.report import found, text
from metarun.report.contents import contents
from metarun.utils import run_dir

log = logging.getLogger(__name__)


def report(places: str | Sequence[str], folder: Path, record: Callable[[], object]) -> None:
    """Compare the runs at or below `places`; everything it leaves lies in `folder`.

    Args:
        record: writes down there what was typed.

    Raises:
        UserError: a place has no run, or there is none that was tested or is being trained.
        RunFailure: the disk cannot take a file.
    """
    from metarun.report import page, plots  # bring matplotlib with them

    read = found.read(found.folders(places))
    if not read.runs and not read.unfinished:
        reasons = [f"{nearby(entry.folder)}: {entry.reason}" for entry in read.unreadable[:1]]
        raise UserError(f"runs={places}: nothing to compare: {''.join(reasons) or 'only predictions and reports'}")
    whole = contents(read)
    pictures = plots.draw(whole.blocks) if whole.blocks else []
    with run_dir.own(folder, record) as begin:
        begin()
        for picture in pictures:
            whole_files.write(folder / picture.name, picture.png)
        whole_files.write(folder / "report.csv", text.groups_csv(whole.blocks))
        whole_files.write(folder / "runs.csv", text.runs_csv(read.runs))
        whole_files.write(folder / "report.md", text.markdown(whole, pictures))
        whole_files.write(folder / "report.html", page.html(whole, pictures))
    for line in text.plain(whole).splitlines():
        log.info("%s", line)
    log.info("everything is in %s; open %s in a browser", nearby(folder), nearby(folder / "report.html"))
