"""Real commands from beginning to end: every shipped config but most experiments, every command of the README, the
installed wheel.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from metarun import methods
from metarun.checkpointing.store import load
from metarun.config.groups import choices
from tests.helpers import small_data
from tests.helpers.command_line import command

ROOT = Path(__file__).parent.parent
TINY = ["iterations=2", "eval.tasks=4", "eval.validation_tasks=2", "eval.every=2"]
NEEDS_DATA = "needs real Omniglot: set METARUN_TEST_DATA to a folder that holds omniglot-py/"
RUN_FOLDER = re.compile(r"outputs/(?:multirun/)?\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def data_dir(alone: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Real data where there is some, and else none."""
    monkeypatch.setenv("METARUN_DATA", os.environ.get("METARUN_TEST_DATA", str(tmp_path / "nothing")))


def run_folders(below: Path = Path()) -> list[Path]:
    """Those with a result, oldest first."""
    return [path.parent for path in sorted(below.rglob("result.json"), key=lambda path: path.stat().st_mtime_ns)]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    small_data.write(folder)
    return folder


SMALLEST = "backbone.network=shufflenet_v2_x0_5"
NARROW = {"resnet12": ["backbone.filters=[4,4,8,8]", "meta_batch=1"], "torchvision": [SMALLEST, "meta_batch=1"]}
EXPERIMENTS = ["maml_omniglot_5way_1shot", "maml_sinusoid", "msgd_sinusoid_5shot"]  # the others take long
SMALL = ("cifar_fs", "fc100", "miniimagenet", "tieredimagenet", "cub", "folder")  # that tests have in miniature


def needs_data(words: str) -> None:
    if "omniglot" in words and "METARUN_TEST_DATA" not in os.environ:
        pytest.skip(NEEDS_DATA)


LONG = ("glyphs", "miniimagenet", "tieredimagenet", "cub", "omniglot", "torchvision")


@pytest.mark.parametrize(
    "typed",
    [
        pytest.param(f"{group}={name}", marks=[pytest.mark.slow] * (name in LONG))
        for group in ("dataset", "backbone", "method")
        for name in choices(group)
    ]
    + [pytest.param(f"experiment={name}", marks=pytest.mark.slow) for name in EXPERIMENTS],
)
def test_every_shipped_config_runs(typed: str, cache: Path, small: Path) -> None:
    needs_data(typed)
    group, _, name = typed.partition("=")
    own = [f"data_dir={small}", *small_data.SHAPE] if name in SMALL else []
    own += [f"dataset.root={small / 'pictures'}"] if name == "folder" else []
    own += NARROW.get(name.partition("_")[0], [])
    assert command(typed, *TINY, f"cache_dir={cache}", *own) == 0
    (folder,) = run_folders()
    result = json.loads((folder / "result.json").read_text())
    said = "resnet12" if name == "resnet12_wide" else name  # whose filters NARROW changes
    assert group == "experiment" or result[group] == said
    assert len(result["by_step"]) == result["inner_loop"] + 1
    assert result["batch_norm"] == ("none" if result["backbone"] == "mlp" else "transductive")
    assert (folder / ".hydra" / "config.yaml").is_file() and (folder / "metarun.log").stat().st_size > 0


def documented_commands() -> list[str]:
    """Every line that begins with `metarun` in the shell blocks of the README and of docs/own-pictures.md."""
    text = "".join((ROOT / path).read_text() for path in ("README.md", "docs/own-pictures.md"))
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("metarun")]


@pytest.mark.slow
def test_every_documented_command_runs(cache: Path, small: Path) -> None:
    commands = documented_commands()
    shutil.copytree(small / "pictures", "pictures")
    for path in ("known/a/1.png", "known/b/1.png", "new/1.png", "new/2.png"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (28, 28), 255 if "a/" in path else 0).save(path)
    assert len(commands) >= 13
    for line in commands:
        words = shlex.split(line, comments=True)[1:]
        if any("omniglot" in word for word in words):
            if "METARUN_TEST_DATA" not in os.environ:
                continue  # test_every_shipped_config_runs says why
            words = [word for word in words if not word.startswith("data_dir=")]
        if folders := run_folders(Path("outputs")):
            words = [RUN_FOLDER.sub(str(folders[-1]), word) for word in words]
        free = [] if {"--help", "--cfg", "mode=report"} & set(words) else [*TINY, f"cache_dir={cache}"]
        assert command(*words, *free) == 0, line
        GlobalHydra.instance().clear()


@pytest.mark.slow
def test_the_default_run_learns_and_is_resumed_and_evaluated(cache: Path) -> None:
    """40 steps on glyphs, stopped at 20 and resumed, end with the tensors of a run that was not stopped."""
    short = ["eval.tasks=20", "eval.validation_tasks=8", "eval.every=20", "meta_batch=2"]
    short += ["outer_schedule=constant", f"cache_dir={cache}"]
    assert command("iterations=40", *short, "hydra.run.dir=whole") == 0
    assert command("iterations=20", *short, "hydra.run.dir=parts") == 0
    assert command("iterations=40", "resume=parts", f"cache_dir={cache}") == 0
    whole, parts = (load(Path(name) / "checkpoints/step-00000040.safetensors") for name in ("whole", "parts"))
    assert whole.theta.keys() == parts.theta.keys() and len(whole.phi) == 8
    for own, other in ((whole.theta, parts.theta), (whole.phi, parts.phi)):
        for name, tensor in own.items():
            assert torch.equal(tensor, other[name])
    assert command("mode=evaluate", "checkpoint=whole", "hydra.run.dir=judged", f"cache_dir={cache}") == 0
    trained, judged = (json.loads(Path(name, "result.json").read_text()) for name in ("whole", "judged"))
    assert trained["by_step"] == judged["by_step"]
    assert trained["mean"] > trained["by_step"][0] + 0.1  # adapting helps


@pytest.mark.slow
def test_the_wheel_runs_from_another_folder(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("metarun", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("metarun-*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    arguments = ["dataset=sinusoid", *TINY, "hydra.run.dir=run"]
    code = "import metarun.cli.app, sys; print(metarun.cli.app.config_folder()); sys.exit(metarun.cli.app.main())"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(site)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith(str(site / "metarun" / "configs"))
    assert (elsewhere / "run" / "result.json").is_file()
    assert (site / "metarun" / "report" / "page.html").is_file()
    assert (site / "metarun" / "py.typed").is_file()
    lists = {path.name for path in (ROOT / "metarun" / "data" / "class_lists").iterdir()}
    assert lists == {path.name for path in (site / "metarun" / "data" / "class_lists").iterdir()}


def test_the_list_of_data_sets_says_what_is_there(small: Path, tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "scripts" / "data_sets.py"), "--data-dir", str(small)]
    told = subprocess.run(script, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    for name in ("glyphs", "omniglot", *SMALL[:-1]):
        (entry,) = re.findall(rf"^{name}\n((?:  .*\n)+)", told, re.MULTILINE)
        assert ("there     no" in entry) == (name == "omniglot"), entry
    assert "class folders in" in told and "CIFAR-100's pickles in" in told


def python_blocks(path: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)


def test_the_readmes_python_runs() -> None:
    (block,) = python_blocks("README.md")
    scope: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), scope)
    assert "weights" in scope


def test_the_method_of_the_docs_takes_steps_of_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    (block,) = python_blocks("docs/methods.md")
    assert len(block.splitlines()) <= 30
    exec(compile(block, "docs/methods.md", "exec"), {})
    model = torch.nn.Linear(3, 2)
    method = methods.METHODS["normalised"](model, 0.1)
    gradient = {name: torch.randn_like(tensor) for name, tensor in method.parameters.theta.items()}
    stepped = method.update(method.parameters.theta, gradient, {}, None, 0)
    moved = torch.cat([(stepped[name] - tensor).detach().flatten() for name, tensor in method.parameters.theta.items()])
    assert float(moved.norm()) == pytest.approx(0.1)


NEW_FUNCTION = """
from metarun.methods.maml import maml


def halved(model, inner_learning_rate, factor):
    return maml(model, inner_learning_rate * factor, name="halved")
"""
NEW_KEYS = """

@dataclass
class Halved(MethodConfig):
    name: str = "halved"
    linear: ClassVar[bool] = False
    factor: float = option(0.5, "factor of the inner learning rate", above=0)
"""


def test_a_method_is_added_by_its_file_and_its_keys(tmp_path: Path) -> None:
    for name in ("metarun", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "metarun/methods/halved.py").write_text(NEW_FUNCTION)
    keys = tmp_path / "metarun/config/methods.py"
    text, registry = keys.read_text().split("\n\nMETHODS")
    keys.write_text(f"{text}{NEW_KEYS}\n\nMETHODS{registry}")

    def by_step(*words: str) -> list[float]:
        words = ("dataset=sinusoid", "iterations=2", "eval.every=2", "eval.tasks=2", "eval.inner_loop=1", *words)
        python = [sys.executable, "-m", "metarun", *words]
        subprocess.run(python, cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})
        (path,) = tmp_path.glob("outputs/*/*/result.json")
        values = json.loads(path.read_text())["by_step"]
        shutil.rmtree(tmp_path / "outputs")
        return values

    assert by_step("method=halved", "method.factor=0.25", "inner_learning_rate=0.04") == by_step("method=maml")
    words = [sys.executable, "-m", "metarun", "method=halved", "dataset=sinusoid", "learn_lr=scalar"]
    told = subprocess.run(words, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert told.returncode == 2 and "method=halved is not linear in the gradient" in told.stderr


@pytest.mark.slow
def test_a_sweep_that_is_started_again_skips_what_is_finished(capsys) -> None:
    """Of three jobs one is finished, one stopped half-way and one never began; then all are as in one go."""
    words = ["--multirun", "dataset=sinusoid", "seed=0,1,2", "iterations=40", "eval.every=20", *TINY[1:3]]
    assert command(*words, "hydra.sweep.dir=whole") == 0
    assert command(*words, "hydra.sweep.dir=parts", "resume=auto") == 0
    finished = Path("parts/0/result.json").stat().st_mtime_ns
    Path("parts/1/result.json").unlink()
    Path("parts/1/checkpoints/step-00000040.safetensors").unlink()
    shutil.rmtree("parts/2")
    capsys.readouterr()
    assert command(*words, "hydra.sweep.dir=parts", "resume=auto") == 0
    told = capsys.readouterr().out
    assert "parts/0 is finished already and skipped" in told and "going on from parts/1" in told
    assert Path("parts/0/result.json").stat().st_mtime_ns == finished
    for job in "012":
        whole, parts = (load(Path(name, job, "checkpoints/step-00000040.safetensors")) for name in ("whole", "parts"))
        assert all(torch.equal(tensor, parts.theta[name]) for name, tensor in whole.theta.items())
        lines = [
            [{**json.loads(line), "seconds": 0} for line in Path(name, job, "metrics.jsonl").read_text().splitlines()]
            for name in ("whole", "parts")
        ]
        assert lines[0] == lines[1]
    again = [word.replace("iterations=40", "iterations=50") for word in words]
    assert command(*again, "hydra.sweep.dir=parts", "resume=auto") == 2
    assert "the run in parts/0 has iterations=40, not 50" in " ".join(capsys.readouterr().err.split())
