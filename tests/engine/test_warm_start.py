from __future__ import annotations

import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from metarun.backbones import MLP
from metarun.checkpointing import file_format, store, weights_file
from metarun.config.groups import Mlp, Sinusoid
from metarun.config.methods import Maml
from metarun.config.schema import Settings
from metarun.distributed.task_parallel import TaskParallelGroup
from metarun.engine import warm_start
from metarun.engine.context import RunContext, build_context
from metarun.errors import UserError
from metarun.training.trainer import Trainer
from tests.helpers.crafted import changed


def work(method: object = None, **backbone: object) -> RunContext:
    options = {"hidden": [4, 3], **backbone}
    return build_context(
        Settings(dataset=Sinusoid(), backbone=Mlp(**options), method=method or Maml(), inner_loop=1, device="cpu")  # type: ignore[arg-type]
    )


def other(hidden: tuple[int, ...] = (4, 3), outputs: int = 7) -> dict[str, Tensor]:
    """The weights of another network, with a head of its own."""
    torch.manual_seed(5)
    return MLP((1,), outputs, hidden).state_dict()


class Normed(nn.Sequential):
    """A state_dict with the buffers of a norm beside its weights."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.mark.parametrize("form", ["state_dict", "parameters", "older torch", "nested", "safetensors"])
def test_a_file_of_weights_gives_the_body(tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture) -> None:
    path, weights = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt"), other()
    if form == "safetensors":
        save_file(weights, path)
    elif form == "parameters":
        torch.save({name: nn.Parameter(tensor) for name, tensor in weights.items()}, path)
    else:
        torch.save({"state_dict": weights} if form == "nested" else weights, path)
    if form == "older torch":
        content = path.read_bytes()  # a part of another name is none
        path.write_bytes(content.replace(b"w/byteorder", b"w/bytewhat?"))
    one = work()
    head = {name: tensor.clone() for name, tensor in one.parameters.theta.items() if name.startswith("layers.2")}
    with caplog.at_level("INFO"):
        warm_start.load_backbone_weights(one, path)
    for name, tensor in one.parameters.theta.items():
        assert torch.equal(tensor, head[name] if name in head else weights[name]), name
    assert "beginning with the body of" in caplog.text


def test_the_statistics_of_norms_are_left_out() -> None:
    names = {name for name, _ in Normed().named_parameters()}
    assert set(warm_start.network_weights(Normed().state_dict(), "start=x")) == names


def test_what_a_method_learned_beside_is_left_out_or_refused(tmp_path: Path) -> None:
    from metarun.config.methods import L2f, Msgd, Mtnet, Warpgrad

    names = [name for name in other() if not name.startswith("layers.2")]
    for method in (L2f(), Msgd(), Mtnet(), Warpgrad()):
        training = Trainer(TaskParallelGroup(work(method)), tmp_path)
        store.save(tmp_path / "run.safetensors", training.state_dict())
        taking = work()
        if isinstance(method, (Mtnet, Warpgrad)):
            with pytest.raises(UserError, match=f"was trained with method={method.name}, .* another method"):
                warm_start.load_backbone_weights(taking, tmp_path / "run.safetensors")
        else:
            with torch.no_grad():
                training.work.parameters.theta[names[0]].fill_(7)
            store.save(tmp_path / "run.safetensors", training.state_dict())
            warm_start.load_backbone_weights(taking, tmp_path / "run.safetensors")
            assert (taking.parameters.theta[names[0]] == 7).all()


REFUSED = {
    "narrow": (lambda: other((4, 2)), r"layers.1.weight is \[2, 4\] instead of \[3, 4\]; layers.1.bias is \[2\]"),
    "shallow": (lambda: other((4,)), r"layers.1.weight is \[7, 4\] instead of"),
    "deep": (lambda: other((4, 3, 3)), r"layers.3.weight is unknown"),
    "counts": (
        lambda: {"layers.0.weight": torch.ones(4, 1, dtype=torch.int64)},
        "layers.0.weight is no tensor of weights",
    ),
    "words": (lambda: {"epoch": 3, **other()}, "holds 'epoch', which is not a tensor of weights"),
    "list": (lambda: [torch.ones(2)], "holds no weights by their names"),
    "old": (lambda: {"theta": {}, "format": 1}, "a checkpoint of an earlier version of metarun"),
    "none": (lambda: {}, "layers.0.weight is missing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_the_body_s_is_told_by_its_tensors(tmp_path: Path, name: str) -> None:
    make, told = REFUSED[name]
    torch.save(make(), tmp_path / f"{name}.pt")
    one = work()
    before = one.state_dict()
    with pytest.raises(UserError, match=rf"start=.*{name}.pt: .*{told}"):
        warm_start.load_backbone_weights(one, tmp_path / f"{name}.pt")
    assert all(torch.equal(tensor, before.theta[name]) for name, tensor in one.parameters.theta.items())


def test_torch_s_old_form_is_told(tmp_path: Path) -> None:
    torch.save(other(), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"w.pth: .*torch's old format; .*torch.save\(torch.load\(FILE\), FILE\)"):
        warm_start.load_backbone_weights(work(), tmp_path / "w.pth")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_damaged_file_is_told(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"w.{suffix}").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    save = save_file if suffix == "safetensors" else torch.save
    save(other(), tmp_path / f"w.{suffix}")  # type: ignore[operator]
    content = (tmp_path / f"w.{suffix}").read_bytes()
    (tmp_path / f"w.{suffix}").write_bytes(content[:-9])
    with pytest.raises(UserError, match=rf"start=.*w.{suffix}: "):
        warm_start.load_backbone_weights(work(), tmp_path / f"w.{suffix}")


def test_a_network_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    training = Trainer(TaskParallelGroup(work()), tmp_path)
    state = training.state_dict()
    store.save(tmp_path / "run.safetensors", state)
    warm_start.load_backbone_weights(work(), tmp_path / "run.safetensors")
    store.save(
        tmp_path / "run.safetensors", replace(state, settings=replace(state.settings, backbone=Mlp(hidden=[4, 3, 3])))
    )
    with pytest.raises(UserError, match=r"backbone.hidden=\[4, 3, 3\], here it is \[4, 3\]; give the same"):
        warm_start.load_backbone_weights(work(), tmp_path / "run.safetensors")
    changed(tmp_path / "run.safetensors", "settings", value=3)
    with pytest.raises(UserError, match=r"its content\.settings is 3, must be an object"):
        warm_start.load_backbone_weights(work(), tmp_path / "run.safetensors")


def test_a_head_alone_has_no_body(tmp_path: Path) -> None:
    torch.save(other(), tmp_path / "w.pt")
    with pytest.raises(UserError, match="the network is a head alone"):
        warm_start.load_backbone_weights(work(hidden=[]), tmp_path / "w.pt")


# --- files of other programs ---------------------------------------------------------------------------------


def prefixed(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


WRAPPED = {
    "DataParallel": (lambda w: prefixed("module.", w), "module."),
    "torch.compile": (lambda w: prefixed("_orig_mod.", w), ""),
    "several on top of each other": (lambda w: prefixed("module.model._orig_mod.", w), "module.model."),
    "Lightning": (
        lambda w: {
            **{"epoch": 3, "global_step": 7, "pytorch-lightning_version": "2.4", "callbacks": {}, "loops": {}},
            **{"state_dict": {**prefixed("model.", w), "loss.weight": torch.ones(3)}, "optimizer_states": [{"a": 1}]},
        },
        "model.",
    ),
    "a name of one's own": (lambda w: {"model": prefixed("encoder.", w), "epoch": 2}, "encoder."),
    "a container in a container": (lambda w: {"model": {"state_dict": w}}, ""),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_what_a_wrapper_put_in_front_of_the_names_is_taken_off_and_told(tmp_path: Path, name: str, caplog) -> None:
    make, prefix = WRAPPED[name]
    weights = other()
    torch.save(make(weights), tmp_path / "w.ckpt")
    one = work()
    with caplog.at_level("INFO"):
        warm_start.load_backbone_weights(one, tmp_path / "w.ckpt")
    assert torch.equal(one.parameters.theta["layers.0.weight"], weights["layers.0.weight"])
    assert ("was taken off" in caplog.text) == bool(prefix) and prefix in caplog.text


def test_a_file_that_holds_the_network_twice_is_refused(tmp_path: Path) -> None:
    torch.save({**prefixed("student.", other()), **prefixed("teacher.", other())}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"holds the network several times, below 'student\.', 'teacher\.'"):
        warm_start.load_backbone_weights(work(), tmp_path / "w.pt")


class Code:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("content", [Code(), {"state_dict": Code()}, {"w": bytearray(8)}, {"w": torch.ones}])
def test_code_and_what_claims_memory_is_refused(tmp_path: Path, monkeypatch, content: object) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"w\.pt: its data\.pkl asks for .*weights do not need") as raised:
        warm_start.load_backbone_weights(work(), tmp_path / "w.pt")
    assert not Path("ran").exists() and len(str(raised.value).splitlines()) == 1


def test_a_storage_that_claims_more_than_its_part_is_refused(tmp_path: Path) -> None:
    """torch would read the memory behind it."""
    torch.save({"w": torch.ones(4), "v": torch.ones(2)}, tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt") as old, zipfile.ZipFile(tmp_path / "z.pt", "w") as new:
        weights_file.require_plain(old)
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b"cpuq\x06K\x04", b"cpuq\x06K\x64"))
    with (
        zipfile.ZipFile(tmp_path / "z.pt") as new,
        pytest.raises(file_format.FormatError, match=r"400 bytes .* has 16"),
    ):
        weights_file.require_plain(new)


def test_compressed_parts_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(10**6)}, tmp_path / "w.pt")
    with (
        zipfile.ZipFile(tmp_path / "w.pt") as old,
        zipfile.ZipFile(tmp_path / "z.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(UserError, match=r"z\.pt: cannot be read"):
        warm_start.load_backbone_weights(work(), tmp_path / "z.pt")
