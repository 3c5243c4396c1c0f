"""The presets: each says what it reproduces, composes, and has the values that its paper's protocol comes to."""

from __future__ import annotations

from functools import cache

import pytest
from hydra import compose, initialize_config_dir

from metarun.cli import settings
from metarun.config.groups import Sinusoid
from metarun.config.methods import Fomaml, L2f, Maml, Msgd, Mtnet, Warpgrad
from metarun.config.schema import Settings
from scripts.experiments_table import PARTS, PRESETS, header, table
from tests.helpers.command_line import command

NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))
if not (PRESETS.parent / "backbone" / "resnet12.yaml").exists():
    NAMES = [name for name in NAMES if not name.endswith("_resnet12")]
STEP_SIZES = {("omniglot", 5): 0.4, ("omniglot", 20): 0.1, ("miniimagenet", 5): 0.01}  # of MAML's and MT-net's code
SUMMING = {"maml": Maml, "fomaml": Fomaml, "tnet": Mtnet, "mtnet": Mtnet}  # whose code's losses are sums over ways
SUMS = [name for name in NAMES if name.partition("_")[0] in SUMMING and not name.endswith("_resnet12")]
METHODS = {**SUMMING, "msgd": Msgd, "warpgrad": Warpgrad, "l2f": L2f}


@cache
def preset(name: str) -> Settings:
    with initialize_config_dir(str(PRESETS.parent), version_base="1.3"):
        return settings.build(compose("config", [f"experiment={name}"]))


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_opens_with_all_that_one_needs_to_know(name: str) -> None:
    said = header(PRESETS / f"{name}.yaml")
    assert tuple(said) == PARTS
    assert "arXiv" in said["Paper"]
    assert said["Command"] == f"metarun experiment={name}"
    assert ("±" in said["Expected"]) or "not established" in said["Expected"] or name == "maml_sinusoid"
    assert "cores of an" in said["Time"] and ("measured" in said["Time"] or "not run" in said["Time"])


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_what_its_name_says(name: str) -> None:
    found = preset(name)
    method, data, *task = name.split("_")
    assert isinstance(found.method, METHODS[method]) and found.dataset.name == data
    assert method not in ("tnet", "mtnet") or found.method.mask == (method == "mtnet")
    tested = found.eval.shots or found.shots
    if isinstance(found.dataset, Sinusoid):
        assert task in ([], [f"{found.shots}shot"])
    else:
        assert task[:2] == [f"{found.ways}way", f"{tested}shot"]


@pytest.mark.parametrize("name", SUMS)
def test_step_sizes_and_clips_are_those_of_a_mean(name: str) -> None:
    found = preset(name)
    if isinstance(found.dataset, Sinusoid):
        assert found.inner_learning_rate == 0.01
        return
    published = STEP_SIZES[found.dataset.name, found.ways]
    assert found.inner_learning_rate == pytest.approx(found.ways * published)
    if found.dataset.name == "omniglot":
        assert found.outer_clip is None
    else:  # of a sum over 15 queries a class, divided by the shots
        assert found.outer_clip == pytest.approx(10 * found.shots / (15 * found.ways), rel=1e-3)


def test_values_that_papers_state() -> None:
    few, many = preset("maml_omniglot_5way_1shot"), preset("maml_omniglot_20way_5shot")
    assert (few.inner_loop, few.eval.inner_loop, few.meta_batch, few.outer_schedule) == (1, 3, 32, "constant")
    assert (many.inner_loop, many.eval.inner_loop, many.meta_batch, many.queries) == (5, 5, 16, 5)
    for name in (name for name in NAMES if "_omniglot_" in name):
        assert preset(name).dataset.rotations_of == ("classes" if name.startswith("msgd") else "tasks")
    pictures = preset("maml_miniimagenet_5way_5shot")
    assert (pictures.inner_loop, pictures.eval.inner_loop, pictures.backbone.filters) == (5, 10, 32)
    assert (pictures.queries, pictures.eval.queries, pictures.meta_batch) == (15, 5, 2)
    curves = preset("msgd_sinusoid_20shot")
    assert (curves.shots, curves.eval.shots, curves.eval.inner_loop, curves.method.start) == (20, 20, 1, "random")
    assert curves.dataset.frequency == [0.8, 1.2]
    assert (preset("msgd_omniglot_20way_5shot").shots, preset("mtnet_omniglot_20way_1shot").inner_loop) == (1, 1)
    forget = preset("l2f_miniimagenet_5way_5shot")
    assert (forget.inner_learning_rate, forget.outer_clip, forget.meta_batch) == (0.01, 10 / 2, 2)
    assert (forget.first_order_steps, forget.iterations) == (11 * 500, 60 * 500)
    for name in (name for name in NAMES if name.endswith("_resnet12")):
        assert (preset(name).first_order_steps, preset(name).outer_clip) == (11 * 500, 10)
        assert preset(name).iterations == (60 if name.startswith("l2f") else 100) * 500
    assert (forget.backbone.filters, forget.backbone.bias, forget.dataset.normalise) == (48, False, True)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("data", ["omniglot", "miniimagenet", "tieredimagenet"])
def test_missing_data_is_told_in_one_line(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = next(name for name in NAMES if name.split("_")[1] == data)
    assert command(f"experiment={name}", "data_dir=nothing", "cache_dir=cache", "download=false") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("metarun: error: data_dir=nothing: no such folder; ")


def test_the_docs_have_the_table() -> None:
    docs = (PRESETS.parent.parent / "docs" / "experiments.md").read_text(encoding="utf-8")
    assert table() in docs, "python -m scripts.experiments_table prints it"
