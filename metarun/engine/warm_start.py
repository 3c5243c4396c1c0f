"""What a run begins with: the body of another run's network, or of a file of weights. The head is its own.

A run that was given a start keeps the parameters that it began with in checkpoints/start.safetensors, so that what it
scores untrained can be told later on, wherever the start is then.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

import torch

from metarun.backbones.torchvision_models import weights_url
from metarun.checkpointing import file_format, store, weights_file
from metarun.checkpointing.state import CheckpointState, Weights, describe_state_mismatch
from metarun.config import paths
from metarun.config.groups import Torchvision
from metarun.config.methods import METHODS
from metarun.config.schema import Settings
from metarun.engine.context import RunContext
from metarun.engine.network import build_model
from metarun.errors import UserError, relative_to_cwd
from metarun.methods import Tensors
from metarun.methods.layers import head_names

log = logging.getLogger(__name__)

FILE = f"start{store.SUFFIX}"
RUNNING_STAT_SUFFIXES = (
    ".running_mean",
    ".running_var",
    ".num_batches_tracked",
)  # norms use each batch's own statistics


def initial_parameters(work: RunContext, folder: Path, begins: bool) -> Weights | None:
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
        return work.state_dict()
    if begins:
        path = paths.warm_start_path(place)
        load_backbone_weights(work, store.resolve_checkpoint(path) if path.is_dir() else path)
        begun = work.state_dict()
        store.save(kept, CheckpointState(work.settings, *begun))
        return begun
    if not kept.is_file():
        log.warning("%s is missing: what the network scored before training is not told", relative_to_cwd(kept))
        return None
    return store.load(kept).weights


def tell_of_weights(network: str) -> None:
    log.info(
        "%s begins with random weights; those that torchvision learned on ImageNet are at %s: "
        "download them, and begin with start=FILE",
        *(network, weights_url(network)),
    )


def load_backbone_weights(work: RunContext, path: Path) -> None:
    """Give the network's body the weights of a checkpoint or of a file of weights.

    Raises:
        UserError: the file cannot be read, or its tensors are not those of the network's body.
    """
    what = f"start={relative_to_cwd(path)}"
    with torch.device("meta"):
        network = build_model(work.settings, work.source)
    head = head_names(network)
    body: Tensors = {name: tensor for name, tensor in network.named_parameters() if name not in head}
    if not body:
        raise UserError(f"{what}: the network is a head alone, which has no body to begin with")
    found, settings = read(path, what)
    try:
        found, prefix = weights_file.unwrapped(found, body)
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
    saved = weights(found, what)
    require_same_body(body, {name: tensor for name, tensor in saved.items() if name not in head}, what)
    told = "a file of weights" if settings is None else require_same_network(work, settings, what)
    told += f"; {prefix!a} was taken off its names" if prefix else ""
    with torch.no_grad():
        for part in work.parameters:
            for name in part.keys() & body.keys():
                part[name].copy_(saved[name])
    log.info("beginning with the body of %s: %s", relative_to_cwd(path), told)


def read(path: Path, what: str) -> tuple[Tensors, Settings | None]:
    """The tensors of a run's checkpoint, with its settings, or of a file of weights."""
    try:
        if file_format.is_checkpoint(path):
            state = store.load(path)
            return {**state.theta, **state.phi}, state.settings
        return weights_file.read(path), None
    except file_format.FormatError as error:
        raise UserError(f"{what}: {error}") from error


def weights(found: Tensors, what: str) -> Tensors:
    """The tensors by their names, without what a network runs without."""
    found = {name: tensor for name, tensor in found.items() if not name.endswith(RUNNING_STAT_SUFFIXES)}
    for name, tensor in found.items():
        if not tensor.is_floating_point():
            raise UserError(
                f"{what}: its {ascii(name)[1:-1]} is no tensor of weights; "
                "give a file of weights by their names, or a run"
            )
        for method in METHODS.values():
            if name.startswith(method.bound_state):
                raise UserError(
                    f"{what}: was learned by method={method.name}, whose {name.partition('.')[0]} its weights mean "
                    "nothing without; give a run of another method"
                )
    removable = tuple(prefix for method in METHODS.values() for prefix in method.state)
    return {name: tensor for name, tensor in found.items() if not name.startswith(removable)}


def require_same_body(body: Tensors, saved: Tensors, what: str) -> None:
    """Raises UserError where names or shapes differ; names the first few."""
    if mismatch := describe_state_mismatch(body, saved):
        raise UserError(f"{what}: its body is another: {mismatch}; give the backbone keys that it was trained with")


def require_same_network(work: RunContext, theirs: Settings, what: str) -> str:
    """Where the run comes from, in words. Raises UserError where its network computes something else."""
    saved = asdict(theirs.backbone)
    for name, value in asdict(work.settings.backbone).items():
        if saved.get(name) != value:
            key = "backbone" if name == "name" else f"backbone.{name}"
            raise UserError(f"{what}: was trained with {key}={saved.get(name)}, here it is {value}; give the same")
    return f"{theirs.method.name} on {theirs.dataset.name}"
