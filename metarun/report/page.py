"""A report as one page of HTML that holds its pictures, for a browser with or without a network."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template

from metarun.report.contents import COMMAND, Picture, Report, Table
from metarun.utils.text import printable

PAGE = Path(__file__).with_name("page.html")


def html(report: Report, pictures: Sequence[Picture]) -> str:
    """Whatever comes from files is escaped; the page may load nothing and run nothing."""
    body = [f"<h1>{escape_text(report.title)}</h1>", f"<p>{escape_text(report.compared)}</p>"]
    if report.flags:
        body.append(f'<ul class="flags">{"".join(f"<li>{escape_text(flag)}</li>" for flag in report.flags)}</ul>')
    body += [part for table in report.tables for part in section(table)]
    body += [figure(picture) for picture in pictures]
    body += [part for table in report.lists for part in section(table)]
    page = Template(PAGE.read_text(encoding="utf-8"))
    return page.substitute(title=escape_text(report.title), body="\n".join(body))


def section(table: Table) -> Iterable[str]:
    yield f"<h2>{escape_text(table.title)}</h2>"
    yield '<div class="wide"><table>'
    heads = "".join(
        f'<th scope="col"{kind(table, column)}>{escape_text(head)}</th>' for column, head in enumerate(table.heads)
    )
    yield f"<thead><tr>{heads}</tr></thead><tbody>"
    for place, row in enumerate(table.rows):
        best = place in table.best
        cells = [
            f"<td{kind(table, column)}><code>{escape_text(cell)}</code></td>"
            if table.heads[column] == COMMAND
            else f"<td{kind(table, column)}>{escape_text(cell)}{' <b>best</b>' if best and column == 0 else ''}</td>"
            for column, cell in enumerate(row)
        ]
        yield f"<tr{' class=best' if best else ''}>{''.join(cells)}</tr>"
    yield "</tbody></table></div>"
    yield from (f'<p class="note">{escape_text(note)}</p>' for note in table.notes)


def kind(table: Table, column: int) -> str:
    """Numbers stand to the right."""
    return "" if column < table.words or table.heads[column] == COMMAND else ' class="number"'


def figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    shows = escape_text(picture.shows)
    image = f'<div class="wide"><img alt="{escape_text(picture.title)}" src="data:image/png;base64,{data}"></div>'
    return f"<h2>{escape_text(picture.title)}</h2><figure>{image}<figcaption>{shows}</figcaption></figure>"


def escape_text(text: str) -> str:
    return escape(printable(text))
