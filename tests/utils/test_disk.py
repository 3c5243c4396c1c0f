"""Runs on a disk that fails: told in one line, nothing that was good is lost, and the run goes on afterwards."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metarun.checkpointing import store
from metarun.checkpointing.state import CheckpointState
from metarun.config.groups import Mlp, Sinusoid
from metarun.config.methods import Maml
from metarun.config.schema import Settings
from metarun.training import trainer
from tests.helpers.command_line import command
from tests.helpers.faults import failing

pytestmark = pytest.mark.usefixtures("alone")
SMALL = ["dataset=sinusoid", "iterations=40", "eval.every=20", "eval.tasks=4", "eval.validation_tasks=4", "device=cpu"]
RUN = ["hydra.run.dir=run"]


def finishes(iterations: int = 40) -> None:
    """The run of `run` goes on to its end, and leaves nothing unfinished."""
    assert command("resume=run", "device=cpu", f"iterations={iterations}") == 0
    steps = [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == iterations
    assert json.loads(Path("run/result.json").read_text())["mean"] > 0
    assert not list(Path("run").rglob("*.part"))


@pytest.mark.slow
def test_every_write_of_a_run_may_fail(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*SMALL, *RUN, "iterations=20") == 0
    shutil.move("run", "first")
    places: set[str] = set()
    number, status = 2, 1
    while status:
        shutil.rmtree("run", ignore_errors=True)
        shutil.copytree("first", "run")
        Path("run/result.json").unlink()
        capsys.readouterr()
        with failing("write", number, OSError(28, os.strerror(28))) as calls:
            status = command("resume=run", "device=cpu", "iterations=40")
        if calls["write"] < number:
            break
        number += 29
        shown = capsys.readouterr().err
        assert status == 1 and "Traceback" not in shown
        found = re.fullmatch(
            r"metarun: error: run/(\S+) could not be written \(No space left on device\): make room on its disk; "
            r"(step-000000[24]0\.safetensors) is whole, go on with resume=run\n",
            shown,
        )
        assert found and store.latest_intact_checkpoint(Path("run")).name == found[2], shown
        places.add(re.sub(r"\d+|events.*", "", found[1]))
    assert status == 0 and number > 100
    assert places >= {"checkpoints/step-.safetensors", "tensorboard/"}
    finishes()


LIMITED = """
import resource, sys
from metarun.cli import app
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
sys.exit(app.main())
"""


def limited(size: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command where no file may have more than `size` bytes."""
    words = [sys.executable, "-c", LIMITED, str(size), *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_limit_on_the_size_of_files_is_told() -> None:
    assert command(*SMALL, *RUN, "iterations=20") == 0
    whole = store.step_checkpoint_path(Path("run"), 20)
    done = limited(whole.stat().st_size // 2, "resume=run", "iterations=40", "device=cpu")
    assert done.returncode == 1
    assert done.stderr == (
        "metarun: error: run/checkpoints/step-00000040.safetensors could not be written (File too large): raise the "
        "limit on the size of a file (ulimit -f); step-00000020.safetensors is whole, go on with resume=run\n"
    )
    finishes()


def test_a_full_disk_before_the_first_checkpoint() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    done = limited(5000, *SMALL, *RUN)
    assert done.returncode == 1 and "the run had no checkpoint yet, start it again\n" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and resource.getrlimit(resource.RLIMIT_FSIZE) == (soft, hard)


@pytest.mark.parametrize("away", [lambda: shutil.rmtree("run"), lambda: Path("run").rename("moved")])
def test_a_run_folder_that_goes_away_is_told(monkeypatch: pytest.MonkeyPatch, capsys, away) -> None:
    outer_step = trainer.Trainer.outer_step

    def gone(self: trainer.Trainer) -> dict[str, float]:
        if self.step == 30:
            away()
        return outer_step(self)

    monkeypatch.setattr(trainer.Trainer, "outer_step", gone)
    assert command(*SMALL, *RUN) == 1
    assert capsys.readouterr().err == (
        "metarun: error: run/checkpoints could not be written: run was deleted or moved while the run wrote to it; "
        "if it was moved, go on with resume=FOLDER, its new place\n"
    )
    assert not Path("run").exists()


def test_what_killed_processes_left_is_removed() -> None:
    assert command(*SMALL, *RUN, "iterations=20") == 0
    Path("run/checkpoints/.step-00000040.safetensors.77.part").write_bytes(b"PK")
    finishes()


def test_a_sweep_on_a_full_disk_ends_with_status_1(capsys) -> None:
    with failing("fsync", 1, OSError(28, os.strerror(28))):
        assert command("--multirun", *SMALL, "seed=1,2", "hydra.sweep.dir=sweep") == 1
    shown = capsys.readouterr().err
    assert "Traceback" not in shown and "metarun: error: job 0 (" in shown and "job 1" not in shown
    assert Path("sweep/1/result.json").exists()


@pytest.mark.parametrize(
    "typed", ["mode=evaluate checkpoint=giant/checkpoints/step-00000001.safetensors", "resume=giant iterations=2"]
)
def test_a_checkpoint_cannot_ask_for_a_giant_network(capsys, typed: str) -> None:
    giant = Settings(dataset=Sinusoid(), backbone=Mlp(hidden=[10**5, 10**5]), method=Maml(), device="cpu")
    Path("giant").mkdir()
    store.save(
        store.step_checkpoint_path(Path("giant"), 1),
        CheckpointState(giant, {"w": torch.ones(2)}, {}, step=1),
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert command(*typed.split(), "device=cpu") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "of another architecture" in line
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kilobytes, where 40 GB were asked for
