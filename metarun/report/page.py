"""A report as one page of HTML that holds its pictures, for a browser with or without a network."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from metarun.report.contents import COMMAND, Picture, Report
from metarun.utils.text import printable


def html(report: Report, pictures: Sequence[Picture]) -> str:
    """The page. Text from files is escaped, and the page may load nothing and run nothing."""
    environment = Environment(
        loader=PackageLoader("metarun.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"shown": printable, "base64": lambda content: base64.b64encode(content).decode()}
    return environment.get_template("page.html").render(report=report, pictures=pictures, command=COMMAND)
