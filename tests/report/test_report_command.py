"""`metarun mode=report` as it is typed, on a run as it is left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tests
from metarun.report import runs
from metarun.runner import run as train_and_test
from tests.helpers.command_line import command
from tests.helpers.report_runs import run
from tests.helpers.small_runs import small

ROOT = Path(tests.__file__).parents[1]
pytestmark = pytest.mark.usefixtures("alone")


def test_a_run_is_read_as_the_runner_leaves_it(tmp_path: Path) -> None:
    train_and_test(small(tmp_path, seed=4), tmp_path / "done")
    (one,) = runs.read([tmp_path / "done"]).runs
    assert (one.dataset, one.method, one.metric.name, one.seed, one.tasks) == ("sinusoid", "maml", "mse", 4, 10)
    assert (one.settings["backbone.hidden"], one.settings["eval.inner_loop"], len(one.by_step)) == ([8], 3, 4)


def test_a_report_leaves_its_files_in_its_own_folder_and_brings_no_torch(tmp_path: Path) -> None:
    for seed in (0, 1):
        run(tmp_path / f"runs/{seed}", seed)
    program = "import sys\nfrom metarun.cli.app import main\nprint(main(), 'torch' in sys.modules)"
    typed = [sys.executable, "-c", program, "mode=report", "runs=runs", "hydra.run.dir=here"]
    done = subprocess.run(typed, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    *_, last, status = done.stdout.splitlines()
    assert (status, done.stderr) == ("0 False", "")
    assert last == "everything is in here; open here/report.html in a browser"
    files = {"comparison.png", "curves.png", "steps.png", "report.md", "report.html", "report.csv", "runs.csv"}
    assert {path.name for path in (tmp_path / "here").iterdir()} == {*files, "metarun.log", ".hydra", ".lock"}
    assert "2 runs compared" in (tmp_path / "here/metarun.log").read_text()


def test_a_report_of_unfinished_runs_lists_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run(tmp_path / "runs/0") / "result.json").unlink()
    assert command("mode=report", "runs=[runs]") == 0
    shown = capsys.readouterr().out
    assert "No run is finished." in shown and "at step 40 of 60" in shown
