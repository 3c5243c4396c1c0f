"""Numba's compiled loops: kept on disk where that works, and not needed."""

from __future__ import annotations

import builtins
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch
from numba.core import config

from metarun.nn import fused, kernels
from tests.helpers.derivatives import SHAPE


def test_without_numba_it_is_torchs_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given = builtins.__import__

    def without(name: str, scope: Any = None, *others: Any) -> Any:
        if name == "metarun.nn" and others[1] == ("kernels",):
            raise ImportError("Numba needs NumPy 2.4 or less")
        return given(name, scope, *others)

    monkeypatch.setattr(builtins, "__import__", without)
    fused.kernels.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert not fused.is_supported(torch.zeros(SHAPE)) and not fused.is_supported(torch.zeros(SHAPE))
            assert fused.backend_name() == "torch"
    finally:
        fused.kernels.cache_clear()
    assert [record.message for record in caplog.records] == [
        "batch norm and max-pool are torch's own, which is slower: ImportError('Numba needs NumPy 2.4 or less')"
    ]


def test_kernels_need_no_place_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = numba.njit

    def nowhere(function: Any, cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compiled(function, **options)

    monkeypatch.setattr(numba, "njit", nowhere)
    found = np.zeros(1)
    kernel()(found)
    assert found[0] == 1


def empty_files(folder: Path) -> None:
    for path in folder.glob("*.nb[ic]"):
        path.write_bytes(b"")


def file_in_its_place(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"")


@pytest.mark.parametrize("harm", [empty_files, file_in_its_place])
def test_a_place_on_disk_that_fails_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    kernel()(np.zeros(1))
    (folder,) = tmp_path.iterdir()
    assert list(folder.glob("*.nbc"))
    loop, found = kernel(), np.zeros(1)
    harm(folder)
    with caplog.at_level(logging.WARNING):
        loop(found)
        loop(found)
    assert found[0] == 1
    (told,) = [record.message for record in caplog.records]
    assert str(folder) in told and "compiled for this process alone" in told and "delete the files" in told


def kernel() -> kernels.CachedKernel:
    def set_to_one(found: Any) -> None:
        found[0] = 1

    return kernels.CachedKernel(set_to_one)
