"""What is wrong with an outer step whose loss or gradient is not finite, in words."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.utils import get_total_norm

from metarun.methods import Parameters

NAMED = 3  # layers and tasks that a message names


def nonfinite_message(losses: Tensor, gradient: Parameters, first: int) -> str | None:
    """The tasks and layers to blame, or None where all is finite; losses: [tasks], of training tasks `first` and on."""
    entries = [entry for part in gradient for entry in part.values()]
    if math.isfinite(float(losses.sum() + get_total_norm(entries))):  # one look at the sum of all
        return None
    if losses.isfinite().all() and all(bool(entry.isfinite().all()) for entry in entries):
        return None  # large, but each is finite
    sizes = max_abs_grad_by_layer(gradient)
    broken = [first + place for place, loss in enumerate(losses.tolist()) if not math.isfinite(loss)]
    tasks = f"{first} to {first + len(losses) - 1}"
    told = f"training tasks {tasks}: the gradient is not finite"
    if broken:
        few = ", ".join(map(str, broken[:NAMED])) + (", ..." if len(broken) > NAMED else "")
        one = float(losses[broken[0] - first])
        told = f"training tasks {tasks}: the loss is {one} for {len(broken)} of them ({few})"
    worst = sorted(sizes.items(), key=lambda entry: -entry[1] if math.isfinite(entry[1]) else -math.inf)
    return f"{told}; largest gradients: {', '.join(f'{layer} {size:.2g}' for layer, size in worst[:NAMED])}"


def max_abs_grad_by_layer(gradient: Parameters) -> dict[str, float]:
    """The largest absolute entry below each module; not a number where one is none."""
    sizes: dict[str, float] = {}
    for part in gradient:
        for name, entry in part.items():
            layer = name.rpartition(".")[0] or name
            size = float(entry.abs().max()) if entry.numel() else 0.0
            before = sizes.get(layer, 0.0)
            sizes[layer] = size if math.isnan(size) or size > before else before
    return sizes
