"""The command: what it composes, what it refuses and how, where a run lies, how a checkpoint meets what is typed."""

from __future__ import annotations

import errno
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

import metarun
import tests
from metarun.checkpointing import store
from metarun.checkpointing.state import CheckpointState
from metarun.cli import app, errors, resolvers, settings
from metarun.config.groups import CONFIG_GROUPS, Conv4, Glyphs, Mlp, Sinusoid, choices
from metarun.config.methods import Maml, Msgd
from metarun.config.schema import Settings, iter_options
from metarun.errors import UserError
from tests.helpers.command_line import command

pytestmark = pytest.mark.usefixtures("alone")
ROOT = Path(tests.__file__).parents[1]
CONFIGS = ROOT / "configs"
Run = Callable[[Settings, Path], Any]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Settings, Path]]:
    """What the runner was asked to do; it does nothing."""
    asked: list[tuple[Settings, Path]] = []
    runner(monkeypatch, lambda chosen, folder: asked.append((chosen, folder)))
    return asked


def runner(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    module = ModuleType("metarun.runner")

    def recording(chosen: Settings, folder: Path, record: Callable[[], None]) -> float | None:
        record()
        return run(chosen, folder)

    module.run = recording  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "metarun.runner", module)


def composed(*overrides: str) -> Settings:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return settings.build(compose("config", list(overrides)))


# --- what is shipped ---------------------------------------------------------------------------------------

NEEDED = {"folder": ["dataset.root=."]}  # keys that have no default


@pytest.mark.parametrize("method", choices("method"))
@pytest.mark.parametrize("dataset", choices("dataset"))
def test_data_sets_and_methods_compose(dataset: str, method: str) -> None:
    if (dataset, method) == ("sinusoid", "pretrain"):
        with pytest.raises(UserError, match="method=pretrain: learns to tell classes apart"):
            composed(f"dataset={dataset}", f"method={method}")
        return
    chosen = composed(f"dataset={dataset}", f"method={method}", *NEEDED.get(dataset, []))
    assert isinstance(chosen.dataset, CONFIG_GROUPS["dataset"][dataset])
    assert isinstance(chosen.method, CONFIG_GROUPS["method"][method])


@pytest.mark.parametrize("backbone", choices("backbone"))
@pytest.mark.parametrize("dataset", choices("dataset"))
def test_a_data_set_composes_with_another_backbone(dataset: str, backbone: str) -> None:
    if dataset == "sinusoid" and backbone != "mlp":
        with pytest.raises(UserError, match=f"backbone={backbone}: takes images"):
            composed(f"dataset={dataset}", f"backbone={backbone}")
        return
    chosen = composed(f"dataset={dataset}", f"backbone={backbone}", *NEEDED.get(dataset, []))
    assert isinstance(chosen.backbone, CONFIG_GROUPS["backbone"][backbone.partition("_")[0]])


def test_every_config_opens_with_what_it_is() -> None:
    for path in CONFIGS.rglob("*.yaml"):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if "@package" not in line]
        assert lines[0].startswith("# "), path


def test_a_data_set_brings_its_backbone_and_values() -> None:
    assert composed().backbone == Conv4(downsample="stride")
    assert composed().dataset == Glyphs()
    curves = composed("dataset=sinusoid")
    assert (curves.backbone, curves.shots, curves.eval.shots) == (Mlp(), 10, 5)


def test_precedence() -> None:
    assert composed("dataset=sinusoid").iterations == 20000
    assert composed("experiment=maml_sinusoid").iterations == 70000
    assert composed("experiment=maml_sinusoid", "iterations=3").iterations == 3
    assert composed("experiment=maml_omniglot_5way_1shot", "backbone=mlp").backbone == Mlp()
    assert composed("experiment=maml_omniglot_5way_1shot", "backbone.filters=3").backbone.filters == 3


def test_a_method_gives_way_to_the_data_set(tmp_path: Path) -> None:
    own = tmp_path / "own" / "method"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [/schema/method@method: maml]\ninner_learning_rate: 7\nouter_clip: 7\n"
    )
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        chosen = settings.build(compose("config", ["method=mine", f"hydra.searchpath=[file://{own.parent}]"]))
    assert (chosen.inner_learning_rate, chosen.outer_clip) == (0.4, 7)


def test_data_dir_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert composed().data_dir == "~/.cache/metarun/data"
    monkeypatch.setenv("METARUN_DATA", "/data")
    assert composed().data_dir == "/data"


# --- answers without work ----------------------------------------------------------------------------------


def test_help_lists_every_key_and_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--help") == 0
    shown = capsys.readouterr().out
    for name in errors.KEYS:
        assert f"  {name}=" in shown
    names = [choice for group in CONFIG_GROUPS for choice in choices(group)]
    names += [path.stem for path in (CONFIGS / "experiment").glob("*.yaml")]
    assert all(re.search(rf"\b{name}\b", shown) for name in names)
    assert max(map(len, shown.splitlines())) <= 100
    assert "schema" not in shown
    assert not list(Path().iterdir())


def test_the_parts_of_the_help_begin_with_keys() -> None:
    from metarun.cli.help import HEADINGS

    assert set(HEADINGS) <= {name for name, _, _ in iter_options(Settings)}


def test_help_shows_the_values_of_the_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("dataset=sinusoid", "--help") == 0
    shown = capsys.readouterr().out
    assert "meta_batch=25" in shown and "[sinusoid]" in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--version") == 0
    assert capsys.readouterr().out == f"metarun {metarun.__version__}\n"


def test_cfg_shows_the_settings_and_makes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--cfg", "job", "ways=7") == 0
    shown = capsys.readouterr().out
    assert "ways: 7\n" in shown and "hydra" not in shown
    assert not list(Path().iterdir())


def test_torch_waits_for_work(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom metarun.cli.app import main\n"
        "try: status = main()\nexcept SystemExit as stop: status = stop.code\n"
        "print(status, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    for arguments, status in ((["--help"], 0), (["--cfg", "job"], 0), (["ways=1"], 2)):
        line = [sys.executable, "-c", program, *arguments]
        done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
        assert done.stdout.splitlines()[-1] == f"{status} False False"


def test_python_m_metarun(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "metarun", "infer_loop=3"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "metarun: error: infer_loop: no such key; did you mean 'inner_loop'?\n"


def test_configs_are_found_in_the_package_or_else_the_clone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert app.config_folder() == CONFIGS
    for part in ("configs", "package/metarun/configs"):
        (tmp_path / part).mkdir(parents=True)
    monkeypatch.setattr(app, "__file__", str(tmp_path / "package/metarun/cli/app.py"))
    assert app.config_folder() == tmp_path / "package/metarun/configs"
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(app, "__file__", str(tmp_path / "metarun/cli/app.py"))
    assert app.config_folder() == tmp_path / "configs"


# --- failures ----------------------------------------------------------------------------------------------


def test_a_path_that_cannot_be_used_is_the_user_s_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(chosen: Settings, folder: Path) -> None:
        (folder / "metrics.jsonl").mkdir()
        (folder / "metrics.jsonl").write_text("")

    runner(monkeypatch, run)
    assert command() == 2
    assert re.match(r"metarun: error: /.*metrics.jsonl: Is a directory; give a folder", capsys.readouterr().err)


def test_divergence_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(chosen: Settings, folder: Path) -> None:
        raise FloatingPointError("outer step 3: the loss is nan")

    runner(monkeypatch, run)
    assert command() == 1
    assert capsys.readouterr().err == "metarun: error: outer step 3: the loss is nan\n"


def test_a_mistake_found_by_the_work(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(chosen: Settings, folder: Path) -> None:
        raise UserError("data_dir=x: nothing there")

    runner(monkeypatch, run)
    assert command() == 2
    assert capsys.readouterr().err == "metarun: error: data_dir=x: nothing there\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_a_failing_disk_is_told_in_one_line(number: int, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def run(chosen: Settings, folder: Path) -> None:
        raise OSError(number, "no luck", str(folder / "result.json"))

    runner(monkeypatch, run)
    told = r"metarun: error: outputs/\S+/result.json could not be written \(no luck\): .*(disk|quota|limit).*\n"
    assert command() == 1
    assert re.fullmatch(told, capsys.readouterr().err)
    assert command("--multirun", "seed=1,2") == 1
    jobs = capsys.readouterr().err
    assert "Traceback" not in jobs
    assert [line.partition(")")[0] for line in jobs.splitlines() if ": error: " in line] == [
        f"metarun: error: job {i} (seed={i + 1}" for i in (0, 1)
    ]


def test_a_log_that_cannot_be_written_ends_the_run(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def run(chosen: Settings, folder: Path) -> None:
        (log,) = [handler for handler in logging.root.handlers if isinstance(handler, logging.FileHandler)]
        log.close()
        log.stream = Path("/dev/full").open("w")  # noqa: SIM115, closed by the log
        logging.getLogger("metarun.test").info("step 1")
        raise AssertionError("not reached")

    runner(monkeypatch, run)
    assert command() == 1
    assert re.fullmatch(r"metarun: error: outputs/\S+/metarun.log could not be written .*\n", capsys.readouterr().err)


@pytest.mark.parametrize("error", [RuntimeError("broken"), OSError(9, "broken", "disk"), ValueError("broken")])
def test_another_failure_shows_where_it_happened(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(chosen: Settings, folder: Path) -> None:
        raise error

    runner(monkeypatch, run)
    assert command() == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown and "broken" in shown and "metarun: error" not in shown


def test_interrupts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from metarun.utils.signals import RunInterrupted

    for stop, status in ((KeyboardInterrupt(), 130), (RunInterrupted("SIGTERM: stopped after step 3", 15), 143)):

        def run(chosen: Settings, folder: Path, stop: BaseException = stop) -> None:
            raise stop

        runner(monkeypatch, run)
        assert command() == status
    assert capsys.readouterr().err == "metarun: interrupted\nmetarun: SIGTERM: stopped after step 3\n"


# --- run folders and sweeps --------------------------------------------------------------------------------


def test_the_runner_gets_settings_and_a_folder(runs: list[tuple[Settings, Path]]) -> None:
    assert command("ways=7", "--run", "backbone.filters=8") == 0  # a flag between keys
    ((chosen, folder),) = runs
    assert isinstance(chosen, Settings)
    assert (chosen.ways, chosen.backbone) == (7, Conv4(filters=8, downsample="stride"))
    assert isinstance(chosen.method, Maml)
    assert re.fullmatch(r"outputs/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d", str(folder.relative_to(Path.cwd())))
    assert (folder / ".hydra/overrides.yaml").read_text() == "- ways=7\n- backbone.filters=8\n"


def test_the_console_is_plain_and_the_log_has_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = []

    def run(chosen: Settings, folder: Path) -> None:
        folders.append(folder)
        logging.getLogger("metarun.test").info("step 1")

    runner(monkeypatch, run)
    assert command() == 0
    assert capsys.readouterr().out == "step 1\n"
    assert re.match(r"\[\d{4}-.*\]\[metarun.test\]\[INFO\] - step 1", (folders[0] / "metarun.log").read_text())


def test_runs_of_one_second_have_their_own_folders(runs: list[tuple[Settings, Path]]) -> None:
    class Noon:
        @staticmethod
        def now() -> Any:
            from datetime import datetime

            return datetime(2025, 1, 31, 12)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolvers, "datetime", Noon)
        for _ in range(3):
            assert command() == 0
        assert command("--multirun", "seed=1,2") == 0
        assert command("--multirun", "seed=1") == 0
    day, sweep = "outputs/2025-01-31/12-00-00", "outputs/multirun/2025-01-31/12-00-00"
    assert [str(folder.relative_to(Path.cwd())) for _, folder in runs] == [
        *(day, f"{day}-2", f"{day}-3"),
        *(f"{sweep}/0", f"{sweep}/1", f"{sweep}-2/0"),
    ]


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    done = []

    def run(chosen: Settings, folder: Path) -> float:
        if chosen.seed == 1:
            raise UserError("no such data")
        if chosen.seed == 2:
            raise RuntimeError("broken")
        done.append(chosen.seed)
        return 0.5

    runner(monkeypatch, run)
    assert command("--multirun", "seed=0,1,3", "ways=5,1") == 2  # ways=1 is out of range, seed=1 fails in the work
    assert done == [0, 3]
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("metarun: error: ")]
    assert [line.partition(": error: ")[2] for line in told] == [
        "job 1 (seed=0 ways=1): ways=1: must be 2 or more",
        "job 2 (seed=1 ways=5): no such data",
        "job 3 (seed=1 ways=1): ways=1: must be 2 or more",
        "job 5 (seed=3 ways=1): ways=1: must be 2 or more",
    ]
    done.clear()
    assert command("--multirun", "seed=1,2,3") == 1
    assert done == [3]
    assert "RuntimeError: broken" in capsys.readouterr().err


def test_config_dir_adds_groups(tmp_path: Path, runs: list[tuple[Settings, Path]]) -> None:
    own = tmp_path / "own" / "experiment"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# @package _global_\ndefaults: [{override /dataset: sinusoid}]\nways: 9\n")
    assert command("--config-dir", str(own.parent), "experiment=mine") == 0
    assert (runs[0][0].ways, runs[0][0].dataset) == (9, Sinusoid())


@pytest.mark.parametrize(
    ("group", "content", "expected"),
    [
        ("method", "name: msgd\nalpha: tensor\n", Msgd(alpha="tensor")),
        ("method", "defaults: [maml]\nname: maml\n", Maml()),
        ("method", "defaults:\n  - msgd\n  - _self_\nalpha: scalar\n", Msgd(alpha="scalar")),
        ("backbone", "name: conv4\nfilters: 8\n", Conv4(filters=8)),
        ("dataset", "name: sinusoid\nfrequency: [0.8, 1.2]\n", Sinusoid(frequency=[0.8, 1.2])),
    ],
)
def test_a_choice_of_one_s_own_sets_values_of_a_known_one(
    group: str, content: str, expected: object, tmp_path: Path, runs: list[tuple[Settings, Path]]
) -> None:
    own = tmp_path / "own" / group
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text(content)
    preset = tmp_path / "own" / "experiment"
    preset.mkdir()
    (preset / "with_mine.yaml").write_text(f"# @package _global_\ndefaults: [{{override /{group}: mine}}]\nways: 9\n")
    backbone = ["backbone=mlp"] if group == "dataset" else []
    assert command("--config-dir", str(own.parent), f"{group}=mine", *backbone) == 0
    assert getattr(runs[-1][0], group) == expected and type(getattr(runs[-1][0], group)) is type(expected)
    assert command("--config-dir", str(own.parent), "experiment=with_mine", *backbone) == 0
    assert getattr(runs[-1][0], group) == expected and runs[-1][0].ways == 9


@pytest.mark.parametrize(
    ("content", "typed", "words"),
    [
        ("name: reptile\nrate: 3\n", "", ["method", "'reptile'", "no code", "`defaults: [X, _self_]`", "warpgrad"]),
        ("alpha: tensor\n", "", ["method", "which method", "`name: X`", "msgd"]),
        ("name: [maml]\n", "", ["method", "no code"]),
        ("name: msgd\nalfa: tensor\n", "", ["method.alfa", "method=msgd", "method.alpha"]),
        ("name: mtnet\nmask: many\n", "", ["method.mask", "true or false"]),
        ("name: msgd\nalpha: tensors\n", "", ["method.alpha=tensors", "'tensor'"]),
        ("name: msgd\n", "method.alpha=tensor", ["method.alpha", "the file that is chosen", "defaults: [X, _self_]"]),
    ],
)
def test_a_choice_of_one_s_own_that_lacks_something_says_what(
    content: str, typed: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own" / "method"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text(content)
    assert command("--config-dir", str(own.parent), "method=mine", *typed.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert [word for word in words if word not in line] == []


# --- checkpoints -------------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run with sinusoid, iterations=50 and a cosine schedule, whose checkpoint has no weights."""
    folder = Path("outputs/old")
    (folder / "checkpoints").mkdir(parents=True)
    saved = composed("dataset=sinusoid", "iterations=50", "seed=3", "outer_schedule=cosine", "eval.tasks=20")
    store.save(store.step_checkpoint_path(folder, 50), CheckpointState(saved, {}, {}, step=50))
    return folder


def test_resume_takes_the_run_s_settings_and_folder(run_folder: Path, runs: list[tuple[Settings, Path]]) -> None:
    allowed = ["eval.tasks=30", "save.keep=9", "engine.tasks=looped", "device=cpu", "data_dir=/d", "download=true"]
    equal = ["dataset=sinusoid", "backbone=mlp", "backbone.hidden=[40,40]", "seed=3", "shots=10", "iterations=50"]
    assert command(f"resume={run_folder}", *equal, *allowed) == 0
    ((chosen, folder),) = runs
    assert folder == run_folder.absolute()
    assert (chosen.dataset, chosen.backbone, chosen.seed, chosen.meta_batch) == (Sinusoid(), Mlp(), 3, 25)
    assert (chosen.eval.tasks, chosen.eval.inner_loop, chosen.save.keep) == (30, 10, 9)
    assert (chosen.device, chosen.data_dir, chosen.download) == ("cpu", "/d", True)
    assert chosen.resume == str(run_folder)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("seed=4", ["seed=4", "run's 3"]),
        ("dataset=glyphs", ["dataset=glyphs", "sinusoid"]),
        ("dataset=sinusoid dataset.frequency=[1,2]", ["dataset.frequency=[1.0, 2.0]", "[1.0, 1.0]"]),
        ("dataset=sinusoid backbone={hidden:[3]}", ["backbone.hidden=[3]", "[40, 40]"]),
        ("backbone.hidden=[9]", ["backbone.hidden=[9]", "[40, 40]"]),
        ("iterations=60", ["iterations=60", "cosine"]),
        ("experiment=maml_sinusoid", ["experiment"]),
    ],
)
def test_resume_refuses_to_change_the_run(
    arguments: str, words: list[str], run_folder: Path, runs: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(f"resume={run_folder}", *arguments.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for word in [f"resume={run_folder}", *words]:
        assert word in line
    assert not runs


def test_evaluate_takes_the_checkpoint_s_settings(run_folder: Path, runs: list[tuple[Settings, Path]]) -> None:
    assert command("mode=evaluate", f"checkpoint={run_folder}", "shots=2", "eval={inner_loop:4}") == 0
    ((chosen, folder),) = runs
    assert folder != run_folder.absolute()
    assert (chosen.mode, chosen.checkpoint, chosen.resume) == ("evaluate", str(run_folder), None)
    assert (chosen.dataset, chosen.backbone, chosen.seed) == (Sinusoid(), Mlp(), 3)
    assert (chosen.shots, chosen.eval.inner_loop, chosen.eval.tasks) == (2, 4, 20)


def test_evaluate_takes_the_whole_of_a_typed_group(run_folder: Path, runs: list[tuple[Settings, Path]]) -> None:
    assert (
        command("mode=evaluate", f"checkpoint={run_folder}", "dataset=glyphs", "dataset.seed=2", "shots=1", "queries=5")
        == 0
    )
    chosen = runs[0][0]
    assert (chosen.dataset, chosen.backbone, chosen.meta_batch) == (Glyphs(seed=2), Mlp(), 25)


def test_evaluate_refuses_a_key_the_checkpoint_has_not(
    run_folder: Path, runs: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("mode=evaluate", f"checkpoint={run_folder}", "backbone.filters=3") == 2
    assert "backbone.filters" in capsys.readouterr().err
    assert not runs


@pytest.mark.parametrize("typed", ["seed=4", "use_second_order=false", "meta_batch=99", "backbone.hidden=[9]"])
def test_evaluate_refuses_what_would_make_its_result_untrue(
    typed: str, run_folder: Path, runs: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("mode=evaluate", f"checkpoint={run_folder}", typed) == 2
    assert f"checkpoint={run_folder}: {typed[:6]}" in capsys.readouterr().err
    assert not runs


def test_evaluate_knows_the_keys_of_the_checkpoint_s_choices(
    run_folder: Path, runs: list[tuple[Settings, Path]]
) -> None:
    assert command("mode=evaluate", f"checkpoint={run_folder}", "dataset.frequency=[0.8,1.2]") == 0
    assert runs[0][0].dataset == Sinusoid(frequency=[0.8, 1.2])


def test_a_resumed_run_keeps_the_record_of_what_was_typed(run_folder: Path, runs: list[Any]) -> None:
    (run_folder / ".hydra").mkdir()
    (run_folder / ".hydra/overrides.yaml").write_text("- seed=3\n")
    assert command(f"resume={run_folder}", "seed=4") == 2
    assert command(f"resume={run_folder}", "save.keep=9") == 0
    assert [path.name for path in (run_folder / ".hydra").iterdir()] == ["overrides.yaml"]
    assert (run_folder / ".hydra/overrides.yaml").read_text() == "- seed=3\n"


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ([], (5, 10, 100)),
        (["shots=3", "inner_loop=2", "queries=7"], (None, None, None)),
        (["shots=3", "eval.shots=4", "eval={inner_loop:6}", "inner_loop=2"], (4, 6, 100)),
    ],
)
def test_evaluation_follows_what_is_typed_for_training(
    typed: list[str], expected: tuple[int | None, ...], runs: list[tuple[Settings, Path]]
) -> None:
    assert command("dataset=sinusoid", *typed) == 0
    found = runs[0][0].eval
    assert (found.shots, found.inner_loop, found.queries) == expected


def test_home_is_known_in_paths(runs: list[tuple[Settings, Path]]) -> None:
    assert command("data_dir=~/data") == 0
    assert runs[0][0].data_dir == str(Path.home() / "data")
