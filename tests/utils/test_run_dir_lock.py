"""A run folder belongs to its run: a second command leaves it as it is, to the byte and the time of each file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from metarun.errors import UserError
from metarun.runner import run
from metarun.utils import run_dir_lock
from tests.helpers.command_line import command
from tests.helpers.small_runs import small

pytestmark = pytest.mark.usefixtures("alone")
SHORT = ["dataset=sinusoid", "backbone.hidden=[8]", "eval.every=20", "eval.tasks=4", "eval.validation_tasks=4"]
TRAIN = [*SHORT, "iterations=20", "cache_dir=cache"]


def typed(*words: str) -> int:
    try:
        return command(*words)
    finally:
        GlobalHydra.instance().clear()


def snapshot(folder: str = ".") -> dict[str, tuple[int, bytes]]:
    """Each file and folder below, with its time of change and what is in it."""
    return {
        str(path): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [Path(folder), *Path(folder).rglob("*")]
    }


def refused(capsys: pytest.CaptureFixture[str], *words: str, folder: str = ".") -> str:
    """The one line of a command that ends with status 2 and changes nothing in the folder."""
    before = snapshot(folder)
    capsys.readouterr()
    assert typed(*words) == 2
    assert snapshot(folder) == before
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    assert typed(*TRAIN, "hydra.run.dir=run") == 0
    return tmp_path / "run"


# --- a folder that holds a run ------------------------------------------------------------------------------


def test_a_second_command_leaves_a_run_as_it_is(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, *TRAIN, "seed=1", "hydra.run.dir=run")
    assert all(word in told for word in ("run: holds a training run", "resume=auto", "resume=run", "run.dir=ANOTHER"))
    assert "mode=evaluate" in refused(capsys, "mode=evaluate", "checkpoint=run", "hydra.run.dir=run")
    assert "mode=report" in refused(capsys, "mode=report", "runs=run", "hydra.run.dir=run")
    # what is found out late, when the data and the checkpoint have been read
    assert "iterations=10" in refused(capsys, "resume=run", "iterations=10")
    assert "seed=0, not 1" in refused(capsys, *TRAIN, "seed=1", "resume=auto", "hydra.run.dir=run")
    assert "seed=1 differs" in refused(capsys, "resume=run", "seed=1")
    (finished / "result.json").unlink()
    assert refused(capsys, *TRAIN, "hydra.run.dir=run", "hydra.job.chdir=true").startswith("metarun: error: run: holds")
    lines = (finished / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (finished / "metrics.jsonl").write_bytes(lines[0])
    assert "metrics.jsonl" in refused(capsys, "resume=run", "iterations=40")


def test_a_finished_run_is_skipped_as_it_is(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot("run")
    assert typed(*TRAIN, "hydra.run.dir=run", "resume=auto") == 0
    assert snapshot("run") == before
    (finished / "result.json").write_text('{"mean"')
    assert "result.json: is damaged" in refused(capsys, *TRAIN, "hydra.run.dir=run", "resume=auto")


def test_a_run_goes_on_in_its_own_folder_alone(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Else the settings of one would go on with the checkpoints of another."""
    assert typed(*TRAIN, "seed=1", "hydra.run.dir=other") == 0
    assert "not in other" in refused(capsys, "resume=run", "iterations=40", "hydra.run.dir=other")
    assert typed("resume=run", "iterations=40", "hydra.run.dir=./run") == 0


def test_an_evaluation_is_kept_too(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate = ["mode=evaluate", "checkpoint=run", "eval.tasks=4", "hydra.run.dir=judged"]
    assert typed(*evaluate) == 0
    assert "judged: holds an evaluation already" in refused(capsys, *evaluate, "eval.inner_loop=3")
    assert "an evaluation, not a training run" in refused(capsys, *TRAIN, "hydra.run.dir=judged", "resume=auto")
    report = ["mode=report", "runs=run", "hydra.run.dir=report"]
    assert [typed(*report), typed(*report)] == [0, 0]  # holds no run, and is made anew


@pytest.mark.slow
def test_a_sweep_is_refused_before_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ["--multirun", *TRAIN, "hydra.sweep.dir=sweep"]
    assert typed(*sweep, "seed=0,1") == 0
    told = refused(capsys, *sweep, "seed=1,2")
    assert all(word in told for word in ("sweep: holds a sweep", "resume=auto", "hydra.sweep.dir=ANOTHER"))
    assert "holds a training run" in refused(capsys, "--multirun", *TRAIN, "seed=0,1", "hydra.sweep.dir=sweep/0")
    assert typed(*sweep, "seed=0,1,2", "resume=auto") == 0
    folder = "hydra.sweep.subdir=s${seed}"
    assert typed("--multirun", *TRAIN, "seed=5,6", "hydra.sweep.dir=.", folder) == 0
    before = snapshot("s5")
    Path("multirun.yaml").unlink()  # or else the whole would be refused
    assert typed("--multirun", *TRAIN, "seed=5,7", "hydra.sweep.dir=.", folder, "shots=3") == 2
    assert snapshot("s5") == before and Path("s7/result.json").exists()


# --- folders that hold none ---------------------------------------------------------------------------------


def test_a_start_that_was_cut_short_is_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run/.hydra").mkdir(parents=True)
    Path("run/tensorboard").mkdir()
    for name in (".lock", "metarun.log", "metrics.jsonl"):
        Path("run", name).touch()
    assert typed(*TRAIN, "hydra.run.dir=run") == 0
    assert Path("run/.hydra/overrides.yaml").exists() and Path("run/metarun.log").stat().st_size


def test_other_files_stay_beside_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    Path("notes.txt").write_text("mine")
    Path("metarun.log").write_text("another program's")
    assert "metarun.log: belongs to another program" in refused(capsys, *TRAIN, "hydra.run.dir=.")
    Path("metarun.log").rename("theirs.log")
    assert typed(*TRAIN, "hydra.run.dir=.") == 0
    assert (Path("notes.txt").read_text(), Path("theirs.log").read_text()) == ("mine", "another program's")
    assert "holds a training run" in refused(capsys, *TRAIN, "hydra.run.dir=.", "seed=1")


@pytest.mark.parametrize("word", ["iterations=0", "dataset=folder dataset.root=pictures"])
def test_a_refused_command_leaves_no_new_folder(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("pictures/one").mkdir(parents=True)  # no pictures are in it, which is seen when they are read
    refused(capsys, *word.split(), "cache_dir=cache", "hydra.run.dir=a/new/one", folder="pictures")
    refused(capsys, *word.split(), "cache_dir=cache", folder="pictures")
    assert not Path("a").exists() and not Path("outputs").exists()


def test_a_link_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "run/.lock").symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match=r"run/\.lock: it is a link"):
        run(small(tmp_path), tmp_path / "run")


def test_a_process_that_is_about_to_end_is_waited_for(tmp_path: Path) -> None:
    program = "import sys, time\nfrom pathlib import Path\nfrom metarun.utils.run_dir_lock import exclusive_run_dir\n"
    program += "with exclusive_run_dir(Path('.'), lambda: None):\n    print(1, flush=True)\n    sys.stdin.read()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], **pipes, env=environment) as other:  # type: ignore[call-overload]
        assert other.stdin is not None and other.stdout is not None
        other.stdout.readline()
        with (
            pytest.raises(UserError, match="another process is writing"),
            run_dir_lock.exclusive_run_dir(tmp_path, lambda: None, 0.3),
        ):
            raise AssertionError
        other.stdin.close()
        with run_dir_lock.exclusive_run_dir(tmp_path, lambda: None, 30):
            pass


# --- relative paths -----------------------------------------------------------------------------------------


FOLDER = ["dataset=folder", "backbone=mlp", "backbone.hidden=[4]", "ways=2", "queries=1", "dataset.size=8"]
FOLDER += [
    "outer_schedule=constant",
    "iterations=4",
    "eval.every=4",
    "eval.tasks=4",
    "eval.validation_tasks=4",
    "cache_dir=cache",
]


def pictures(folder: str, shade: int = 9) -> None:
    for number in range(12):
        (Path(folder) / str(number)).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (8, 8), (shade * number, 60 * i, 90)).save(Path(folder) / str(number) / f"{i}.png")


@pytest.mark.slow
def test_relative_paths_mean_what_they_meant_where_they_were_typed() -> None:
    """Also where Hydra takes the job into its run folder."""
    pictures("pictures")
    chdir = "hydra.job.chdir=true"
    assert typed(*FOLDER, "dataset.root=pictures", "data_dir=data", "hydra.run.dir=run", chdir) == 0
    assert typed("resume=run", "iterations=8", chdir) == 0
    again = [*FOLDER, "dataset.root=pictures", "start=run", "hydra.run.dir=second", "resume=auto", chdir]
    assert [typed(*again), typed(*again)] == [0, 0]
    assert typed("mode=evaluate", "checkpoint=run", "eval.tasks=2", "hydra.run.dir=judged", chdir) == 0
    shown = ["support=pictures", "query=[pictures/0/0.png]", "hydra.run.dir=labelled"]
    assert typed("mode=predict", "checkpoint=run", *shown, chdir) == 0
    assert typed("mode=report", "runs=[run,second]", "hydra.run.dir=report", chdir) == 0
    assert typed("--multirun", *FOLDER, "dataset.root=pictures", "seed=1,2", "hydra.sweep.dir=sweep", chdir) == 0
    made = {"run", "second", "judged", "labelled", "report", "sweep", "cache", "pictures"}
    assert {path.name for path in Path().iterdir()} == made


@pytest.mark.slow
def test_a_run_goes_on_from_any_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pictures("here/pictures")
    monkeypatch.chdir("here")
    assert typed(*FOLDER, "dataset.root=pictures", "hydra.run.dir=run") == 0
    sweep = ["--multirun", *FOLDER[:-1], "seed=0,1", "resume=auto"]
    assert typed(*sweep, "dataset.root=pictures", "cache_dir=cache", "hydra.sweep.dir=sweep") == 0
    monkeypatch.chdir("..")
    assert typed("resume=here/run", "iterations=8") == 0
    assert typed("mode=evaluate", "checkpoint=here/run", "eval.tasks=2") == 0
    # and where the pictures have moved
    Path("here/pictures").rename("moved")
    assert "dataset.root=" in refused(capsys, "resume=here/run", "iterations=12", folder="here/run")
    assert typed("resume=here/run", "iterations=12", "dataset.root=moved") == 0
    assert typed("resume=here/run", "iterations=16") == 0  # which it remembers
    assert typed("mode=evaluate", "checkpoint=here/run", "eval.tasks=2", "dataset.root=moved") == 0
    assert typed(*sweep, "dataset.root=moved", "hydra.sweep.dir=here/sweep") == 0
    pictures("others", shade=10)
    told = refused(capsys, "resume=here/run", "iterations=20", "dataset.root=others", folder="here/run")
    assert "others: its training pictures are not those that the run was trained on" in told


@pytest.mark.parametrize(
    "name", ["metarun.log", "metrics.jsonl", "result.json", ".hydra", "checkpoints", "tensorboard"]
)
def test_a_link_or_a_pipe_among_what_will_be_written_is_refused(tmp_path: Path, name: str) -> None:
    """Also in a folder that is gone on with, and for what is within the folders that are written to."""
    folder, outside = tmp_path / "run", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    place = folder / name
    places = [place] if "." in name[1:] else [place, place / "part"]
    for path in places:
        path.parent.mkdir(exist_ok=True)
        for make in (lambda path=path: path.symlink_to(outside / "new"), lambda path=path: os.mkfifo(path)):
            make()
            for resume in (None, "auto", str(folder)):
                with pytest.raises(UserError, match=rf"{path.name}: it is a (link|pipe).*take it away"):
                    run_dir_lock.require_free(folder, "train", resume)
            path.unlink()
    assert not list(outside.iterdir())
