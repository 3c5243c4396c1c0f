"""The files that mistakes are made with, each by the name that a row of `mistakes_table` gives it."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

GLOBAL = "# @package _global_\n"
EXPERIMENTS: dict[str, str | bytes] = {
    "key": f"{GLOBAL}infer_loop: 3\n",
    "type": f"{GLOBAL}ways: abc\n",
    "range": f"{GLOBAL}ways: 1\n",
    "cut": f"{GLOBAL}ways: [\n",
    "twice": f"{GLOBAL}ways: 3\nways: 4\n",
    "tab": f"{GLOBAL}ways:\t3\n\tshots: 4\n",
    "bytes": b"ways: \xff\xfe\n",
    "bare": "ways: 3\n",
    "choice": f"{GLOBAL}defaults: [{{override /dataset: glyps}}]\n",
    "group": f"{GLOBAL}defaults: [{{override /datset: glyphs}}]\n",
    "below": f"{GLOBAL}eval:\n  taks: 3\n",
}


def own() -> None:
    for name, content in EXPERIMENTS.items():
        put(f"own/experiment/{name}.yaml", content)


def put(path: str, content: str | bytes) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())


class Code:
    """What a pickle does that runs something when it is read."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


# --- checkpoints -------------------------------------------------------------------------------------------


def checkpoints() -> None:
    import torch

    from metarun.checkpointing import file_format, store
    from metarun.checkpointing.state import CheckpointState
    from metarun.config.groups import Glyphs, Mlp, Sinusoid
    from metarun.config.methods import Maml, Pretrain
    from metarun.config.schema import Settings
    from metarun.distributed.task_parallel import TaskParallelGroup
    from metarun.engine.context import build_context
    from metarun.training.trainer import Trainer
    from tests.helpers.crafted import changed

    def of_run(name: str, **changes: Any) -> CheckpointState:
        settings = Settings(
            dataset=Sinusoid(), backbone=Mlp(hidden=[4]), method=Maml(), inner_loop=1, device="cpu", **changes
        )
        training = Trainer(TaskParallelGroup(build_context(settings)), Path(name))
        training.step = 2
        training.folder.mkdir()
        training.save()
        return training.state_dict()

    state = of_run("run")
    of_run("cosine", outer_schedule="cosine")
    store.save(Path("newer.safetensors"), state)
    whole = Path("newer.safetensors").read_bytes()
    put("cut.safetensors", whole[:-200])
    at = whole.index(state.theta["layers.0.weight"].numpy().tobytes())
    put("flipped.safetensors", whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    Path("pretrained").mkdir()
    put("broken/checkpoints/step-00000002.safetensors", whole[:300])
    torch.save({"weights": torch.ones(2)}, "foreign.pt")
    torch.save(Code(), "code.pt")
    put("pickle.pt", pickle.dumps(Code()))
    put("bare.safetensors", file_format.encode({"step": 2}, {}))
    changed(Path("newer.safetensors"), "settings", "colour", value=1)
    torch.save({"format": 2, "theta": {}}, "earlier.pt")
    put("earlier/checkpoints/step-00000002.pt", Path("earlier.pt").read_bytes())

    def saved(path: str, **other: Any) -> None:
        store.save(Path(path), replace(state, settings=replace(state.settings, **other)))

    saved("pretrained/checkpoints/best.safetensors", dataset=Glyphs(), method=Pretrain())
    saved("thin.safetensors", backbone=Mlp(hidden=[3]))


# --- data sets ---------------------------------------------------------------------------------------------


def data() -> None:
    put("data/wrong.json", "no")
    put("data/lacks.json", json.dumps({"train": ["a"]}))
    put("data/twice.json", json.dumps({"train": ["a"], "val": ["b"], "test": ["a"]}))
    put("data/empty.json", json.dumps({"train": ["a"], "val": [], "test": ["b"]}))


def cut() -> None:
    """Archives whose second half did not come."""
    content = os.urandom(4000)
    tarred, zipped = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w:gz") as archive:
        member = tarfile.TarInfo("cifar-100-python/train")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("images_background/Latin/character01/0001_01.png", content)
    for name in ("cifar-100-python.tar.gz", "mini-imagenet.tar.gz"):
        put(f"cut/{name}", tarred.getvalue()[:2000])
    for name in ("CUB_200_2011.zip", "images_background.zip", "images_evaluation.zip"):
        put(f"cut/{name}", zipped.getvalue()[:2000])


def page() -> None:
    put("page/cifar-100-python.tar.gz", "<!DOCTYPE html><html>404</html>")


def code() -> None:
    for split in ("train", "val", "test"):
        put(f"code/mini-imagenet-cache-{split}.pkl", pickle.dumps(Code()))


def hdf5() -> None:
    for split in ("train", "val", "test"):
        put(f"hdf5/{split}_data.hdf5", b"\x89HDF\r\n\x1a\n and no more")
        put(f"hdf5/{split}_labels.json", json.dumps(["a"]))


def folders() -> None:
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (9, 9), 7).save(file, "PNG")
    Path("empty").mkdir()
    Path("hollow/a").mkdir(parents=True)
    put("flat/a.png", file.getvalue())
    for name in "ab":
        put(f"few/{name}/1.png", file.getvalue())
    for name in "abcdefg":
        put(f"junk/{name}/1.png", "no picture")
    put("columns.csv", "date,class\n")
    put("gaps.csv", "path,label\na.png,\n")
    put("gone.csv", "path,label\nno.png,a\n")
    put("splits.csv", "path,label,split\nflat/a.png,a,dev\n")
    put("bytes.csv", b"path,label\n\xff\xfe,a\n")
    put("bare.csv", "path,label\n")


def runs() -> None:
    put("damaged/result.json", "{")
    put("predicted/.hydra/config.yaml", "mode: predict")
    put("other/result.json", json.dumps({"metarun": "0.0.1", "mean": 0.5}))


PREPARED: dict[str, list[Callable[[], None]]] = {
    "": [],
    "own": [own],
    "plain": [lambda: put("plain", "x")],
    "file called outputs": [lambda: put("outputs", "x")],
    "checkpoints": [checkpoints],
    "checkpoints and own": [checkpoints, own],
    "data": [data],
    "cut": [cut],
    "page": [page],
    "code": [code],
    "hdf5": [hdf5],
    "folders": [folders],
    "runs": [runs],
}


def prepare(name: str) -> None:
    """Make what a row needs in the working folder."""
    for make in PREPARED[name]:
        make()
