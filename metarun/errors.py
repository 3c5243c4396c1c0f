"""The exceptions that are told in one line, and how they are worded."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """A mistake in what was typed or in a file that was given.

    Its message is one line that names the key or file, what was found, what is allowed and what to do.
    The command line prints it without a traceback and exits with status 2.
    """


class RunFailure(Exception):
    """What ended a run and is nobody's mistake: the disk is full or fails, the run folder or a process is gone.

    Its message is one line that says what could not be done, why, what is intact and how to go on.
    The command line prints it without a traceback and exits with status 1.
    """


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`; did you mean 'X'?` for the choice spelt most like `word`, or nothing where none is alike."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def quote_override(key: str, value: object) -> str:
    """`key=value` as a shell takes it, quoted for the shell and for Hydra where the value needs it."""
    text = str(value)
    return f"{key}={text}" if re.fullmatch(r"[\w./-]+", text) else shlex.quote(f"{key}='{text}'")


def relative_to_cwd(path: Path) -> Path:
    """A path as a person would type it from the working folder, which may have been deleted."""
    try:
        here = Path.cwd()
    except FileNotFoundError:
        return path
    return path.relative_to(here) if path.is_relative_to(here) else path
