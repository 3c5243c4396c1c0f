"""Safe output of text from files in logs, on the terminal, in pages, tables and CSV files.

A name may contain line breaks, terminal escape sequences, marks that reverse the writing direction, or undecodable
bytes. Each is written as an escape such as `\\x1b`, so that the name stays on one line and is unambiguous.
"""

import csv
import io
import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

ESCAPED = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # Unicode categories: controls, formats, surrogates, line ends
JOINERS = "\u200c\u200d"  # formats that Persian, Indic scripts and emoji are spelt with
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
FORMULA = re.compile(r"(^|;)(?=\s*'*[=+\-@\uff1d\uff0b\uff0d\uff20])")  # at the start, or behind another separator


def printable(text: object) -> str:
    """`str(text)` on one line, with control, format and unassigned characters escaped."""
    words = str(text)
    if words.isprintable():
        return words
    return "".join(
        letter.encode("unicode_escape").decode("ascii")
        if unicodedata.category(letter) in ESCAPED and letter not in JOINERS
        else letter
        for letter in words
    )


class LogFormatter(logging.Formatter):
    """Formats each record on one line; a traceback follows on further lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(printable, super().formatException(ei).splitlines()))


def csv_cell(value: object) -> object:
    """Value of a CSV cell: numbers and None unchanged, text escaped so that no spreadsheet runs it as a formula.

    Spreadsheets run text that begins with one of `= + - @`, and may split cells at `;` or tabs. A `'` is inserted
    before each such character, which marks the cell as text.
    """
    if value is None or isinstance(value, int | float):
        return value
    text = printable(value)
    return text if NUMBER.fullmatch(text) else FORMULA.sub(r"\1'", text)


def csv_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A CSV file in UTF-8 with a header line; cells are escaped by `csv_cell`."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([csv_cell(value) for value in row] for row in (columns, *rows))
    return file.getvalue().encode()


def pluralize(count: int, singular: str, plural: str | None = None) -> str:
    """`1 run`, `2 runs`; `plural` where it is not the singular with an s."""
    return f"{count} {singular if count == 1 else plural or singular + 's'}"


def duration(seconds: float) -> str:
    """Seconds as a person reads them: `5.2 s`, `65 s`, `12 min`, `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.{1 if seconds < 10 else 0}f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
