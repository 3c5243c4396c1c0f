"""Writes a report of run folders: CSV, Markdown, HTML, pictures, and tables on the terminal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from metarun.errors import UserError, relative_to_cwd
from metarun.report import runs, text
from metarun.report.contents import contents
from metarun.utils import files, run_dir_lock

log = logging.getLogger(__name__)


def report(places: str | Sequence[str], folder: Path, record: Callable[[], object]) -> None:
    """Compare the runs at or below `places` and write the report into `folder`.

    Args:
        record: writes down there what was typed.

    Raises:
        UserError: a place has no run, or there is none that was tested or is being trained.
        RunFailure: the disk cannot take a file.
    """
    from metarun.report import page, plots  # bring matplotlib with them

    read = runs.read(runs.folders(places))
    if not read.runs and not read.unfinished:
        reasons = [f"{relative_to_cwd(entry.folder)}: {entry.reason}" for entry in read.unreadable[:1]]
        raise UserError(f"runs={places}: nothing to compare: {''.join(reasons) or 'only predictions and reports'}")
    whole = contents(read)
    pictures = plots.draw(whole.blocks) if whole.blocks else []
    with run_dir_lock.exclusive_run_dir(folder, record) as begin:
        begin()
        for picture in pictures:
            files.atomic_write(folder / picture.name, picture.png)
        files.atomic_write(folder / "report.csv", text.groups_csv(whole.blocks))
        files.atomic_write(folder / "runs.csv", text.runs_csv(read.runs))
        files.atomic_write(folder / "report.md", text.markdown(whole, pictures))
        files.atomic_write(folder / "report.html", page.html(whole, pictures))
    for line in text.plain(whole).splitlines():
        log.info("%s", line)
    log.info(
        "everything is in %s; open %s in a browser", relative_to_cwd(folder), relative_to_cwd(folder / "report.html")
    )
