"""Standard output and error that accept any text in any locale, and that never end a run by a write error."""

import codecs
import errno
import io
import os
import sys
import unicodedata
from typing import Any

PLAIN = {"±": "+/-", "×": "x", "√": "sqrt ", "→": "->", "…": "...", "–": "-", "—": "-", "’": "'"}  # noqa: RUF001
ERRORS = "metarun.plain"  # name of the codec error handler


def plain(error: UnicodeError) -> tuple[str, int]:
    """Codec error handler: replaces characters by similar ASCII, or by `?` if there is none."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    bases = [unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode() for letter in letters]
    return "".join(PLAIN.get(letter) or base or "?" for letter, base in zip(letters, bases, strict=True)), error.end


class Descriptor(io.RawIOBase):
    """Raw stream on a file descriptor. After the first write error, stored in `failure`, output is dropped."""

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
    """Install the streams as `sys.stdout` and `sys.stderr` unless replaced; reopen closed descriptors 0-2."""
    codecs.register_error(ERRORS, plain)
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file to be opened would take its number
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


def status(exit_status: int) -> int:
    """Exit status of the command: 1 instead of 0 if writing standard output failed other than by a closed pipe."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    failure = raw.failure if isinstance(raw, Descriptor) else None
    if failure is None or failure.errno == errno.EPIPE:
        return exit_status
    print(f"metarun: error: standard output could not be written ({failure.strerror})", file=sys.stderr)
    return exit_status or 1
