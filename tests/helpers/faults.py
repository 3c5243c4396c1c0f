"""Disks that fail: one call of the system fails while a checkpoint is saved, or a file is cut or flipped somewhere."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from metarun.checkpointing import store
from metarun.checkpointing.state import CheckpointState
from metarun.config.groups import Mlp, Sinusoid
from metarun.config.methods import Maml
from metarun.config.schema import Settings
from metarun.errors import RunFailure, UserError
from metarun.utils.files import remove_partial_files

KINDS = ("open", "write", "fsync", "rename", "folder fsync")
ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
AT_ONCE = 400  # bytes that a write takes here, so that a small checkpoint takes several


class Killed(BaseException):
    """Stands for the end of the process: nothing is tidied up behind it."""


@contextmanager
def failing(kind: str, number: int, failure: BaseException) -> Iterator[Counter[str]]:
    """Raise `failure` at the `number`-th call (from 1) of one kind; counts the calls of each kind."""
    calls: Counter[str] = Counter()

    def counted(name: str) -> None:
        calls[name] += 1
        if name == kind and calls[name] == number:
            raise failure

    def write(descriptor: int, content: memoryview, real: Callable[..., int] = os.write) -> int:
        counted("write")
        return real(descriptor, content[:AT_ONCE])

    def fsync(descriptor: int, real: Callable[..., None] = os.fsync) -> None:
        counted("folder fsync" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "fsync")
        real(descriptor)

    def rename(path: Path, target: Path, real: Callable[..., Path] = Path.replace) -> Path:
        counted("rename")
        return real(path, target)

    def opened(path: Path, mode: str = "r", *rest: Any, real: Callable[..., Any] = Path.open, **named: Any) -> Any:
        if {"w", "x"} & set(mode):
            counted("open")
        return real(path, mode, *rest, **named)

    with ExitStack() as patches:
        for place, name, replacement in (
            *((os, "write", write), (os, "fsync", fsync)),
            *((Path, "replace", rename), (Path, "open", opened)),
        ):
            patches.enter_context(mock.patch.object(place, name, replacement))
        if isinstance(failure, Killed):
            patches.enter_context(mock.patch.object(Path, "unlink"))
        yield calls


def content(step: int, size: int = 3) -> CheckpointState:
    settings = Settings(dataset=Sinusoid(), backbone=Mlp(), method=Maml())
    return CheckpointState(settings, {"w": torch.full((size,), float(step))}, {}, step=step)


def holds(path: Path, step: int, size: int = 3) -> bool:
    """Whether a checkpoint is the one of a step, to the bit."""
    found = store.load(path)
    return found.step == step and torch.equal(found.theta["w"], content(step, size).theta["w"])


def run_folder(folder: Path, size: int = 3) -> Path:
    """With whole checkpoints of steps 1 and 2, and step 1 as the best."""
    folder.mkdir()
    for step in (1, 2):
        store.save(store.step_checkpoint_path(folder, step), content(step, size))
    store.save(store.best_checkpoint_path(folder), content(1, size))
    return folder


def inject(folder: Path, size: int = 3, errors: tuple[int, ...] = ERRORS) -> Iterator[tuple[str, bool]]:
    """Let each call fail in turn while step 3 is saved as the newest and over the best; kind, and whether all is well.

    All is well where the failure is told, the newest and the best checkpoint load as the old or the new one, no step
    before them is gone, and nothing unfinished stays but by a kill, behind which `remove_parts` tidies up.
    """
    places = (store.step_checkpoint_path, lambda folder, step: store.best_checkpoint_path(folder))
    failures: list[Callable[[], BaseException]] = [
        lambda number=e: OSError(number, os.strerror(number)) for e in errors
    ]
    for number_of_folder, (place, failure, kind) in enumerate(
        (place, failure, kind) for place in places for failure in (*failures, Killed) for kind in KINDS
    ):
        run = run_folder(folder / str(number_of_folder), size)
        number = 0
        while True:
            number += 1
            one = failure()
            word = errno.errorcode[one.errno or 0] if isinstance(one, OSError) else "killed before"
            raised: BaseException | None = None
            with suppress(Killed), failing(kind, number, one) as calls:
                try:
                    store.save(place(run, 3), content(3, size))
                except (RunFailure, Killed) as error:
                    raised = error
            if calls[kind] < number:
                assert raised is None and holds(place(run, 3), 3, size)
                break
            parts = len(list(run.rglob(".*.part")))
            tidy = parts <= 1 if isinstance(one, Killed) else parts == 0
            remove_partial_files(run)
            newest, best = store.latest_intact_checkpoint(run), store.best_checkpoint_path(run)
            well = raised is not None and tidy and not list(run.rglob(".*.part"))
            well &= any(holds(newest, step, size) for step in (2, 3)) and any(
                holds(best, step, size) for step in (1, 3)
            )
            well &= holds(store.step_checkpoint_path(run, 1), 1, size) and holds(
                store.step_checkpoint_path(run, 2), 2, size
            )
            yield f"{word} {kind}", well
            store.step_checkpoint_path(run, 3).unlink(missing_ok=True)
            store.save(best, content(1, size))


def cut(folder: Path, stride: int = 1, size: int = 3) -> Iterator[tuple[str, bool]]:
    """Cut step 3 at every `stride`-th byte, as an unfinished file and under its own name; and whether all is well."""
    run = run_folder(folder, size)
    path = store.step_checkpoint_path(run, 3)
    store.save(path, content(3, size))
    whole = path.read_bytes()
    path.unlink()
    part = path.with_name(f".{path.name}.1.part")
    for place in range(0, len(whole), stride):
        part.write_bytes(whole[:place])
        yield "unfinished file cut", holds(store.latest_intact_checkpoint(run), 2, size)
        part.unlink()
        path.write_bytes(whole[:place])
        yield "checkpoint cut", is_refused(path) and holds(store.latest_intact_checkpoint(run), 2, size)
        path.write_bytes(whole[:place] + bytes(len(whole) - place))  # as a file system that lost its end
        well = is_whole(path, 3, size) or (is_refused(path) and holds(store.latest_intact_checkpoint(run), 2, size))
        yield "checkpoint with zeros at its end", well
        path.unlink()


def flip(folder: Path, stride: int = 1, size: int = 3) -> Iterator[tuple[str, bool]]:
    """Flip one bit of every `stride`-th byte; all is well where that is refused, or changes nothing that is loaded."""
    run = run_folder(folder, size)
    path = store.step_checkpoint_path(run, 2)
    whole = path.read_bytes()
    for place in range(0, len(whole), stride):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        well = is_whole(path, 2, size) or (is_refused(path) and holds(store.latest_intact_checkpoint(run), 1, size))
        yield "bit flipped", well


def is_whole(path: Path, step: int, size: int) -> bool:
    """Whether the damage is where nothing is read: the newest is this one, and it is as it was."""
    return store.latest_intact_checkpoint(path.parents[1]) == path and holds(path, step, size)


def is_refused(path: Path) -> bool:
    try:
        store.load(path)
    except UserError:
        return True
    return False
