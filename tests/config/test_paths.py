"""Paths of settings, as they are stored for a run in another working directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from metarun.config import paths
from metarun.config.groups import Folder
from metarun.config.schema import Settings


def test_relative_paths_are_stored_from_the_root_without_dots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere" / "inside").mkdir(parents=True)
    (tmp_path / "here" / "link").symlink_to(tmp_path / "elsewhere" / "inside")
    monkeypatch.chdir(tmp_path / "here")
    settings = Settings(dataset=Folder(root="../data"), data_dir="~/data", cache_dir="./a/../b", start="link/../run")
    settings = paths.absolute(settings)
    assert settings.dataset.root == str(tmp_path / "data")
    assert (settings.data_dir, settings.cache_dir) == ("~/data", str(tmp_path / "here" / "b"))
    assert settings.start == f"{tmp_path}/here/link/../run"  # elsewhere/run, not here/run
