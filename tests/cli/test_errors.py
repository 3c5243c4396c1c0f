"""Every mistake of the table is told in one line with exit status 2, and leaves nothing behind."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import Field, asdict
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from metarun.backbones import BACKBONES
from metarun.cli.errors import CONFIG_GROUP_NAMES, KEYS
from metarun.config import hints
from metarun.config.conflicts import SIZES, warpable_modules
from metarun.config.groups import CONFIG_GROUPS, Conv4, Mlp, Resnet12
from metarun.config.schema import LARGEST, Settings, check, iter_options
from metarun.data.datasets.glyphs import ALPHABETS, CHARACTERS, DRAWINGS
from metarun.data.datasets.omniglot_splits import SPLITS as OMNIGLOT
from metarun.data.splits import published_splits
from metarun.data.task_sampler import SPLITS
from metarun.errors import UserError
from metarun.methods import METHODS
from tests.helpers.command_line import command
from tests.helpers.mistakes_files import prepare
from tests.helpers.mistakes_table import CONFIG, WORK, Mistake

RECORDS = (".lock", "metarun.log", "metrics.jsonl")  # of a run that was refused by what it read
pytestmark = pytest.mark.usefixtures("alone")


def told(typed: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that refuses it."""
    capsys.readouterr()
    assert command(*shlex.split(typed)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("metarun: error: ")
    return line


def on_disk() -> set[Path]:
    return set(Path().rglob("*"))


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the runner was asked to do; it does nothing."""
    asked: list[Any] = []
    module = ModuleType("metarun.runner")
    module.run = lambda chosen, folder: asked.append(chosen)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "metarun.runner", module)
    return asked


def named(mistake: Mistake) -> str:
    return mistake.typed


def some(mistakes: Sequence[Mistake], every: int) -> list[Any]:
    """The whole table, of which one of `every` is not slow."""
    marks = [() if place % every == 0 else (pytest.mark.slow,) for place in range(len(mistakes))]
    return [pytest.param(mistake, id=named(mistake), marks=mark) for mistake, mark in zip(mistakes, marks, strict=True)]


@pytest.mark.parametrize("mistake", some(CONFIG, 20))
def test_a_mistake_in_the_settings(mistake: Mistake, idle: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    prepare(mistake.prepared)
    before = on_disk()
    line = told(mistake.typed, capsys)
    assert [word for word in mistake.words if word not in line] == []
    assert on_disk() == before and not idle


@pytest.mark.parametrize("mistake", some(WORK, 8))
def test_a_mistake_in_a_file(mistake: Mistake, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(mistake.prepared)
    before = on_disk()
    line = told(mistake.typed, capsys)
    assert [word for word in mistake.words if word not in line] == []
    assert before <= on_disk() and not Path("ran").exists()
    for path in on_disk() - before:  # of a run that began, and of prepared pictures
        assert path.is_dir() or path.parts[0] == "cache" or path.parent.name == ".hydra" or path.name in RECORDS
        assert ".part" not in path.name


def test_the_table_is_long_and_says_nothing_twice() -> None:
    rows = [mistake.typed for mistake in [*CONFIG, *WORK]]
    assert len(rows) >= 80 and len(set(rows)) == len(rows)


# --- from the schema ---------------------------------------------------------------------------------------


def outside(item: Field) -> Iterator[tuple[Any, str]]:
    """A value behind each limit of a key, and a word of the answer."""
    allowed, kind = item.metadata, str(item.type)
    low, above, most = allowed["least"], allowed["above"], allowed["most"]
    if low is not None:
        yield low - 1, f"{low} or more"
    if above is not None:
        yield above, f"greater than {above}"
    if "int" in kind or "float" in kind:
        yield (LARGEST if most is None else most) + 1, "or less"
    if "float" in kind:
        yield float("nan"), "finite"
    if allowed["choices"] is not None:
        yield "nonsense", "choose one of"
    if allowed["pattern"]:
        yield "nonsense", "must be"


def limits() -> Iterator[tuple[Settings, str, Any, str]]:
    """Settings with one value behind a limit; the key, the value, and a word of the answer."""
    chosen = [
        Settings(),
        *(Settings(**{group: node()}) for group, nodes in CONFIG_GROUPS.items() for node in nodes.values()),
    ]
    for number, one in enumerate(chosen):
        for name, item, old in iter_options(one):
            if number == 0 or name.partition(".")[0] in CONFIG_GROUPS:
                for value, word in outside(item):
                    *path, last = name.split(".")
                    wrong = deepcopy(one)
                    setattr(reduce(getattr, path, wrong), last, [value] if isinstance(old, list) else value)
                    yield wrong, name, value, word


def test_every_limit_is_kept_by_name() -> None:
    found = list(limits())
    for wrong, name, value, word in found:
        with pytest.raises(UserError) as caught:
            check(wrong)
        assert str(caught.value).startswith(f"{name}={value}: ") and word in str(caught.value), name
    limited = {name for _, name, _, _ in found}
    assert len(found) > 60 and {"ways", "eval.tasks", "device", "dataset.augment", "method.alpha"} <= limited


# --- what is known of data sets and networks before they are there -----------------------------------------


def test_sizes_are_those_of_the_data_sets() -> None:
    found = {("glyphs", ""): tuple(count * CHARACTERS for count in ALPHABETS.values())}
    found |= {("omniglot", name): tuple(len(part) for part in split().values()) for name, split in OMNIGLOT.items()}
    for dataset in CONFIG_GROUPS["dataset"]:
        for name, parts in published_splits(dataset).items():
            found[dataset, name] = tuple(len(parts[part]) for part in SPLITS)
    assert {key: classes for key, (classes, _) in SIZES.items()} == found
    assert SIZES["glyphs", ""][1] == DRAWINGS


@pytest.mark.parametrize("backbone", [Conv4(), Mlp(hidden=[4, 4]), Resnet12(filters=[2, 2, 3, 3])])
def test_a_warp_can_follow_each_of_the_modules(backbone: Any) -> None:
    shape = (1,) if isinstance(backbone, Mlp) else (3, 16, 16)
    for name in warpable_modules(backbone):
        own = asdict(backbone)
        learned = METHODS["warpgrad"](BACKBONES[own.pop("name")](shape, 2, **own), 0.1, after=[name]).parameters.phi
        assert any(name.replace(".", "/") in key for key in learned)


@pytest.mark.parametrize("word", hints.KEYS)
def test_what_a_hint_names_is_there(word: str) -> None:
    """No key of metarun is taken for a word of other programs, and every hint names keys that exist."""
    assert word not in KEYS and word not in CONFIG_GROUP_NAMES
    for meant in hints.KEYS[word].split(" or "):
        for part in meant.split():
            name, _, value = part.partition("=")
            assert name in (*KEYS, *CONFIG_GROUP_NAMES, "hydra.run.dir", "--help", "--version", "--multirun")
            assert not value or value.isupper() or value in (*hints_choices(name), "cuda", "cpu")


def hints_choices(name: str) -> tuple[str, ...]:
    (item,) = [item for key, item, _ in iter_options(Settings) if key == name]
    return item.metadata["choices"] or ()


def test_the_choices_that_a_hint_names_are_there() -> None:
    for name, meant in hints.VALUES.items():
        assert set(meant.values()) <= set(hints_choices(name)) and not set(meant) & set(hints_choices(name))
