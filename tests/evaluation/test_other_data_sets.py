"""Data sets that a network did not learn, brought into the form of what it did."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metarun.checkpointing.state import CheckpointState
from metarun.config.groups import CifarFs, Folder, Glyphs, Mlp, Sinusoid
from metarun.config.methods import Maml
from metarun.config.schema import Settings
from metarun.data import IMAGE_DATASETS, DataPaths, load
from metarun.data.image_spec import ImageSpec, decode_image
from metarun.data.preprocessing import ImagePreprocessing
from metarun.engine.dataset import preprocessing_for_eval_dataset, preprocessing_from_checkpoint
from metarun.errors import UserError
from tests.helpers import small_data

CPU = torch.device("cpu")
PICTURES = ImagePreprocessing(9, channels=1, inverted=True, normalise=True, mean=[0.25], deviation=[0.5])


def content(dataset: Any, pictures: ImagePreprocessing | None = PICTURES) -> CheckpointState:
    return CheckpointState(Settings(dataset=dataset, backbone=Mlp(), method=Maml()), {}, {}, pictures=pictures)


def test_pictures_look_like_those_that_were_learned(tmp_path: Path) -> None:
    small_data.pictures(tmp_path / "own", [f"class {i}" for i in range(5)])
    like = preprocessing_for_eval_dataset(Folder(root=str(tmp_path / "own")), content(Glyphs()), "run", CPU)
    assert like is not None
    places = DataPaths(tmp_path, tmp_path / "cache", False)
    options = {"root": str(tmp_path / "own"), "size": 64, "grey": False, "seed": 0, "normalise": False, "augment": []}
    found: Any = load("folder", places, CPU, like, **options)
    assert found.input_shape == (1, 9, 9) and found.normalise
    assert (found.image_set.mean, found.image_set.std) == ((0.25,), (0.5,))
    file = tmp_path / "own" / "class 3" / "1.png"
    number = found.image_set.names.index("class 3")
    expected = decode_image(file, ImageSpec(9, 1, inverted=True))
    np.testing.assert_array_equal(found.image_set.images[found.image_set.first[number] + 1], expected)
    assert expected.mean() != np.asarray(Image.open(file)).mean()
    own: Any = load("folder", places, CPU, **options)  # is kept beside it
    assert own.input_shape == (3, 64, 64) and not own.normalise


def test_what_was_learned_stays_as_it_is() -> None:
    assert preprocessing_for_eval_dataset(CifarFs(split="mine.json"), content(CifarFs()), "run", CPU) is None
    assert preprocessing_for_eval_dataset(Folder(root="a", size=9), content(Folder(root="a")), "run", CPU) is None
    assert preprocessing_for_eval_dataset(Folder(root="b"), content(Folder(root="a")), "run", CPU) is not None


def test_curves_are_no_pictures() -> None:
    for dataset, learned in ((Glyphs(), Sinusoid()), (Sinusoid(), Glyphs())):
        with pytest.raises(UserError, match=rf"dataset={dataset.name}: checkpoint run was trained on {learned.name}"):
            preprocessing_for_eval_dataset(dataset, content(learned, None), "run", CPU)


def test_a_checkpoint_that_does_not_say() -> None:
    with pytest.raises(UserError, match="does not say what its pictures look like"):
        preprocessing_from_checkpoint(content(Glyphs(), None), "run", CPU)


def test_every_data_set_of_pictures_can_be_brought_into_another_form() -> None:
    assert all("spec" in inspect.signature(read).parameters for read in IMAGE_DATASETS.values())
