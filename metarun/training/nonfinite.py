"""Diagnoses an outer step with a non-finite loss or gradient."""

import math

from torch import Tensor
from torch.nn.utils import get_total_norm

from metarun.methods import Parameters

MAX_NAMED = 3  # tasks and layers that a message names


def nonfinite_message(losses: Tensor, grads: Parameters, first: int) -> str | None:
    """The tasks and layers whose loss or gradient is non-finite, in words, or None if all are finite.

    Args:
        losses: query losses [tasks] of a meta-batch.
        grads: the meta-gradient.
        first: index of the meta-batch's first training task.
    """
    entries = [grad for part in grads for grad in part.values()]
    if math.isfinite(float(losses.sum() + get_total_norm(entries))):  # one transfer from the device in the usual case
        return None
    if losses.isfinite().all() and all(bool(grad.isfinite().all()) for grad in entries):
        return None  # the sum overflowed, but every entry is finite
    tasks = f"training tasks {first} to {first + len(losses) - 1}"
    bad_tasks = [index for index, loss in enumerate(losses.tolist()) if not math.isfinite(loss)]
    if bad_tasks:
        names = ", ".join(str(first + index) for index in bad_tasks[:MAX_NAMED])
        names += ", ..." if len(bad_tasks) > MAX_NAMED else ""
        problem = f"the loss is {float(losses[bad_tasks[0]])} for {len(bad_tasks)} of them ({names})"
    else:
        problem = "the gradient is not finite"
    sizes = max_abs_grad_by_layer(grads)
    largest = sorted(sizes.items(), key=lambda item: -item[1] if math.isfinite(item[1]) else -math.inf)[:MAX_NAMED]
    return f"{tasks}: {problem}; largest gradients: {', '.join(f'{layer} {size:.2g}' for layer, size in largest)}"


def max_abs_grad_by_layer(grads: Parameters) -> dict[str, float]:
    """The largest absolute gradient of each module's parameters, by module name; NaN if a gradient contains NaN."""
    sizes: dict[str, float] = {}
    for part in grads:
        for name, grad in part.items():
            layer = name.rpartition(".")[0] or name
            size = float(grad.abs().max()) if grad.numel() else 0.0
            previous = sizes.get(layer, 0.0)
            sizes[layer] = size if math.isnan(size) or size > previous else previous
    return sizes
