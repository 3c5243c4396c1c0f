"""Runs of a second, and what they leave."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metarun.checkpointing import store
from metarun.config.groups import Mlp, Sinusoid
from metarun.config.methods import Maml
from metarun.config.schema import EvalConfig, Save, Settings
from metarun.runner import run
from metarun.training.trainer import Trainer


def small(folder: Path, **changes: object) -> Settings:
    """A sinusoid run of a second."""
    settings = Settings(
        dataset=Sinusoid(),
        backbone=Mlp(hidden=[8]),
        method=Maml(),
        shots=5,
        queries=5,
        inner_loop=2,
        iterations=60,
        data_dir=str(folder / "data"),
        cache_dir=str(folder / "cache"),
        eval=EvalConfig(tasks=10, validation_tasks=10, every=30, inner_loop=3, shots=4, queries=7),
        save=Save(every=20, keep=2),
    )
    return replace(settings, **changes)  # type: ignore[arg-type]


def killed_behind_validation(settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains up to step 60, and ends between its validation and the save that follows."""
    save = Trainer.save

    def killed(self: Trainer) -> None:
        if self.step == 60 and not self.validation_pending:
            raise KeyboardInterrupt
        save(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "save", killed)
        run(settings, folder)


def lines(folder: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    state = store.load(store.latest_intact_checkpoint(folder))
    return {**state.theta, **state.phi}
