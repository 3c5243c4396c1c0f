"""How names and other text out of files are written: in logs, on the terminal, in pages, tables and CSV files.

A name may hold line breaks, escape sequences of a terminal, marks that turn the direction of writing around, and bytes
that are no text. Each is written as its escape, such as `\\x1b`: a name stays on its line and shows what it is.
"""

from __future__ import annotations

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
    """`str(text)` on one line, with every character escaped that is not shown as itself."""
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
    """Writes each record on one line, whatever is in its message; a traceback follows on lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(printable, super().formatException(ei).splitlines()))


def csv_cell(value: object) -> object:
    """A value for a CSV file: numbers as they are, None as nothing, text so that no spreadsheet runs it as a formula.

    A spreadsheet takes text that begins with one of `= + - @` for a formula; it may take `;` or a tab for the
    separator, whatever the file means. Such a place gets a `'` in front, which shows that it is text.
    """
    if value is None or isinstance(value, int | float):
        return value
    text = printable(value)
    return text if NUMBER.fullmatch(text) else FORMULA.sub(r"\1'", text)


def csv_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A CSV file in UTF-8: a header and a line for each row, its cells as `csv_cell` writes them."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([csv_cell(value) for value in row] for row in (columns, *rows))
    return file.getvalue().encode()
