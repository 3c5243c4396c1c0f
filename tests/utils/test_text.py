"""Names out of files on one line, and values that no spreadsheet runs."""

from __future__ import annotations

import csv
import io
import logging

import pytest

from metarun.utils.text import LogFormatter, csv_table, printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain Ünïcode 名前", "plain Ünïcode 名前"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("photo\u202egpj.exe", r"photo\u202egpj.exe"),  # which would show as photoexe.jpg
        ("\x9b2J\u2028\u0085", r"\x9b2J\u2028\x85"),
        ("caf\udce9", r"caf\udce9"),  # bytes of a file's name that are no UTF-8
        ("Screenshot 10.00\u202fAM", "Screenshot 10.00\u202fAM"),  # a narrow space, as macOS writes it
        ("\u0645\u06cc\u200c\u062e\u0648", "\u0645\u06cc\u200c\u062e\u0648"),  # Persian needs its joiners
        (r"C:\new", r"C:\new"),
    ],
)
def test_a_name_is_shown_on_one_line_with_what_cannot_be_seen_escaped(name: str, shown: str) -> None:
    assert printable(name) == shown
    printable(name).encode()  # whatever it was


def test_a_record_of_the_log_stays_on_its_line() -> None:
    formatter = LogFormatter("[%(levelname)s] %(message)s")
    record = logging.LogRecord("x", logging.WARNING, "", 0, "left out: %s", ("a\n[INFO] all is well\x1b[2J",), None)
    assert formatter.format(record) == r"[WARNING] left out: a\n[INFO] all is well\x1b[2J"


def test_no_cell_of_a_csv_file_is_a_formula_and_numbers_stay_numbers() -> None:
    formulas = ["=1+1", "+1+1", "-1+1", "@SUM(1)", "\t=1", "\r=1", " =1", "\uff1d1+1", "dog;=HYPERLINK(1)", "a;-b"]
    numbers = [-0.5, 1e-07, "-0.5", "+3", "-1e-05", None, 7, True]
    table = csv_table(["=name", "value"], [*([text, 0] for text in formulas), *(["x", value] for value in numbers)])
    for separator in ",;\t":
        for row in csv.reader(io.StringIO(table.decode()), delimiter=separator):
            for cell in row:
                is_number = cell.lstrip("+-").replace("e-", "").replace(".", "").isdigit()
                assert is_number or not cell.strip().startswith(("=", "+", "-", "@", "\uff1d")), (separator, cell)
    rows = list(csv.reader(io.StringIO(table.decode())))
    assert [row[0] for row in rows[:3]] == ["'=name", "'=1+1", "'+1+1"] and rows[9][0] == "dog;'=HYPERLINK(1)"
    assert [row[1] for row in rows[-8:]] == ["-0.5", "1e-07", "-0.5", "+3", "-1e-05", "", "7", "True"]
