"""`mode=report`: compares the runs below given folders, writes all files of the report, and logs its tables."""

import base64
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from metarun.errors import UserError, relative_to_cwd
from metarun.report import plots, runs, text
from metarun.report.contents import COMMAND, Picture, Report, contents
from metarun.utils import files, run_dir_lock
from metarun.utils.text import printable

log = logging.getLogger(__name__)


def report(paths: str | Sequence[str], folder: Path, record: Callable[[], object]) -> None:
    """Compare the runs at or below `paths`; all files of the report are written into `folder`.

    Args:
        record: writes the command into `folder`.

    Raises:
        UserError: a path has no run below it, or there is no finished or unfinished run.
        RunFailure: the disk is full or fails.
    """
    loaded = runs.read(runs.folders(paths))
    if not loaded.runs and not loaded.unfinished:
        reasons = [f"{relative_to_cwd(entry.folder)}: {entry.reason}" for entry in loaded.unreadable[:1]]
        raise UserError(f"runs={paths}: nothing to compare: {''.join(reasons) or 'only predictions and reports'}")
    content = contents(loaded)
    pictures = plots.draw(content.comparisons) if content.comparisons else []
    outputs: dict[str, str | bytes] = {
        **{picture.name: picture.png for picture in pictures},
        "report.csv": text.groups_csv(content.comparisons),
        "runs.csv": text.runs_csv(loaded.runs),
        "report.md": text.markdown(content, pictures),
        "report.html": html(content, pictures),
    }
    with run_dir_lock.exclusive_run_dir(folder, record) as begin:
        begin()
        for name, output in outputs.items():
            files.atomic_write(folder / name, output)
    for line in text.plain(content).splitlines():
        log.info("%s", line)
    place = relative_to_cwd(folder)
    log.info("everything is in %s; open %s in a browser", place, place / "report.html")


def html(report: Report, pictures: Sequence[Picture]) -> str:
    """One page that holds its pictures; text from files is escaped, and the page loads and runs nothing."""
    environment = Environment(
        loader=PackageLoader("metarun.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"shown": printable, "base64": lambda content: base64.b64encode(content).decode()}
    return environment.get_template("page.html").render(report=report, pictures=pictures, command=COMMAND)
