"""Standard output and error that take any text, whatever the locale and wherever they lead."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
import unicodedata
from typing import Any

PLAIN = {"±": "+/-", "×": "x", "√": "sqrt ", "→": "->", "…": "...", "–": "-", "—": "-", "’": "'"}  # noqa: RUF001
ERRORS = "metarun.plain"  # how characters are written that the output cannot show


def plain(error: UnicodeError) -> tuple[str, int]:
    """For `codecs.register_error`: characters in ASCII, `?` where there is nothing like them."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(PLAIN.get(letter) or without_accents(letter) or "?" for letter in letters), error.end


def without_accents(letter: str) -> str:
    return unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode("ascii")


class Descriptor(io.RawIOBase):
    """Takes whatever is written. What cannot be, as into a pipe that nobody reads, is dropped: a run goes on."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        if self.failure is None:
            try:
                return os.write(self.number, data)
            except OSError as error:
                self.failure = error
        return len(data)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.number

    def isatty(self) -> bool:
        return os.isatty(self.number)


def prepare() -> None:
    """Make standard output and error so, where nobody has replaced them; open those that are closed."""
    codecs.register_error(ERRORS, plain)
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the next file that is opened would take its place
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)
            if null != number:
                os.close(null)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):
            encoding = stream.encoding if stream else "utf-8"
            buffer = io.BufferedWriter(Descriptor(number))
            interactive = number == 2 or os.isatty(number)
            setattr(sys, name, io.TextIOWrapper(buffer, encoding, ERRORS, line_buffering=interactive))


def status(found: int) -> int:
    """The exit status: 1 instead of 0 where standard output could not be written, unless nobody reads it any more."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    failure = raw.failure if isinstance(raw, Descriptor) else None
    if failure is None or failure.errno == errno.EPIPE:
        return found
    print(f"metarun: error: standard output could not be written ({failure.strerror})", file=sys.stderr)
    return found or 1
