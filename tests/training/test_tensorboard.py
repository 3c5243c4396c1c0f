"""What TensorBoard is given by a run: that it is there, true, once, and that the run does not notice."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from torch.utils._pytree import tree_map

from metarun.checkpointing import store
from metarun.config.groups import CONFIG_GROUPS, Conv4, Folder
from metarun.config.schema import EvalConfig, Settings
from metarun.evaluation import summaries
from metarun.runner import run
from scripts.survival import differences
from tests.helpers.small_data import pictures
from tests.helpers.small_runs import killed_behind_validation, lines, small

ALL = dict.fromkeys(("scalars", "histograms", "images", "tensors"), 0)


def images_run(folder: Path, method: str, **changes: Any) -> Settings:
    """A run of a second on pictures."""
    if not (folder / "pictures").exists():
        pictures(folder / "pictures", [f"class {number}" for number in range(25)], each=5)
    few = EvalConfig(tasks=2, validation_tasks=2, every=2, inner_loop=2)
    data = Folder(root=str(folder / "pictures"), size=16)
    own = {
        "dataset": data,
        "backbone": Conv4(filters=4),
        "method": CONFIG_GROUPS["method"][method](),
        "ways": 3,
        "shots": 2,
    }
    return small(folder, **{**own, "queries": 3, "inner_loop": 1, "iterations": 4, "eval": few, **changes})


def seen(folder: Path, below: str = "") -> EventAccumulator:
    found = EventAccumulator(str(folder / "tensorboard" / below), size_guidance=ALL)
    return found.Reload()


def steps(events: list[Any]) -> list[int]:
    return [event.step for event in events]


def plain(tree: Any) -> Any:
    return tree_map(lambda leaf: leaf.tolist() if isinstance(leaf, torch.Tensor) else leaf, tree)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of each method that shows something."""
    folder = tmp_path_factory.mktemp("runs")
    for method in ("msgd", "mtnet", "warpgrad", "l2f"):
        run(images_run(folder, method), folder / method)
    return folder


def phi(folder: Path, part: str) -> dict[str, torch.Tensor]:
    """What the last checkpoint holds of a method's part."""
    state = store.load(store.latest_intact_checkpoint(folder))
    return {name.removeprefix(f"{part}."): value for name, value in state.phi.items() if name.startswith(part)}


def test_rates_are_shown_as_distributions_and_by_their_means(runs: Path) -> None:
    found, rates = seen(runs / "msgd"), phi(runs / "msgd", "inner_rates")
    assert set(found.Tags()["histograms"]) == {f"inner_learning_rate/{name.replace('/', '.')}" for name in rates}
    for name, values in rates.items():
        tag = f"inner_learning_rate/{name.replace('/', '.')}"
        last, mean = found.Histograms(tag)[-1], found.Scalars(f"mean_{tag}")[-1]
        assert last.step == mean.step == 4 and mean.value == pytest.approx(float(values.mean()), rel=1e-5)
        assert last.histogram_value.num == values.numel()
        assert last.histogram_value.min == pytest.approx(float(values.min()), rel=1e-5)


def test_masks_warps_and_gamma_are_shown_by_layer(runs: Path) -> None:
    found, logits = seen(runs / "mtnet"), phi(runs / "mtnet", "mask_logits")
    assert len(logits) == 5
    for name, values in logits.items():
        shares = found.Scalars(f"masked_units/{name.replace('/', '.')}")
        assert steps(shares) == [2, 4] and shares[-1].value == pytest.approx(float((-values).sigmoid().mean()))
    found, warps = seen(runs / "warpgrad"), phi(runs / "warpgrad", "warp_layers")
    for block in range(4):
        own = torch.cat([value.flatten() for name, value in warps.items() if name.startswith(f"blocks/{block}.")])
        assert found.Scalars(f"warp_norm/blocks.{block}")[-1].value == pytest.approx(float(own.norm()))
    found = seen(runs / "l2f")
    gammas = [found.Scalars(tag)[-1].value for tag in found.Tags()["scalars"] if tag.startswith("gamma/")]
    assert len(gammas) == 10 and all(0 < gamma < 1 for gamma in gammas) and len(set(gammas)) == 10


def test_every_run_shows_the_metric_by_inner_step_and_its_result(runs: Path) -> None:
    found = seen(runs / "l2f")
    curves = {tag: found.Scalars(tag)[-1].value for tag in found.Tags()["scalars"]}
    val = [line for line in lines(runs / "l2f") if line["split"] == "val"]
    assert curves["accuracy_by_inner_step/validation_2"] == pytest.approx(val[-1]["accuracy"])
    assert {tag for tag in curves if tag.startswith("accuracy_by_inner_step/t")} == {
        f"accuracy_by_inner_step/training_{k}" for k in (0, 1)
    }
    assert sorted(tag for tag in curves if tag < "a") == [
        f"Result/{name}" for name in ("test_accuracy", "test_ci95", "validation_best_accuracy")
    ]
    assert set(found.Tags()["images"]) == {"by_inner_step/validation", "by_inner_step/test"} | {
        f"tasks/{number}" for number in range(3)
    }
    for tag in found.Tags()["images"]:
        Image.open(io.BytesIO(found.Images(tag)[-1].encoded_image_string)).verify()


@pytest.mark.parametrize("settings", [small, lambda folder: images_run(folder, "mtnet")])
def test_a_run_does_not_notice_what_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    run(settings(tmp_path), tmp_path / "shown")
    monkeypatch.setattr(summaries, "validation_summaries", lambda *arguments: summaries.Summaries())
    run(settings(tmp_path), tmp_path / "hidden")
    one, other = (store.load(store.latest_intact_checkpoint(tmp_path / name)) for name in ("shown", "hidden"))
    assert list(differences(replace(one, settings=other.settings), other, "state")) == []
    assert lines(tmp_path / "shown") == lines(tmp_path / "hidden")


def test_a_resumed_run_shows_each_validation_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = small(tmp_path)
    killed_behind_validation(settings, tmp_path / "run", monkeypatch)
    assert steps(seen(tmp_path / "run").Images("tasks/0")) == [30, 60]
    run(replace(settings, resume="x"), tmp_path / "run")
    found = seen(tmp_path / "run")
    assert steps(found.Images("tasks/0")) == steps(found.Scalars("mse_by_inner_step/validation_3")) == [30, 60]
    assert steps(found.Scalars("outer_learning_rate")) == [20, 40, 60]
    assert len(found.Scalars("Result/test_mse")) == 1


def test_the_table_of_runs_has_the_settings_of_the_last_sitting(tmp_path: Path) -> None:
    def row() -> tuple[dict[str, Any], bool]:
        found = seen(tmp_path / "run").summary_metadata
        start = metadata.parse_session_start_info_plugin_data(
            found[metadata.SESSION_START_INFO_TAG].plugin_data.content
        )
        return {name: value.number_value or value.string_value for name, value in start.hparams.items()}, (
            metadata.SESSION_END_INFO_TAG in found
        )

    run(small(tmp_path, iterations=30), tmp_path / "run")
    values, ended = row()
    assert values["method"] == "maml" and values["backbone.hidden"] == "[8]" and values["iterations"] == 30 and ended
    assert not {"resume", "device", "data_dir", "save.every", "eval.every", "outer_clip"} & set(values)
    run(small(tmp_path, resume="x"), tmp_path / "run")
    assert row()[0]["iterations"] == 60
    assert steps(seen(tmp_path / "run", "validation").Scalars("mse")) == [30, 60]
    assert sorted(path.name for path in (tmp_path / "run" / "tensorboard").iterdir() if path.is_dir()) == ["validation"]


@pytest.mark.parametrize(("iterations", "every"), [(600, 150), (60000, 1000), (45, 7), (10, 20), (20000, 1000)])
def test_pictures_are_few_and_the_last_validation_has_them(tmp_path: Path, iterations: int, every: int) -> None:
    settings = small(tmp_path, iterations=iterations, eval=EvalConfig(every=every))
    validations = [*range(every, iterations, every), iterations]
    drawn = [step for step in validations if summaries.should_log_images(settings, step)]
    assert drawn[-1] == iterations and min(len(validations), 5) <= len(drawn) <= 10


def test_long_inner_loops_are_shown_at_some_of_their_steps() -> None:
    assert (
        summaries.evenly_spaced(3) == [0, 1, 2, 3]
        and summaries.evenly_spaced(0) == [0]
        and summaries.evenly_spaced(10) == list(range(11))
    )
    assert summaries.evenly_spaced(10**4)[::5] == [0, 5000, 10**4]
