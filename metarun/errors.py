"""Exceptions that the command prints on one line, and helpers to word their messages."""

import difflib
import re
import shlex
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """A mistake of the user, on the command line or in a file.

    Its message is one line that names the key or file, what was found, what is allowed and what to do.
    The command line prints it without a traceback and exits with status 2.
    """


class RunFailure(Exception):
    """A failure of the machine that ends a run: the disk is full or fails, or the run folder or a process is gone.

    Its message is one line that says what could not be done, why, what is intact and how to go on.
    The command line prints it without a traceback and exits with status 1.
    """


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`; did you mean 'X'?` with the choice closest to `word`; empty if none is close."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def quote_override(key: str, value: object) -> str:
    """`key=value` to paste into a shell, quoted for the shell and for Hydra if necessary."""
    text = str(value)
    return f"{key}={text}" if re.fullmatch(r"[\w./-]+", text) else shlex.quote(f"{key}='{text}'")


def relative_to_cwd(path: Path) -> Path:
    """`path` relative to the working directory if it is inside; unchanged otherwise, or if it was deleted."""
    try:
        here = Path.cwd()
    except FileNotFoundError:
        return path
    return path.relative_to(here) if path.is_relative_to(here) else path
