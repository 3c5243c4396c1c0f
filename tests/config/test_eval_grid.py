"""Lists of an evaluation: which ones come of them."""

from __future__ import annotations

import pytest

from metarun.config.eval_grid import expand_eval_grid
from metarun.config.groups import Cub, Folder, Glyphs, MiniImagenet
from metarun.config.schema import EvalConfig, Settings
from metarun.errors import UserError


def settings(own: object, **lists: object) -> Settings:
    return Settings(mode="evaluate", checkpoint="run", dataset=own, eval=EvalConfig(**lists))  # type: ignore[arg-type]


def test_one_evaluation_stays_as_it_is() -> None:
    one = settings(Glyphs(seed=3), shots=5)
    assert expand_eval_grid(one) == [one]


def test_every_combination_in_order() -> None:
    found = expand_eval_grid(settings(Glyphs(), split=["val", "test"], shots=[1, 5], inner_loop=[0, 2], ways=7))
    values = [(one.eval.split, one.eval.ways, one.eval.shots, one.eval.inner_loop) for one in found]
    assert values == [(split, 7, shots, steps) for split in ("val", "test") for shots in (1, 5) for steps in (0, 2)]


def test_the_run_s_own_data_set_keeps_its_keys_and_others_have_their_defaults() -> None:
    own = MiniImagenet(split="vinyals", normalise=True)
    assert [one.dataset for one in expand_eval_grid(settings(own, dataset=["cub", "miniimagenet"]))] == [Cub(), own]
    assert {one.eval.dataset for one in expand_eval_grid(settings(own, dataset="cub"))} == {None}


def test_a_folder_needs_its_root() -> None:
    assert expand_eval_grid(settings(Folder(root="a"), dataset=["folder"]))[0].dataset == Folder(root="a")
    with pytest.raises(UserError, match=r"eval.dataset=folder: .* dataset.root=FOLDER"):
        expand_eval_grid(settings(Glyphs(), dataset=["folder"]))
