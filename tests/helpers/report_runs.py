"""Run folders as they are on disk, without the runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from metarun.config.groups import CONFIG_GROUPS, Conv4, Glyphs
from metarun.config.schema import Settings, flatten


def run(folder: Path, seed: int = 0, mean: float | None = 0.5, method: str = "maml", **changes: Any) -> Path:
    """A finished run on glyphs; see `write_result`."""
    unfinished(folder, typed=[f"method={method}", f"seed={seed}"])
    write_result(folder, seed, mean, method, **changes)
    return folder


def write_result(
    folder: Path,
    seed: int = 0,
    mean: float | None = 0.5,
    method: str = "maml",
    settings: Mapping[str, Any] = MappingProxyType({}),
    **changes: Any,
) -> None:
    """Of a run on glyphs, with some `settings` and entries of result.json changed."""
    chosen = Settings(seed=seed, dataset=Glyphs(), backbone=Conv4(), method=CONFIG_GROUPS["method"][method]())
    result = {
        "dataset": "glyphs",
        "method": method,
        "backbone": "conv4",
        "ways": 5,
        "shots": 1,
        "queries": 15,
        "split": "test",
        "class_split": "glyphs-seed0",
        "metric": "accuracy",
        "mean": mean,
        "ci95": 0.02,
        "tasks": 4,
        "by_step": [0.2, mean],
        "untrained": {"mean": 0.3},
        "batch_norm": "transductive",
        "seed": seed,
        "iterations": 40,
        "skipped_steps": 0,
        "checkpoint": "checkpoints/best.safetensors",
        "seconds": 65.0,
        "metarun": "0.1.0",
        "settings": {**flatten(chosen), **settings},
        **changes,
    }
    (folder / "result.json").write_text(json.dumps(result))


def unfinished(folder: Path, step: int = 40, typed: Sequence[str] = (), mode: str = "train") -> Path:
    """A run that has come to `step` of 60, where it was validated and saved."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / ".hydra").mkdir()
    (folder / ".hydra/config.yaml").write_text(yaml.safe_dump({"mode": mode, "iterations": 60}))
    (folder / ".hydra/overrides.yaml").write_text(yaml.safe_dump(list(typed)))
    (folder / f"checkpoints/step-{step:08d}.safetensors").touch()
    lines = [
        {"step": at, "split": split, "loss": 1.0, "accuracy": at / 100, "seconds": 1.0}
        for at in range(20, step + 1, 20)
        for split in ("train", "val")
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def tasks(folder: Path, values: list[float], metric: str = "accuracy") -> None:
    lines = [f"{number},{value}" for number, value in enumerate(values)]
    (folder / "tasks.csv").write_text("\n".join([f"task,{metric}", *lines, ""]))
