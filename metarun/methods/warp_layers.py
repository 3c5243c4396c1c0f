"""The warp layers of WarpGrad and where they stand in a model; `metarun.methods.warpgrad` is the method."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from metarun.errors import UserError
from metarun.methods.layers import called_modules
from metarun.nn.norm import Norm, before_norm

CONVOLUTIONS = {  # types of layers -> type of the convolution that warps their output
    (nn.Conv1d, nn.ConvTranspose1d): nn.Conv1d,
    (nn.Conv2d, nn.ConvTranspose2d): nn.Conv2d,
    (nn.Conv3d, nn.ConvTranspose3d): nn.Conv3d,
}
WIDTHS: dict[
    type[nn.Module] | tuple[type[nn.Module], ...], Callable[[Any], int]
] = {  # types of layers -> width of their output
    (nn.Linear, nn.Bilinear): lambda module: module.out_features,
    **dict.fromkeys(CONVOLUTIONS, lambda module: module.out_channels),
    (nn.Embedding, nn.EmbeddingBag): lambda module: module.embedding_dim,
    nn.MultiheadAttention: lambda module: module.embed_dim,
    nn.RNNBase: lambda module: (module.proj_size or module.hidden_size) * (1 + module.bidirectional),
    nn.RNNCellBase: lambda module: module.hidden_size,
}
WARPED = tuple(t for types in WIDTHS for t in (types if isinstance(types, tuple) else (types,)))


class Warp(nn.Module):
    """A warp, [batch, channels, ...] -> the same shape: `depth` layers, as in the authors' code.

    Each layer: batch norm if `norm`; a linear map or convolution; ReLU if `activation`; if `residual`, its input is
    added, followed by another batch norm if `norm`. With start="identity" the linear maps are the identity at first.
    """

    def __init__(
        self, like: nn.Module, start: str, depth: int, kernel: int, norm: bool, activation: bool, residual: bool
    ) -> None:
        super().__init__()
        width = next(width for types, width in WIDTHS.items() if isinstance(like, types))(like)
        convolution = next((made for types, made in CONVOLUTIONS.items() if isinstance(like, types)), None)
        self.maps = nn.ModuleList(
            nn.Linear(width, width) if convolution is None else convolution(width, width, kernel, padding=kernel // 2)
            for _ in range(depth)
        )
        self.norms_in = nn.ModuleList(Norm("batch", width) for _ in range(depth if norm else 0))
        self.norms_out = nn.ModuleList(Norm("batch", width) for _ in range(depth if norm and residual else 0))
        self.activation = activation
        self.residual = residual
        self.width = width
        self.axis = -1 if convolution is None else 1 - next(self.maps[0].parameters()).dim()  # of the channels
        self.ran = False  # whether forward has been called by the model
        self.to(next(like.parameters()))
        if start == "identity":
            self.start_as_identity()

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.maps):
            h = self.norms_in[number](x) if self.norms_in else x
            normed = bool(self.norms_out) or (bool(self.norms_in) and number < len(self.maps) - 1)
            h = before_norm(layer, h) if normed and isinstance(layer, nn.Conv2d) and not self.activation else layer(h)
            h = h.relu() if self.activation else h
            h = h + x if self.residual else h
            x = self.norms_out[number](h) if self.norms_out else h
        return x

    def start_as_identity(self) -> None:
        """Sets the layers' weights to the identity and their biases to zero."""
        for layer in self.maps:
            for parameter in layer.parameters():
                if parameter.dim() == 1:
                    nn.init.zeros_(parameter)
                elif isinstance(layer, nn.Linear):
                    nn.init.eye_(parameter)
                else:
                    nn.init.dirac_(parameter)


def make_warps(model: nn.Module, names: list[str], norm: bool, make: Callable[[nn.Module], Warp]) -> dict[str, Warp]:
    """A warp for the output of each named module, by the module's name; `run_warp` is the hook that runs it.

    Args:
        norm: whether the warps have batch norm, which needs 2-d convolutions.
        make: returns the warp for a layer's output.

    Raises:
        UserError: as `metarun.methods.warpgrad.warp` says.
    """
    modules = dict(model.named_modules())
    if len(set(names)) < len(names):
        raise UserError(f"warpgrad: after={names} names a module twice")
    warps: dict[str, Warp] = {}
    for name in names:
        if name not in modules:
            raise UserError(f"warpgrad: the model has no module {name!r} to put a warp layer behind")
        layers = list(warped_modules(modules[name]).values())
        if not layers:
            raise UserError(
                f"warpgrad behind {name!r}: the model has no convolution, linear, recurrent or attention layer there, "
                "which would say how wide a warp is; name another module"
            )
        if norm and not isinstance(layers[-1], (nn.Conv2d, nn.ConvTranspose2d)):
            raise UserError(f"warpgrad: norm=true needs 2-d convolutions, {name!r} ends in {type(layers[-1]).__name__}")
        warps[name] = make(layers[-1])
    return warps


def run_warp(name: str, layer: Warp, module: nn.Module, inputs: Any, output: Any) -> Any:
    """Forward hook that warps the module's output: the first of a tuple, and a recurrent network's hidden states."""
    warped = partial(warp_output, name, layer)
    if isinstance(module, nn.RNNBase):
        sequence, states = output
        directions = 1 + int(module.bidirectional)
        if isinstance(module, nn.LSTM):
            return warped(sequence), (warp_states(warped, states[0], directions), states[1])
        return warped(sequence), warp_states(warped, states, directions)
    if isinstance(output, tuple) and not isinstance(output, PackedSequence):
        return warped(output[0]), *output[1:]
    return warped(output)


def warp_states(warped: Callable[[Tensor], Tensor], states: Tensor, directions: int) -> Tensor:
    """Warps hidden states [layers * directions, ..., width], with the directions joined as in the network's output."""
    joined = torch.cat(states.unflatten(0, (-1, directions)).unbind(1), -1)
    return torch.stack(warped(joined).chunk(directions, -1), 1).flatten(0, 1)


def warp_output(name: str, layer: Warp, x: Any) -> Any:
    """Warps a tensor or a packed sequence. Raises UserError if module `name` gave another type or another width."""
    if isinstance(x, PackedSequence):
        return x._replace(data=warp_output(name, layer, x.data))
    if not isinstance(x, Tensor) or x.dim() < -layer.axis or x.shape[layer.axis] != layer.width:
        found = f"a tensor of shape {list(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise UserError(
            f"warpgrad: module {name!r} gives {found}, which a warp of {layer.width} channels cannot act on; name "
            "the modules to warp, after=[...]"
        )
    if not torch.compiler.is_compiling():
        layer.ran = True
    return layer(x)


def warped_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> module of the layers that a warp can follow."""
    return {name: module for name, module in called_modules(model).items() if isinstance(module, WARPED)}


def default_warp_sites(model: nn.Module) -> list[str]:
    """Names of the modules that warp layers follow by default. Raises UserError if there are none."""
    blocks = getattr(model, "blocks", None)
    if isinstance(blocks, nn.Module):
        return [f"blocks.{name}" for name, _ in blocks.named_children()]
    names = list(warped_modules(model))[:-1]
    if not names:
        raise UserError("warpgrad: the model has a single layer or none; warp layers stand between layers")
    return names
