"""mode=predict: a person's own pictures, adapted to and labelled through the command, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from metarun import backbones
from metarun.checkpointing import store
from metarun.checkpointing.state import CheckpointState
from metarun.cli import app
from metarun.config.groups import CONFIG_GROUPS, Conv4, Folder, Glyphs, Mlp, Sinusoid
from metarun.config.methods import Maml
from metarun.config.schema import Engine, EvalConfig, Settings
from metarun.core.expand_head import expand_head
from metarun.core.forward import MetaLearner
from metarun.core.meta_learner import evaluate_tasks
from metarun.core.objectives import classification
from metarun.data import method_noise, preprocessing
from metarun.data.image_spec import ImageSpec, decode_image
from metarun.engine.context import build_context
from metarun.engine.eval_result import EVALUATION_SEED
from metarun.engine.network import build_learner
from metarun.errors import UserError
from metarun.methods import METHODS, Parameters
from metarun.predict import output, predictor
from metarun.predict.figure import RIGHT, WRONG, prediction_figure, select_queries, short
from metarun.predict.labelled_images import LabelledImages
from metarun.runner import run
from metarun.utils import fonts
from tests.helpers.crafted import changed

pytestmark = pytest.mark.usefixtures("alone")

SIZE = 4  # pixels of the pictures that crafted checkpoints take
FORM = preprocessing.ImagePreprocessing(SIZE, channels=1, inverted=False, normalise=True, mean=[0.5], deviation=[0.5])


def command(*arguments: str) -> int:
    before, sys.argv = sys.argv, ["metarun", *arguments]
    try:
        return app.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before


def predict(*arguments: str, folder: str = "made") -> list[dict[str, str]]:
    """The rows that the command leaves, in a folder that is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    assert command("mode=predict", f"hydra.run.dir={folder}", *arguments) == 0
    return rows(Path(folder))


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "predictions.csv").read_text(encoding="utf-8"))))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a mistake is told in."""
    capsys.readouterr()
    shutil.rmtree("made", ignore_errors=True)
    assert command("hydra.run.dir=made", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("metarun: error: ")
    return line


def crafted(
    method: str = "maml", ways: int = 5, zero: bool = True, name: str = "run.safetensors", **changes: Any
) -> str:
    """A checkpoint of a small network that was never trained, on a data set that is not there; a linear one if zero."""
    settings = Settings(
        dataset=Folder(root="/gone/it's", size=SIZE, grey=True),
        backbone=Mlp(hidden=[] if zero else [6]),
        method=CONFIG_GROUPS["method"][method](),
        use_second_order=method != "fomaml",
        ways=ways,
        inner_loop=2,
        inner_learning_rate=0.5,
    )
    settings = replace(settings, **changes)
    learner = build_learner(settings, preprocessing.empty_sampler(FORM, torch.device("cpu")), torch.device("cpu"))
    theta, phi = (
        {name: torch.zeros_like(tensor) if zero else tensor.detach() for name, tensor in part.items()}
        for part in learner.method.parameters
    )
    store.save(Path(name), CheckpointState(settings, theta, phi, pictures=FORM))
    return f"checkpoint={name}"


def picture(path: str, block: int, noise: int = 0) -> str:
    """Black with one white pixel, and noise of that seed."""
    array = np.zeros((SIZE, SIZE), np.uint8)
    if noise:
        array[:] = np.random.default_rng(noise).integers(0, 60, array.shape)
    array.flat[block] = 255
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def pictures(classes: Sequence[str], shots: int = 1, queries: int = 2) -> None:
    """known/<class>/* and new/<class>/*; class number c has its white pixel at c."""
    for block, name in enumerate(classes):
        for number in range(shots):
            picture(f"known/{name}/{number}.png", block, noise=1 + number)
        for number in range(queries):
            picture(f"new/{name}/{number}.png", block, noise=100 + number)


# --- a run on glyphs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A run of three steps, whose folder is its `checkpoint`."""
    folder = tmp_path_factory.mktemp("glyphs")
    settings = Settings(
        dataset=Glyphs(),
        backbone=Conv4(filters=8, downsample="stride"),
        method=Maml(),
        queries=5,
        inner_loop=2,
        inner_learning_rate=0.4,
        meta_batch=2,
        iterations=3,
        cache_dir=str(folder / "cache"),
        eval=EvalConfig(tasks=2, validation_tasks=2, every=3, inner_loop=3),
    )
    run(settings, folder / "run")
    return replace(settings, checkpoint=str(folder / "run"))


def test_a_task_of_the_data_set_is_labelled_as_evaluation_judges_it(glyphs: Settings) -> None:
    """From image files, without the data set, to the bit of what the evaluation makes of the same task."""
    work = build_context(replace(glyphs, checkpoint=None))
    work.load_state_dict(store.load(Path(str(glyphs.checkpoint))).weights, "run")
    task = work.source.draw(EVALUATION_SEED, "test", 0, 1, work.eval_shape)
    learner = replace(work.learner, inner_loop=work.eval_inner_loop)
    own = method_noise(EVALUATION_SEED, "test", 0, 1, learner.method.noise(learner.inner_loop))
    _, measures = evaluate_tasks(learner, work.parameters, task, own, False)
    for side, data, target in [("known", task[0][0], task[1][0]), ("new", task[2][0], task[3][0])]:
        for number, (image, label) in enumerate(zip(data, target, strict=True)):
            path = Path(side, f"c{label}", f"{number:03}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(255 - (image[0] * 255).round().byte().numpy()).save(path)
    found = predict(
        f"checkpoint={glyphs.checkpoint}",
        "support=known",
        "query=new",
        f"cache_dir={Path('nowhere').absolute()}",
        "adapted_weights=true",
    )
    assert not Path("nowhere").exists()
    right = [row["class"] == row["true_class"] for row in found]
    assert sum(right) / len(right) == pytest.approx(float(measures["accuracy"][0, -1]), abs=1e-6)
    for row in found:
        probabilities = {name: float(row[name]) for name in ("c0", "c1", "c2", "c3", "c4")}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert row["class"] == max(probabilities, key=lambda name: probabilities[name])

    network = backbones.Conv4((1, 28, 28), 5, filters=8, downsample="stride")  # as anyone would use the weights
    network.load_state_dict(load_file("made/adapted.safetensors"))
    with safe_open("made/adapted.safetensors", "pt") as file:
        classes = json.loads(file.metadata()["classes"])
    files = np.stack([decode_image(Path(row["file"]), ImageSpec(28, 1, inverted=True)) for row in found])
    again = network(torch.from_numpy(files).float() / 255).softmax(1).detach().numpy()
    written = np.array([[float(row[name]) for name in classes] for row in found])
    np.testing.assert_allclose(again, written, atol=1e-4)


def test_a_training_checkpoint_says_what_its_pictures_look_like(glyphs: Settings) -> None:
    source = build_context(replace(glyphs, checkpoint=None)).source
    form = store.load(Path(str(glyphs.checkpoint))).pictures
    assert form is not None
    like = preprocessing.empty_sampler(form, torch.device("cpu"))
    assert like.input_shape == source.input_shape and like.image_set.spec == ImageSpec(28, 1, inverted=True)
    assert preprocessing.image_preprocessing(like) == preprocessing.image_preprocessing(source)


# --- labels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 5, 7])
def test_as_many_classes_as_there_are_folders(classes: int) -> None:
    names = ["a b", "ß漢", "$x_1^2$", "d,e", 'f"g', "h", "i"][:classes]
    pictures(names, shots=2)
    for junk in ("known/.DS_Store", "known/a b/.DS_Store", "known/a b/Thumbs.db", "new/a b/.hidden.png"):
        Path(junk).write_bytes(b"junk")
    picture("new/else/x.png", 0)  # of a folder that is no class
    found = predict(crafted(), "support=known", "query=new")
    assert set(found[0]) == {"file", "class", "true_class", *names}
    known = [row for row in found if row["true_class"]]
    assert len(known) == 2 * classes and len(found) == len(known) + 1
    assert all(row["class"] == row["true_class"] == Path(row["file"]).parent.name for row in known)
    for row in found:
        assert sum(float(row[name]) for name in names) == pytest.approx(1, abs=1e-5)
        assert float(row[row["class"]]) == max(float(row[name]) for name in names)
    assert "accuracy 100.00 %" in Path("made/metarun.log").read_text(encoding="utf-8")
    Image.open("made/predictions.png").load()


def test_fewer_classes_learn_by_their_own_outputs_alone() -> None:
    """From a linear model of zeros, one step by hand: w = 0.5 * mean over support of (onehot - 1/2) x."""
    pictures(["a", "b"], shots=1, queries=1)
    found = predict(crafted(ways=5), "support=known", "query=new", "inner_loop=1")

    def read(path: str) -> np.ndarray:
        return np.append(
            (decode_image(Path(path), ImageSpec(SIZE, 1)).ravel() / 255 - 0.5) / 0.5, 1
        )  # and one for the bias

    a, b = read("known/a/0.png"), read("known/b/0.png")
    w = 0.5 * np.stack([(a - b) / 4, (b - a) / 4])
    for row in found:
        odds = np.exp(w @ read(row["file"]))
        np.testing.assert_allclose([float(row["a"]), float(row["b"])], odds / odds.sum(), atol=1e-5)


def test_a_class_may_have_any_number_of_pictures() -> None:
    pictures(["a", "b"], shots=1)
    for number in range(2, 6):
        picture(f"known/b/{number}.png", 1, noise=number)
    found = predict(crafted(), "support=known", "query=new")
    assert [row["class"] for row in found] == ["a", "a", "b", "b"]  # none outweighs another


def test_files_can_be_given_one_by_one_and_in_any_order() -> None:
    pictures(["a", "b"])
    paths = [picture(f"mixed/{n}.png", n % 2, noise=50 + n) for n in range(4)]
    run_file = crafted()
    found = predict(run_file, "support=known", f"query=[{','.join(paths)}]")
    assert [row["class"] for row in found] == ["a", "b", "a", "b"]
    assert set(found[0]) == {"file", "class", "a", "b"}  # whose classes are not known
    assert found == predict(run_file, "support=known", f"query=[{','.join(reversed(paths))}]")
    assert found == predict(run_file, "support=known", "query=mixed")
    assert found == predict(run_file, "support=known", "query=[mixed,mixed/1.png]")
    assert found[1:2] == predict(run_file, "support=known", "query=mixed/1.png")  # no batch norm in this network


def test_what_cannot_be_read_is_left_out_of_the_query() -> None:
    pictures(["a", "b"])
    run_file = crafted(zero=False)
    whole = predict(run_file, "support=known", "query=new", "adapted_weights=true", folder="whole")
    Path("new/a/0000.png").write_bytes(b"no picture")
    Path("new/b/zz.jpg").write_bytes(Path("new/b/0.png").read_bytes()[:40])
    assert predict(run_file, "support=known", "query=new", "adapted_weights=true") == whole
    assert Path("made/adapted.safetensors").read_bytes() == Path("whole/adapted.safetensors").read_bytes()
    told = Path("made/metarun.log").read_text()
    assert "left out, as they cannot be read: 2, new/a/0000.png (" in told and "new/b/zz.jpg (" in told


def test_pictures_are_labelled_in_the_precision_of_the_run_or_in_another() -> None:
    pictures(["a", "b"])
    run_file = crafted(zero=False, engine=Engine(precision="bfloat16"))
    half = predict(run_file, "support=known", "query=new")
    full = predict(run_file, "support=known", "query=new", "engine.precision=float32")
    assert half == predict(run_file, "support=known", "query=new", "engine.precision=bfloat16") != full
    assert [float(row["a"]) for row in half] == pytest.approx([float(row["a"]) for row in full], abs=0.02)


def test_a_lone_picture_that_shrinks_to_a_pixel_is_refused() -> None:
    """Batch norm would have one value a channel, and no variance."""
    network = backbones.Conv4((1, 16, 16), 5, filters=4, downsample="stride")
    learner = MetaLearner(network, METHODS["maml"](network, 0.1), classification, classification, 1)
    with pytest.raises(UserError, match="query: batch norm cannot normalise one picture this small by itself"):
        predictor.batch_logits(learner, dict(network.named_parameters()), torch.zeros(1, 1, 16, 16))


def test_the_queries_of_a_network_with_batch_norm_are_one_batch() -> None:
    pictures(["a", "b"])
    run_file = crafted(
        zero=False, backbone=Conv4(filters=4, downsample="stride"), dataset=Glyphs(), name="conv.safetensors"
    )
    whole = predict(run_file, "support=known", "query=new")
    part = predict(run_file, "support=known", "query=new/a")
    assert [row["file"] for row in part] == [row["file"] for row in whole][:2]
    assert part != whole[:2]
    assert "transductive" in Path("made/metarun.log").read_text()


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_queries_are_labelled_in_lots_where_each_is_by_itself(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(["a", "b"], queries=4)
    backbone = Conv4(filters=4, downsample="stride", norm=norm)
    run_file = crafted(zero=False, backbone=backbone, dataset=Glyphs(), name="conv.safetensors")
    whole = predict(run_file, "support=known", "query=new")
    lots: list[int] = []
    run_lot = predictor.batch_logits
    monkeypatch.setattr(predictor, "QUERY_BATCH", 3)
    monkeypatch.setattr(predictor, "batch_logits", lambda *given: lots.append(len(given[2])) or run_lot(*given))
    parts = predict(run_file, "support=known", "query=new")
    assert lots == ([3, 3, 2] if norm == "layer" else [8])
    for one, other in zip(whole, parts, strict=True):
        assert float(one["a"]) == pytest.approx(float(other["a"]), abs=1e-5)


def test_a_lone_picture_too_small_for_batch_norm_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    pictures(["a", "b"])
    run_file = crafted(zero=False, backbone=Conv4(filters=4, downsample="stride"), dataset=Glyphs())
    assert "two or more" in refused(capsys, "mode=predict", run_file, "support=known", "query=new/a/0.png")


def test_outputs_that_are_not_finite_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    pictures(["a", "b"])
    run_file = crafted()
    state = store.load(Path("run.safetensors"))
    state.theta["layers.0.weight"].fill_(float("inf"))
    store.save(Path("run.safetensors"), state)
    assert command("hydra.run.dir=made", "mode=predict", run_file, "support=known", "query=new") == 1
    assert "not finite after 2 inner steps" in capsys.readouterr().err
    assert not Path("made/predictions.csv").exists()


def test_a_folder_with_odd_bytes_in_its_name() -> None:
    pictures(["a", "b"])
    Path("known/a").rename("known/x\udce9")
    assert command("mode=predict", "hydra.run.dir=made", crafted(), "support=known", "query=new/a/0.png") == 0
    (row,) = Path("made/predictions.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert row.split(",")[1] == r"x\udce9"


# --- more classes than the head has ------------------------------------------------------------------------


@pytest.mark.parametrize("method", [method for method in METHODS if method != "pretrain"])
def test_every_method_takes_fewer_classes_and_all_but_mtnet_more(
    method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_file = crafted(method, ways=3, zero=False)
    pictures(["a", "b"])
    assert len(predict(run_file, "support=known", "query=new", "adapted_weights=true")) == 4
    names = set(load_file("made/adapted.safetensors"))
    plain = {name for name, _ in backbones.MLP((1, SIZE, SIZE), 3, [6]).named_parameters()}
    assert plain <= names and all(name.startswith("warp_layers.") for name in names - plain)
    pictures(["a", "b", "c", "d"])
    if method == "mtnet":
        line = refused(capsys, "mode=predict", run_file, "support=known", "query=new")
        for word in ("has 4 classes", "3 are the most", "method=mtnet", "t_layers", "ways=4"):
            assert word in line
        return
    assert {"a", "b", "c", "d"} < set(predict(run_file, "support=known", "query=new")[0])


def parameters(method: str, ways: int) -> Parameters:
    settings = Settings(
        backbone=Mlp(hidden=[6]), method=CONFIG_GROUPS["method"][method](), ways=ways, use_second_order=False
    )
    like = preprocessing.empty_sampler(FORM, torch.device("cpu"))
    learned = build_learner(settings, like, torch.device("cpu")).method.parameters
    return Parameters(*({name: torch.randn(tensor.shape) for name, tensor in part.items()} for part in learned))


NETWORK = ("layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias")


@pytest.mark.parametrize("method", ["maml", "msgd", "boil"])
def test_further_rows_are_drawn_about_the_learned_ones(method: str) -> None:
    saved = parameters(method, 200)
    wide = expand_head(saved, parameters(method, 600), NETWORK)
    for kind in Parameters._fields:
        for name, tensor in getattr(saved, kind).items():
            grown = getattr(wide, kind)[name]
            assert torch.equal(grown[: len(tensor)], tensor)  # what was learned stays
            further = grown[len(tensor) :]
            if name.startswith("inner_rates.layers/1"):
                torch.testing.assert_close(further, tensor.mean(0).expand_as(further))
            elif name.startswith("layers.1"):
                assert len(further) == 400 and float(further.std()) == pytest.approx(float(tensor.std()), rel=0.2)
                torch.testing.assert_close(further.mean(0), tensor.mean(0), atol=0.3, rtol=0)
            else:
                assert len(further) == 0
    again = expand_head(saved, parameters(method, 600), NETWORK)
    torch.testing.assert_close(wide, again, rtol=0, atol=0)


def test_where_the_head_alone_adapts_all_rows_are_their_mean() -> None:
    saved = parameters("anil", 3)
    for name, tensor in expand_head(saved, parameters("anil", 5), NETWORK).theta.items():
        torch.testing.assert_close(tensor, saved.theta[name].mean(0).expand_as(tensor))


# --- the picture -------------------------------------------------------------------------------------------


def test_the_picture_frames_what_is_right_and_wrong_and_shows_forty_at_most() -> None:
    path = Path(picture("one.png", 0))
    classes = ["a", "b" * 50]
    support = LabelledImages([path, path], [0, 1], np.zeros((2, 1, SIZE, SIZE), np.uint8))

    def shown(labels: list[int | None]) -> np.ndarray:
        query = LabelledImages([path] * len(labels), labels, np.zeros((len(labels), 1, SIZE, SIZE), np.uint8))
        made = prediction_figure(classes, support, query, np.tile([0.9, 0.1], (len(labels), 1)), "maml on $glyphs")
        return np.asarray(Image.open(io.BytesIO(made)).convert("RGB"))

    def has(image: np.ndarray, colour: str) -> bool:
        return bool((image == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(-1).any())

    for labels, green, red in [([0, None], True, False), ([1], False, True), ([None], False, False)]:
        image = shown(labels)
        assert (has(image, RIGHT), has(image, WRONG)) == (green, red)
    assert shown([0] * 40).shape == shown([0] * 90).shape
    assert shown([0] * 40).shape[0] > shown([0] * 20).shape[0]


def test_the_picture_is_of_the_originals() -> None:
    for name, colour in (("a", "red"), ("b", "blue")):
        Path("known", name).mkdir(parents=True)
        Image.new("RGB", (60, 30), colour).save(f"known/{name}/0.jpg", quality=100)
    predict(crafted(), "support=known", "query=[known/a/0.jpg]")
    image = np.asarray(Image.open("made/predictions.png").convert("RGB")).astype(int)
    for colour in ([254, 0, 0], [0, 0, 254]):
        assert (abs(image - colour).max(-1) < 4).sum() > 1000  # in colour, though the network sees grey


def test_the_picture_shows_each_class_and_a_query_of_each() -> None:
    """Of 25 classes with five queries each, in the order of their paths, the first 40 are of eight classes alone."""
    labels = [label for label in range(25) for _ in range(5)]
    query = LabelledImages(
        [Path(f"{n}.png") for n in range(125)], list(labels), np.zeros((125, 1, SIZE, SIZE), np.uint8)
    )
    chosen = select_queries(query, np.eye(25)[labels], 40)
    assert len(chosen) == 40 and chosen == sorted(chosen)
    assert {labels[number] for number in chosen} == set(range(25))
    unknown = replace(query, labels=[None] * 125)
    assert select_queries(unknown, np.eye(25)[labels], 40) == chosen  # by the class that was found


@pytest.mark.parametrize(
    "name", ["中文字", "قطة", "cat \N{CAT FACE}", "\N{FAMILY}\u200d\N{BOY}\ufe0f", "été", "a\ud800b"]
)
def test_a_name_is_drawn_in_a_font_that_has_it_or_escaped(name: str) -> None:
    """matplotlib warns of a letter that it draws as a box; warnings are errors here."""
    path = Path(picture("one.png", 0)).rename("图.png" if name[0] == "中" else "1.png")
    support = LabelledImages([path, path], [0, 1], np.zeros((2, 1, SIZE, SIZE), np.uint8))
    made = prediction_figure([name, "b"], support, support, np.tile([0.9, 0.1], (2, 1)), name)
    assert Image.open(io.BytesIO(made)).size[0] > 100
    letters = set(fonts.drawable(name))
    assert letters and all(fonts.family_of(letter) in fonts.families([name]) for letter in letters)


def test_letters_of_no_font_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "family_of", lambda letter: fonts.FIRST if ord(letter) < 0x3000 else None)
    assert fonts.drawable("x中\ufe0fy") == r"x\u4e2dy" and fonts.families(["中"]) == [fonts.FIRST]
    assert short("中文字中文字") == r"\u4e2d…\u5b57"  # no escape is cut in two
    assert short("a name of many letters") == "a name o… letters"


def test_a_class_of_many_has_one_picture_in_a_grid() -> None:
    path = Path(picture("one.png", 0))

    def height(classes: int) -> int:
        support = LabelledImages([path] * classes, list(range(classes)), np.zeros((classes, 1, SIZE, SIZE), np.uint8))
        made = prediction_figure([f"c{n}" for n in range(classes)], support, support, np.eye(classes), "")
        return Image.open(io.BytesIO(made)).size[1]

    assert height(24) < height(16)


# --- prediction.json ---------------------------------------------------------------------------------------


def summary(folder: str = "made") -> dict[str, Any]:
    return json.loads(Path(folder, "prediction.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(  # by hand, and Newcombe (1998), table I
    ("right", "count", "low", "high"),
    [(8, 10, 0.4901625, 0.9433178), (0, 10, 0.0, 0.2775328), (10, 10, 0.7224672, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_the_interval_is_wilson_s(right: int, count: int, low: float, high: float) -> None:
    assert output.wilson(right, count) == pytest.approx((low, high), abs=1e-4)


def test_the_accuracy_and_its_interval_are_in_a_file() -> None:
    pictures(["a", "b"])
    predict(crafted(), "support=known", "query=new")
    found = summary()
    low = pytest.approx(4 / (4 + 1.959964**2), abs=1e-6)
    assert found["accuracy"] == {"mean": 1.0, "right": 4, "pictures": 4, "high": pytest.approx(1), "low": low}
    assert (found["in_support"], found["accuracy_of_others"], found["classes"]) == (0, None, ["a", "b"])
    picture("unknown/x.png", 0)
    predict(crafted(), "support=known", "query=unknown", folder="other")
    assert summary("other")["accuracy"] is None


def test_queries_that_the_network_was_adapted_to_are_told() -> None:
    """The same file, a copy under another name, and the same picture in another format."""
    pictures(["a", "b"], queries=1)
    Path("new/a/copy.png").write_bytes(Path("known/a/0.png").read_bytes())
    Image.open("known/b/0.png").save("new/b/again.bmp")
    predict(crafted(), "support=known", "query=[new/a/0.png,new/a/copy.png,new/b/again.bmp,known/a/0.png]")
    found = summary()
    assert found["in_support"] == 3
    assert (found["accuracy"]["pictures"], found["accuracy_of_others"]["pictures"]) == (4, 1)
    log = Path("made/metarun.log").read_text(encoding="utf-8")
    assert "query: 3 of 4 pictures are in the support as well" in log and "of the others: accuracy" in log
    predict(crafted(), "support=known", "query=known", folder="same")
    assert summary("same")["in_support"] == 2 and summary("same")["accuracy_of_others"] is None
    assert "no other has a known class" in Path("same/metarun.log").read_text(encoding="utf-8")


def test_all_files_that_cannot_be_read_are_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    pictures(["a", "b"], shots=2)
    bad = ["known/a/0.png", "known/b/1.png", "known/b/x.txt", "new/a/0.png"]
    for path in bad:
        Path(path).write_bytes(b"no picture")
    line = refused(capsys, "mode=predict", crafted(), "support=known", "query=new")
    assert "3 of its files cannot be read, and 1 of query" in line and [path for path in bad if path not in line] == []


# --- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("mode=predict support=known query=new", ["mode=predict", "checkpoint=RUN"]),
        ("mode=predict checkpoint=run.safetensors query=new", ["mode=predict", "support=DIR"]),
        ("mode=predict checkpoint=run.safetensors support=known", ["mode=predict", "query=DIR"]),
        ("mode=predict checkpoint=run.safetensors support=known query=7", ["query=7", "quotes"]),
        ("mode=predict checkpoint=run.safetensors support=known query=[]", ["query=[]", "[A,B]"]),
        ("mode=predict checkpoint=run.safetensors support=known query={a:1}", ["query="]),
        ("mode=predict checkpoint=run.safetensors support=[known] query=new", ["support"]),
        ("mode=predict checkpoint=run.safetensors support=known query=new,old", ["query=new,old", "[A,B]"]),
        ("mode=predict checkpoint=gone support=known query=new", ["gone"]),
        ("mode=predict checkpoint=run.safetensors support=known query=new shots=3", ["shots=3"]),
        ("mode=predict checkpoint=run.safetensors support=known query=new dataset.size=9", ["dataset.size=9"]),
        ("mode=predict checkpoint=run.safetensors support=known query=new eval.inner_loop=0", ["eval.inner_loop=0"]),
        ("mode=predict checkpoint=run.safetensors support=known query=new inner_loop=0", ["error: inner_loop=0"]),
        ("mode=predict checkpoint=run.safetensors support=gone query=new", ["support=gone", "no such folder"]),
        ("mode=predict checkpoint=run.safetensors support=known/a query=new", ["support=known/a", "<class>/"]),
        ("mode=predict checkpoint=run.safetensors support=one query=new", ["support=one", "'a'", "two or more"]),
        ("mode=predict checkpoint=run.safetensors support=hollow query=new", ["support=hollow", "'c'", "no pictures"]),
        (
            "mode=predict checkpoint=run.safetensors support=bad query=new",
            ["bad/b/0.png", "cannot be read"],
        ),
        ("mode=predict checkpoint=run.safetensors support=known query=gone", ["query=gone", "no such file or folder"]),
        ("mode=predict checkpoint=run.safetensors support=known query=[new,gone.png]", ["query=gone.png"]),
        ("mode=predict checkpoint=run.safetensors support=known query=one2", ["query=one2", "(a, b)"]),
        ("mode=predict checkpoint=run.safetensors support=piped query=new", ["support=piped", "'a'", "no pictures"]),
        ("mode=predict checkpoint=run.safetensors resume=known support=known query=new", ["resume=known"]),
        ("mode=evaluate checkpoint=run.safetensors support=known", ["support=", "mode=predict"]),
        ("mode=evaluate checkpoint=run.safetensors adapted_weights=true", ["adapted_weights=", "mode=predict"]),
        ("query=new", ["query=", "mode=predict"]),
    ],
)
def test_a_mistake_is_told(arguments: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    crafted()
    pictures(["a", "b"])
    picture("one/a/0.png", 0)
    picture("one2/else/0.png", 0)
    for folder in ("hollow", "bad"):
        for name in ("a", "b"):
            picture(f"{folder}/{name}/0.png", 0)
    Path("hollow/c").mkdir()
    Path("bad/b/0.png").write_bytes(b"no picture")
    Path("piped/a").mkdir(parents=True)
    os.mkfifo("piped/a/pipe.png")
    line = refused(capsys, *arguments.split())
    for word in words:
        assert word in line


def test_a_query_that_cannot_be_read_at_all_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    pictures(["a", "b"])
    Path("query.png").write_bytes(b"no picture")
    line = refused(capsys, "mode=predict", crafted(), "support=known", "query=query.png")
    assert "query=query.png" in line


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("size", 10**9, "1000000000x1000000000"),
        ("size", True, "pictures.size is True"),
        ("channels", 2, "2 channels"),
        ("inverted", 1, "pictures.inverted is 1, must be true or false"),
        ("mean", [0.5, 0.5], "mean [0.5, 0.5]"),
        ("mean", ["nan"], "mean [nan]"),
        ("mean", None, "pictures.mean is None, must be a list"),
        ("deviation", [0.0], "deviation is [0.0]"),
    ],
)
def test_a_damaged_likeness_is_told(key: str, value: Any, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(["a", "b"])
    asked = crafted()
    changed(Path("run.safetensors"), "pictures", key, value=value)
    line = refused(capsys, "mode=predict", asked, "support=known", "query=new")
    assert "run.safetensors" in line and word in line


def test_a_checkpoint_that_cannot_label_pictures_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    pictures(["a", "b"])
    asked = ["mode=predict", crafted(), "support=known", "query=new"]
    state = store.load(Path("run.safetensors"))

    def told(**entries: Any) -> str:
        store.save(Path("run.safetensors"), replace(state, **entries))
        return refused(capsys, *asked)

    assert "run.safetensors: does not say what its pictures look like" in told(pictures=None)
    assert "of another architecture" in told(theta={})
    assert "of another architecture" in told(settings=replace(state.settings, ways=4))
    assert "dataset=sinusoid" in told(settings=replace(state.settings, dataset=Sinusoid()), pictures=None)
    pictures(["a", "b", "c", "d", "e", "f"])
    assert "of another architecture" in told(
        theta={"layers.0.weight": torch.zeros(()), "layers.0.bias": torch.zeros(5)}
    )
