"""Sweeps by each launcher and sweeper that is installed: what jobs return, where they compute, what is refused.

Jobs of joblib and submitit run in processes of their own.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import tests
from metarun.cli import sweeps
from metarun.errors import UserError
from metarun.utils import run_dir_lock
from tests.helpers.command_line import command

pytestmark = pytest.mark.usefixtures("alone")
ROOT = Path(tests.__file__).parents[1]
SHORT = ["dataset=sinusoid", "iterations=40", "eval.every=20", "eval.tasks=4", "eval.validation_tasks=4"]


def sweep(*words: str) -> int:
    """A sweep in the working folder."""
    try:
        return command("--multirun", *words, "hydra.sweep.dir=sweep")
    finally:
        GlobalHydra.instance().clear()


def results(folder: str = "sweep") -> list[dict[str, Any]]:
    """Of each job, in their order."""
    jobs = sorted(Path(folder).glob("*/result.json"), key=lambda path: int(path.parent.name))
    return [json.loads(path.read_text()) for path in jobs]


def hydra_node(direction: str | None, launcher: str = "basic", **keys: int) -> Any:
    choices = {"hydra/sweeper": "optuna", "hydra/launcher": launcher}
    return OmegaConf.create({"sweeper": {"direction": direction}, "launcher": keys, "runtime": {"choices": choices}})


@pytest.mark.parametrize(
    ("direction", "dataset", "mode", "words"),
    [
        ("minimize", "glyphs", "train", "direction=minimize.*validation accuracy.*direction=maximize"),
        ("maximize", "sinusoid", "train", "direction=maximize.*validation mse.*direction=minimize"),
        ("[maximize, minimize]", "glyphs", "train", r"direction=\[maximize,minimize\].*direction=maximize"),
        ("maximize", "glyphs", "evaluate", "mode=evaluate: hydra/sweeper=optuna.*leave the sweeper out"),
        ("maximize", None, "predict", "mode=predict"),
    ],
)
def test_a_sweeper_that_searches_the_wrong_way_is_refused(
    direction: str, dataset: str | None, mode: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        sweeps.check_sweeper(hydra_node(direction), dataset, mode)


@pytest.mark.parametrize(
    ("direction", "dataset", "mode"),
    [
        ("maximize", "glyphs", "train"),
        ("minimize", "sinusoid", "train"),
        ("minimize", None, None),  # swept over: each job looks for itself
        (None, "glyphs", "evaluate"),  # the basic sweeper
    ],
)
def test_one_that_searches_the_right_way_is_not(direction: str | None, dataset: str | None, mode: str | None) -> None:
    sweeps.check_sweeper(hydra_node(direction), dataset, mode)


@pytest.mark.parametrize(
    ("environment", "launcher", "keys", "threads"),
    [
        ({}, "submitit_local", {}, "1"),
        ({}, "submitit_local", {"cpus_per_task": 3}, "3"),
        ({"SLURM_CPUS_PER_TASK": "4"}, "submitit_slurm", {}, "4"),
        ({"SLURM_CPUS_PER_TASK": "4", "OMP_NUM_THREADS": "2"}, "basic", {}, "2"),
        ({}, "basic", {}, None),
    ],
)
def test_a_job_takes_its_share_of_the_machine(
    environment: dict[str, str], launcher: str, keys: dict[str, int], threads: str | None, monkeypatch: Any
) -> None:
    for name in ("SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    sweeps.set_omp_threads(hydra_node(None, launcher, **keys))
    assert os.environ.get("OMP_NUM_THREADS") == threads


# --- launchers and sweepers ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_joblib_s_jobs_are_those_of_a_sweep_one_by_one(capfd: pytest.CaptureFixture[str]) -> None:
    """Also: what is finished is skipped, a failure is told once, and a checkpoint's settings reach each job."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs pip install 'metarun[sweep]'")
    words = [*SHORT, "method=msgd", "method.alpha=tensor"]
    assert command("--multirun", *words, "seed=0,1", "hydra.sweep.dir=one_by_one") == 0
    GlobalHydra.instance().clear()
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    assert sweep(*joblib, *words, "seed=0,1", "resume=auto") == 0
    assert [result["by_step"] for result in results()] == [result["by_step"] for result in results("one_by_one")]
    assert re.findall(r"cpu with (\d+) thread", capfd.readouterr().out) == ["1"] * 4
    assert sweep(*joblib, *words, "seed=0,1,2", "resume=auto", "outer_clip=1,null") == 2
    told = capfd.readouterr().err
    assert len(re.findall("^metarun: error: job 0 .*has outer_clip=None, not 1.0", told, re.MULTILINE)) == 1
    GlobalHydra.instance().clear()
    judging = ["mode=evaluate", "checkpoint=one_by_one/0", "eval.inner_loop=1,2", "eval.tasks=4"]
    assert command("--multirun", *joblib, *judging, "hydra.sweep.dir=judged") == 0


def children(process: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_joblib_s_jobs_end_with_the_command(number: signal.Signals) -> None:
    """Having saved; the sweep goes on when it is typed again at once."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs pip install 'metarun[sweep]'")
    words = ["dataset=sinusoid", "backbone.hidden=[4]", "engine.tasks=vectorised", "save.every=1000000", *SHORT[2:]]
    words[-3:-2] = ["eval.every=1000000"]
    line = [sys.executable, "-m", "metarun", "--multirun", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    line += ["seed=0,1", "hydra.sweep.dir=sweep", "resume=auto", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    jobs = [Path("sweep/0"), Path("sweep/1")]
    with Path("told").open("w") as told:
        sweeping = subprocess.Popen([*line, "iterations=1000000"], env=environment, stdout=told, stderr=told)
    while not all((job / "metrics.jsonl").is_file() and (job / "metrics.jsonl").stat().st_size for job in jobs):
        assert sweeping.poll() is None, Path("told").read_text()
        time.sleep(0.1)
    sweeping.send_signal(number)
    assert sweeping.wait() == -number
    lines = Path("told").read_text().splitlines()
    assert {line[:7] for line in lines if "training maml" in line} == {"job 0: ", "job 1: "}
    for job in jobs:
        with run_dir_lock.exclusive_run_dir(job, lambda: None, timeout=30):  # its process has ended
            (saved,) = job.glob("checkpoints/step-*")
            assert int(saved.name[5:13]) >= json.loads((job / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    step = int(next(jobs[0].glob("checkpoints/step-*")).name[5:13])
    done = subprocess.run([*line, f"iterations={step}"], env=environment, capture_output=True, text=True)
    assert f"iterations=1000000, not {step}" in done.stderr  # no lock is in its way


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the job's process in /proc")
def test_submitit_s_preempted_job_loses_no_step() -> None:
    """SIGUSR2 is what comes before SLURM takes a job's machine away: submitit puts the job into its queue again."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs pip install 'metarun[slurm]'")
    words = ["dataset=sinusoid", "meta_batch=2", "iterations=500", "eval.every=500", *SHORT[3:]]
    line = [sys.executable, "-m", "metarun", "--multirun", "hydra/launcher=submitit_local", "resume=auto", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    metrics = Path("sweep/0/metrics.jsonl")
    with subprocess.Popen([*line, "hydra.sweep.dir=sweep"], env=environment, stdout=subprocess.DEVNULL) as sweeping:
        while not metrics.exists() or not metrics.read_bytes():
            assert sweeping.poll() is None
            time.sleep(0.01)
        (queue,) = (path for path in Path("sweep/.submitit").iterdir() if path.name.isdecimal())
        (job,) = children(int(queue.name))
        os.kill(job, signal.SIGUSR2)
    log = (queue / f"{queue.name}_0_log.out").read_text()
    assert sweeping.returncode == 0, log
    (step,) = re.findall(r"going on from sweep/0/checkpoints/step-0*(\d+).safetensors", log)
    assert 0 < int(step) < 500
    assert command(*words, "hydra.run.dir=alone") == 0
    assert results()[0]["by_step"] == json.loads(Path("alone/result.json").read_text())["by_step"]
    assert "cpu with 1 thread," in log


@pytest.mark.filterwarnings("ignore")  # optuna 2.10, which the sweeper asks for, calls what is deprecated
def test_optuna_is_given_the_validation_metric(capsys: pytest.CaptureFixture[str]) -> None:
    """And it proposes the same values again, so that a study typed again skips the jobs that are finished."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs pip install 'metarun[sweep]'")
    words = [*SHORT, "hydra/sweeper=optuna", "hydra.sweeper.sampler.seed=0", "resume=auto"]
    words += ["inner_learning_rate=interval(0.001,0.1)", "outer_learning_rate=tag(log,interval(0.001,0.1))"]
    assert sweep(*words, "hydra.sweeper.n_trials=2") == 0
    found = OmegaConf.load("sweep/optimization_results.yaml")
    assert found.best_value == min(result["validation"]["mean"] for result in results())
    assert found.best_value not in [result["mean"] for result in results()]
    capsys.readouterr()
    assert sweep(*words, "hydra.sweeper.n_trials=3") == 0
    told = capsys.readouterr().out
    assert [f"sweep/{job} is finished already and skipped" in told for job in range(3)] == [True, True, False]
    assert sweep(*words, "hydra.sweeper.direction=maximize") == 2
    assert "hydra.sweeper.direction=minimize" in capsys.readouterr().err.splitlines()[-1]
