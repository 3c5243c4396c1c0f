"""What a sweep tells while it runs and when it is over, with runs that do nothing but leave a result."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from metarun.cli import sweeps
from metarun.config.schema import Settings
from metarun.errors import UserError
from tests.helpers.command_line import command
from tests.helpers.report_runs import write_result

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each leaves a result; seed 1 fails."""

    def run(chosen: Settings, folder: Path, record: Callable[[], None]) -> float:
        record()
        if chosen.seed == 1:
            raise UserError("no such data")
        if not (folder / "result.json").exists():
            write_result(folder, chosen.seed, 0.5 + chosen.seed / 10, chosen.method.name)
        return 0.5

    module = ModuleType("metarun.runner")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "metarun.runner", module)


def test_a_sweep_tells_its_progress_and_its_table(runs: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--multirun", "method=maml,l2f", "seed=0,1,2") == 2
    shown = capsys.readouterr().out
    jobs = [line for line in shown.splitlines() if line.startswith("job ")]
    expected = [
        r"job 1 of 6 done: accuracy 50\.00 ± 2\.00 %, about .* left",
        r"job 2 of 6 failed, about .* left",
        r"job 3 of 6 done: accuracy 70\.00 ± 2\.00 %, about .* left",
        r"job 4 of 6 done: accuracy 50\.00 ± 2\.00 %, about .* left",
        r"job 5 of 6 failed, about .* left",
        r"job 6 of 6 done: accuracy 70\.00 ± 2\.00 %",
    ]
    assert len(jobs) == 6 and all(map(re.fullmatch, expected, jobs))
    (report,) = Path("outputs").rglob("report.md")
    assert re.fullmatch(r"outputs/multirun/[\d-]+/[\d-]+", str(report.parent))
    assert "4 runs compared" in shown and "| **maml** | **60.00** |" in report.read_text()
    assert report.read_text().count("has not begun to train") == 2
    assert f"the table is in {report}; with plots: metarun mode=report runs={report.parent}" in shown


def test_a_sweep_that_is_typed_again_tells_the_whole(runs: None, capsys: pytest.CaptureFixture[str]) -> None:
    again = ("--multirun", "resume=auto", "hydra.sweep.dir=seeds")
    assert command(*again, "seed=0") == 0
    time.sleep(0.02)
    capsys.readouterr()
    assert command(*again, "seed=0,2") == 0
    shown = capsys.readouterr().out
    assert "\njob 1 of 2 done: accuracy 50.00 ± 2.00 %\n" in shown  # it took no time, so nothing is known of the next
    assert "2 runs compared" in shown and "60.00" in Path("seeds/report.md").read_text()


@pytest.mark.parametrize("typed", [["seed=1,1"], ["mode=predict,report", "seed=2"], ["seed=3", "hydra.run.dir=x"]])
def test_without_a_result_there_is_no_table(
    typed: list[str], runs: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["metarun.runner"], "run", lambda chosen, folder, record: None)
    assert command("--multirun", *typed) in (0, 2)
    assert "compared" not in capsys.readouterr().out
    assert not list(Path().rglob("report.md"))


def test_a_single_run_tells_no_job(runs: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert command() == 0
    assert "job" not in capsys.readouterr().out


def test_a_table_that_cannot_be_written_is_told(runs: None, capsys: pytest.CaptureFixture[str]) -> None:
    Path("seeds/report.md").mkdir(parents=True)
    assert command("--multirun", "seed=0", "hydra.sweep.dir=seeds") == 1
    assert re.fullmatch(r"metarun: error: .*report\.md.*\n", capsys.readouterr().err)


def test_in_a_launcher_s_process_a_job_knows_only_of_itself(
    runs: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps.os, "getpid", iter(range(100)).__next__)
    assert command("--multirun", "seed=0,2") == 0
    jobs = [line for line in capsys.readouterr().out.splitlines() if line.startswith("job ")]
    assert jobs == ["job number 0 done: accuracy 50.00 ± 2.00 %", "job number 1 done: accuracy 70.00 ± 2.00 %"]
