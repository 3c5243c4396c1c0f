"""Several processes: the result of one, and an end that all share."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metarun.checkpointing import store
from metarun.config.methods import Warpgrad
from metarun.config.schema import Engine
from metarun.distributed import launch
from metarun.distributed.task_parallel import TaskParallelGroup
from metarun.engine.execution import choose_device
from metarun.engine.rank import Rank
from metarun.errors import RunFailure, UserError
from metarun.runner import run
from metarun.utils.run_outputs import read_result
from tests.helpers.small_runs import lines, small, tensors

COMMAND = ["dataset=sinusoid", "backbone.hidden=[8]", "meta_batch=4", "eval.tasks=10", "eval.validation_tasks=10"]
PATIENCE = 60  # seconds


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(["", *sys.path])[1:]}


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_task_has_one_process(size: int) -> None:
    for count in (1, 4, 7):
        shares = []
        for rank in range(size):
            team = TaskParallelGroup.__new__(TaskParallelGroup)
            team.process = Rank(rank, size, rank, size)
            shares.append(team.local_task_range(count))
        assert [task for share in shares for task in share] == list(range(count))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    "workers", [2, pytest.param(3, marks=pytest.mark.slow)]
)  # 4 tasks, in equal shares and in unequal ones
def test_the_result_is_that_of_one_process(tmp_path: Path, workers: int) -> None:
    settings = small(tmp_path, iterations=20)
    run(settings, tmp_path / "one")
    run(replace(settings, engine=Engine(workers=workers)), tmp_path / "several")
    torch.testing.assert_close(tensors(tmp_path / "several"), tensors(tmp_path / "one"), rtol=1e-5, atol=1e-6)
    for one, several in zip(lines(tmp_path / "one"), lines(tmp_path / "several"), strict=True):
        assert several.pop("split") == one.pop("split") and several == pytest.approx(one, rel=1e-4)
    assert store.load(tmp_path / "several").execution["processes"] == workers


@pytest.mark.slow
def test_torchrun_gives_the_result_of_one_process(tmp_path: Path) -> None:
    words = [*COMMAND, "iterations=20", "eval.every=20", f"cache_dir={tmp_path}"]
    for name, start in (("one", []), ("two", ["-m", "torch.distributed.run", "--nproc-per-node", "2"])):
        command = [sys.executable, *start, "-m", "metarun", *words, f"hydra.run.dir={tmp_path / name}"]
        done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    torch.testing.assert_close(tensors(tmp_path / "two"), tensors(tmp_path / "one"), rtol=1e-5, atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["one", "two"]  # one writes


def children(process: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True).stdout
    return [int(word) for word in found.split()]


def wait_for(found: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not found.exists():
        assert time.monotonic() < end, f"no {found}"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("leader", [False, True])
def test_a_process_that_dies_ends_all(tmp_path: Path, leader: bool) -> None:
    words = [*COMMAND, "iterations=1000000", "eval.every=20", "engine.workers=2", "hydra.run.dir=run"]
    command = [sys.executable, "-m", "metarun", *words]
    with subprocess.Popen(command, env=environment(), cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        wait_for(tmp_path / "run" / "checkpoints" / "step-00000020.safetensors")
        (other,) = children(process.pid)
        os.kill(process.pid if leader else other, signal.SIGKILL)
        told = process.communicate(timeout=PATIENCE)[1]
    if leader:
        end = time.monotonic() + PATIENCE
        while Path(f"/proc/{other}/cmdline").is_file() and Path(f"/proc/{other}/cmdline").read_text():
            assert time.monotonic() < end
            time.sleep(0.1)
        return
    assert process.returncode == 1
    (line,) = told.splitlines()
    assert "process 1 of 2 was ended by SIGKILL" in line and "go on with resume=run" in line
    assert store.latest_intact_checkpoint(tmp_path / "run").name in line


IMPATIENT = """
import sys
from metarun.cli.app import main
from metarun.distributed import launch

launch.STEP_TIMEOUT, launch.STOP_TIMEOUT = map(float, sys.argv.pop(1).split(","))
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="sees in /proc that a process is stopped")
@pytest.mark.parametrize(
    ("patience", "signals", "status", "words"),
    [
        ("1,99", [], 1, r"process 1 of 2 has not answered for \d s, it is stopped"),
        ("99,1", [signal.SIGTERM], 1, r"process 1 of 2 has not answered for \d s, it is stopped"),
        ("99,99", [signal.SIGINT, signal.SIGINT], 130, "stopped at once by a second interrupt"),
    ],
)
def test_a_process_that_is_stopped_ends_all(
    tmp_path: Path, patience: str, signals: list[int], status: int, words: str
) -> None:
    with hanging(tmp_path, patience) as (process, other):
        os.kill(other, signal.SIGSTOP)
        for number in signals:
            time.sleep(0.5)
            process.send_signal(number)
        told = process.communicate(timeout=PATIENCE)[1]
    (line,) = told.splitlines()
    assert process.returncode == status and re.search(words, line), line
    assert not Path(f"/proc/{other}").exists()
    if status == 1:
        assert f"{store.latest_intact_checkpoint(tmp_path / 'run').name} is whole" in line and "resume=run" in line


@contextmanager
def hanging(folder: Path, patience: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A run with two processes in the midst of training, and the number of the second."""
    words = [*COMMAND, "iterations=1000000", "eval.every=20", "engine.workers=2", "hydra.run.dir=run"]
    command = [sys.executable, "-c", IMPATIENT, patience, *words]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment(), cwd=folder, text=True, **pipes) as process:  # type: ignore
        try:
            wait_for(folder / "run" / "checkpoints" / "step-00000020.safetensors")
            (other,) = children(process.pid)
            yield process, other
        finally:
            process.kill()


def test_waiting_counts_while_the_process_itself_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Operation:
        """Ends with its third tick, each of which seems to take an hour: the machine was asleep."""

        ticks = 0

        def wait(self, tick: object) -> None:
            self.ticks += 1
            monkeypatch.setattr(time, "monotonic", lambda: 3600.0 * self.ticks)
            if self.ticks < 3:
                raise RuntimeError("timed out")

        def is_completed(self) -> bool:
            return False

    launch.wait(Operation, 5 * launch.POLL_SECONDS)
    with pytest.raises(launch.PeerLost, match="has not answered for 1 s"):
        launch.wait(Operation, 2 * launch.POLL_SECONDS)


def test_an_evaluation_is_shared_whatever_the_meta_batch(tmp_path: Path) -> None:
    run(small(tmp_path, meta_batch=1, iterations=20), tmp_path / "run")
    trained = read_result(tmp_path / "run")
    evaluated = small(
        tmp_path, meta_batch=1, mode="evaluate", checkpoint=str(tmp_path / "run"), engine=Engine(workers=2)
    )
    run(evaluated, tmp_path / "evaluated")
    assert read_result(tmp_path / "evaluated")["by_step"] == pytest.approx(trained["by_step"], rel=1e-6)


def test_what_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"engine.workers=5: a meta-batch of 4 tasks .* raise meta_batch"):
        run(small(tmp_path, engine=Engine(workers=5)), tmp_path / "run")
    offline = small(tmp_path, engine=Engine(workers=2), method=Warpgrad(objective="trajectory"))
    with pytest.raises(UserError, match=r"engine.workers=2: method.objective=trajectory .* take one process"):
        run(offline, tmp_path / "run")
    whole = small(tmp_path, engine=Engine(workers=2, tasks="compiled"))
    with pytest.raises(UserError, match=r"engine.workers=2: engine.tasks=compiled holds the optimiser"):
        run(whole, tmp_path / "run")


def test_a_process_that_cannot_start_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metarun.distributed.launch.WORKER_ENTRYPOINT", "{}; raise SystemExit(3)")
    with pytest.raises(RunFailure, match=r"process 1 of 2 ended with status 3"):
        run(small(tmp_path, engine=Engine(workers=2)), tmp_path / "run")


def test_each_process_takes_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for wanted in ("auto", "cuda"):
        assert choose_device(wanted, Rank(1, 2, 1, 2)) == torch.device("cuda", 1)
    assert chosen == [1, 1]
    with pytest.raises(UserError, match="device=cuda:1: each of 2 processes takes a GPU of its own; give device=cuda"):
        choose_device("cuda:1", Rank(1, 2, 1, 2))
    with pytest.raises(UserError, match="device=auto: 3 processes need as many GPUs, this machine has 2"):
        choose_device("auto", Rank(0, 3, 0, 3))
    assert choose_device("cpu", Rank(2, 3, 2, 3)) == torch.device("cpu")
