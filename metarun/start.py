"""What a run begins with: the body of another run's network, or of a file of weights. The head is its own.

A run that was given a start keeps the parameters that it began with in checkpoints/start.pt, so that what it scores
untrained can be told later on, wherever the start is then.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarun import checkpoint, places, untrusted
from metarun.backbones.torchvision_models import weights_url
from metarun.errors import UserError, nearby
from metarun.groups import Torchvision
from metarun.methods import Tensors
from metarun.methods.layers import head_names
from metarun.network import build_model
from metarun.work import Work

log = logging.getLogger(__name__)

FILE = "start.pt"
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # what torch.save wrote first, before 1.6
UNUSED = (".running_mean", ".running_var", ".num_batches_tracked")  # norms use each batch's own statistics
BESIDE = ("attenuator.", "inner_rates.", "mask_logits.")  # what a method learns that the network runs without
WITHIN = {"t_layers.": "mtnet", "warp_layers.": "warpgrad"}  # and what the network's weights mean nothing without


def untrained(work: Work, folder: Path, begins: bool) -> dict[str, Any] | None:
    """The parameters that training begins with, or began with, as `Work.restore` takes them; None where they are lost.

    Args:
        folder: of the run's checkpoints.
        begins: the run is at its beginning, and takes its start.

    Raises:
        UserError: there is no such start, or it is not of this network; or what was kept of it is damaged.
    """
    place, kept = work.settings.start, folder / FILE
    if place is None:
        if begins and isinstance(work.settings.backbone, Torchvision):
            tell_of_weights(work.settings.backbone.network)
        return work.snapshot()
    if begins:
        path = places.start(place)
        path = checkpoint.find(path) if path.is_dir() else path
        take(work, path)
        checkpoint.save(kept, {"origin": str(path.resolve()), **work.snapshot()})
    elif not kept.is_file():
        log.warning("%s is missing: what the network scored before training is not told", nearby(kept))
        return None
    return checkpoint.load(kept)


def tell_of_weights(network: str) -> None:
    log.info(
        "%s begins with random weights; those that torchvision learned on ImageNet are at %s: "
        "download them, and begin with start=FILE",
        *(network, weights_url(network)),
    )


def take(work: Work, path: Path) -> None:
    """Give the network's body the weights of a checkpoint or of a file of weights.

    Raises:
        UserError: the file cannot be read, or its tensors are not those of the network's body.
    """
    what = f"start={nearby(path)}"
    with torch.device("meta"):
        network = build_model(work.settings, work.source)
    head = head_names(network)
    body: Tensors = {name: tensor for name, tensor in network.named_parameters() if name not in head}
    if not body:
        raise UserError(f"{what}: the network is a head alone, which has no body to begin with")
    content, told = read(path, what), "a file of weights"
    saved = weights(content, what)
    require_same_body(body, {name: tensor for name, tensor in saved.items() if name not in head}, what)
    if "config" in content:
        told = require_same_network(work, content["config"], what)
    with torch.no_grad():
        for part in work.parameters:
            for name in part.keys() & body.keys():
                part[name].copy_(saved[name])
    log.info("beginning with the body of %s: %s", nearby(path), told)


def read(path: Path, what: str) -> dict[str, Any]:
    """The content of a checkpoint, of a state_dict that torch.save wrote, or of a safetensors file."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return dict(load(path.read_bytes()))
        except (SafetensorError, ValueError) as error:
            raise UserError(f"{what}: is no whole safetensors file ({checkpoint.first_line(error)})") from error
    wrong, content = checkpoint.fault(path, untrusted.read)
    if wrong:
        hint = "give a file of plain tensors, as torch.save(model.state_dict(), FILE) writes, or .safetensors"
        with path.open("rb") as file:
            if file.read(len(LEGACY)) == LEGACY:
                hint = "it is in torch's old form, bring it into the new: torch.save(torch.load(FILE), FILE)"
        raise UserError(f"{what}: {wrong}; {hint}")
    if not isinstance(content, dict) or ("theta" in content and content.get("format") != checkpoint.FORMAT):
        raise UserError(f"{what}: holds no weights by their names, nor a run of this version of metarun")
    return content


def weights(content: dict[str, Any], what: str) -> Tensors:
    """The tensors by their names, without what a network runs without."""
    found = content
    if "theta" in content:
        found = {
            name: tensor
            for kind in ("theta", "phi")
            for name, tensor in checkpoint.tensors(content, kind, what).items()
        }
    elif isinstance(content.get("state_dict"), dict):
        found = content["state_dict"]
    found = {name: tensor for name, tensor in found.items() if not str(name).endswith(UNUSED)}
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise UserError(
                f"{what}: its {name} is no tensor of weights; give a file of weights by their names, or a run"
            )
        for beginning, method in WITHIN.items():
            if name.startswith(beginning):
                raise UserError(
                    f"{what}: was learned by method={method}, whose {name.partition('.')[0]} its weights mean nothing "
                    "without; give a run of another method"
                )
    return {name: tensor for name, tensor in found.items() if not name.startswith(BESIDE)}


def require_same_body(body: Tensors, saved: Tensors, what: str) -> None:
    """Raises UserError where names or shapes differ; names the first few."""
    if differ := checkpoint.differences(body, saved):
        raise UserError(f"{what}: its body is another: {differ}; give the backbone keys that it was trained with")


def require_same_network(work: Work, config: Any, what: str) -> str:
    """Where the run comes from, in words. Raises UserError where its network computes something else."""
    settings = work.settings
    try:
        theirs = dict(config["backbone"])
        told = f"{config['method']['name']} on {config['dataset']['name']}"
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{what}: its settings are damaged ({type(error).__name__}, {error})") from error
    for name, value in asdict(settings.backbone).items():
        if theirs.get(name) != value:
            key = "backbone" if name == "name" else f"backbone.{name}"
            raise UserError(f"{what}: was trained with {key}={theirs.get(name)}, here it is {value}; give the same")
    return told
