"""Initial weights of a run: random ones, or with `start=` the body of another run's network or of a file of weights.

The head is always random. A run with `start=` keeps its initial parameters in checkpoints/start.safetensors, so that
the untrained network can be tested later, even if the start has been moved.
"""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from metarun.backbones.torchvision_models import weights_url
from metarun.checkpointing import file_format, store, weights_file
from metarun.checkpointing.state import CheckpointState, Weights, describe_state_mismatch
from metarun.config import paths
from metarun.config.groups import Torchvision
from metarun.config.methods import METHODS
from metarun.engine.context import RunContext
from metarun.engine.network import build_model
from metarun.errors import UserError, relative_to_cwd
from metarun.methods import Tensors
from metarun.methods.layers import head_names

log = logging.getLogger(__name__)

FILE = f"start{store.SUFFIX}"
RUNNING_STATS = (".running_mean", ".running_var", ".num_batches_tracked")  # unused: norms take each batch's statistics


def initial_parameters(work: RunContext, folder: Path, begins: bool) -> Weights | None:
    """The parameters that training begins with, or began with; None, with a warning, if their file is missing.

    Args:
        folder: of the run's checkpoints.
        begins: the run takes its first step: `start=` is loaded into the network, and the parameters are saved.

    Raises:
        UserError: the start does not exist or is of another network, or start.safetensors is damaged.
    """
    start, backbone, saved = work.settings.start, work.settings.backbone, folder / FILE
    if start is None:
        if begins and isinstance(backbone, Torchvision):
            log.info(
                "%s begins with random weights; those that torchvision trained on ImageNet are at %s: "
                "download them, and begin with start=FILE",
                *(backbone.network, weights_url(backbone.network)),
            )
        return work.state_dict()
    if begins:
        path = paths.existing_path("start", start)
        load_backbone_weights(work, store.resolve_checkpoint(path) if path.is_dir() else path)
        weights = work.state_dict()
        store.save(saved, CheckpointState(work.settings, *weights))
        return weights
    if not saved.is_file():
        log.warning("%s is missing: the untrained network is not tested", relative_to_cwd(saved))
        return None
    return store.load(saved).weights


def load_backbone_weights(work: RunContext, path: Path) -> None:
    """Loads the weights of the network's body from a checkpoint or a file of weights.

    Raises:
        UserError: the file cannot be read, or its tensors are not those of the network's body.
    """
    start = f"start={relative_to_cwd(path)}"
    with torch.device("meta"):
        model = build_model(work.settings, work.source)
    head = head_names(model)
    body: Tensors = {name: tensor for name, tensor in model.named_parameters() if name not in head}
    if not body:
        raise UserError(f"{start}: the network is a head alone, which has no body to begin with")
    try:
        state = store.load(path) if file_format.is_checkpoint(path) else None
        tensors = weights_file.read(path) if state is None else {**state.theta, **state.phi}
        tensors, prefix = weights_file.unwrap_names(tensors, body)
    except file_format.FormatError as error:
        raise UserError(f"{start}: {error}") from error
    tensors = network_weights(tensors, start)
    mismatch = describe_state_mismatch(body, {name: tensor for name, tensor in tensors.items() if name not in head})
    if mismatch:
        raise UserError(f"{start}: its body is another: {mismatch}; give the backbone keys that it was trained with")
    origin = "a file of weights"
    if state is not None:
        require_same_backbone(work.settings.backbone, state.settings.backbone, start)
        origin = f"{state.settings.method.name} on {state.settings.dataset.name}"
    origin += f"; {prefix!a} was taken off its names" if prefix else ""
    with torch.no_grad():
        for part in work.parameters:
            for name in part.keys() & body.keys():
                part[name].copy_(tensors[name])
    log.info("beginning with the body of %s: %s", relative_to_cwd(path), origin)


def network_weights(tensors: Tensors, start: str) -> Tensors:
    """The tensors without running statistics of norms and without what a method added to the network.

    Raises:
        UserError: a tensor is not of floating-point numbers, or the network cannot run without what a method added.
    """
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(RUNNING_STATS)}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise UserError(
                f"{start}: its {ascii(name)[1:-1]} is no tensor of weights; "
                "give a file of weights by their names, or a run"
            )
        for method in METHODS.values():
            if name.startswith(method.bound_state):
                raise UserError(
                    f"{start}: was trained with method={method.name}, whose {name.partition('.')[0]} the network's "
                    "weights cannot be separated from; give a run of another method"
                )
    separable = tuple(prefix for method in METHODS.values() for prefix in method.state)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(separable)}


def require_same_backbone(backbone: Any, trained: Any, start: str) -> None:
    """Raises UserError if the keys of the run's backbone are not those that the start was trained with."""
    before = asdict(trained)
    for name, value in asdict(backbone).items():
        if before.get(name) != value:
            key = "backbone" if name == "name" else f"backbone.{name}"
            raise UserError(f"{start}: was trained with {key}={before.get(name)}, here it is {value}; give the same")
