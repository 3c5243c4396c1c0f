"""Lists of pictures: CSV and JSON files that name pictures and their classes, and perhaps their split."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from metarun.data.formats.listing import normalise_unicode
from metarun.errors import UserError
from metarun.utils.safe_files import read_json, read_text

COLUMNS = {  # what a column is called, in lower case with `_` for spaces and hyphens; the first name goes before others
    "path": (
        *("path", "file", "filename", "file_name", "filepath", "file_path"),
        *("image", "image_name", "image_path", "img", "picture"),
    ),
    "label": ("label", "class", "class_name", "label_name", "category", "target"),
    "split": ("split", "set", "subset", "partition"),
}
DELIMITERS = ",;\t"


class Row(NamedTuple):
    path: str
    label: str
    split: str  # "" where the list has none


def csv_rows(path: Path) -> list[Row]:
    """The rows of a CSV file, separated by commas, semicolons or tabs, whose first line names its columns.

    Raises:
        UserError: no column of pictures or of classes, or two of either; a row that lacks a value; no text.
    """
    try:
        lines = io.StringIO(read_text(path), newline="")
        if (start := re.match(r"sep=.\r?\n", lines.getvalue())) is not None:  # a spreadsheet's mark
            lines.seek(start.end())
        begin = lines.tell()
        header = lines.readline()
        columns, delimiter = find_columns(path, header)
        lines.seek(begin)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        next(reader)
        rows = [(reader.line_num, [value.strip() for value in row]) for row in reader if any(map(str.strip, row))]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a CSV file in UTF-8 or UTF-16 ({error}); save it as UTF-8") from error
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file that can be read ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    found = []
    for number, row in rows:
        values = {name: row[i] if i < len(row) else "" for name, i in columns.items()}
        lacking = [header.strip().split(delimiter)[columns[name]] for name in ("path", "label") if not values[name]]
        if lacking:
            raise UserError(f"{path}: line {number} lacks a value for {', '.join(lacking)}: {delimiter.join(row)}")
        found.append(Row(values["path"], normalise_unicode(values["label"]), values.get("split", "")))
    return found


def find_columns(path: Path, header: str) -> tuple[dict[str, int], str]:
    """The place of each column that is there, and the delimiter. Raises UserError where none or several could be."""
    wanted = f"must name a column of pictures ({', '.join(COLUMNS['path'])}) and one of classes "
    wanted += f"({', '.join(COLUMNS['label'])})"
    most: list[str] = []
    for delimiter in DELIMITERS:
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        plain = [re.sub(r"[ -]+", "_", name.casefold()) for name in names]
        places = {kind: [i for i, name in enumerate(plain) if name in known] for kind, known in COLUMNS.items()}
        if places["path"] and places["label"]:
            return {k: choose_column(path, k, places[k], names, plain) for k in COLUMNS if places[k]}, delimiter
        most = max(most, names, key=len)
    raise UserError(f"{path}: its first line {wanted}, found {most}")


def choose_column(path: Path, kind: str, places: Sequence[int], names: Sequence[str], plain: Sequence[str]) -> int:
    """The column that bears the first of the known names, or the only one that bears any."""
    first = [i for i in places if plain[i] == COLUMNS[kind][0]]
    found = first or places
    if len(found) > 1:
        several = " and ".join(repr(names[i]) for i in found)
        raise UserError(f"{path}: its columns {several} may both be the {kind}; call the one to be taken {kind!r}")
    return found[0]


def json_rows(path: Path) -> list[Row]:
    """The rows of CloserLookFewShot's JSON of `label_names`, `image_names`, `image_labels`. Raises UserError."""
    try:
        content = read_json(path)
        names, files, labels = (content[key] for key in ("label_names", "image_names", "image_labels"))
        if len(files) != len(labels):
            raise ValueError(f"{len(files)} image_names, {len(labels)} image_labels")
        return [Row(str(file), str(names[int(label)]), "") for file, label in zip(files, labels, strict=True)]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{path}: must hold label_names, image_names and image_labels of equal length ({error!r})"
        ) from error


def first_existing(candidates: Iterable[Path], lists: Path, name: str) -> Path:
    """The first of the candidates that is a file."""
    places = list(candidates)
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise UserError(f"{lists}: lists {name}, which is not there (looked for {places[0]} and near it)")
    return found
