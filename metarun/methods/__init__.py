"""The methods, by the name that `method=` takes."""

from metarun.methods.maml import MAML
from metarun.methods.slots import Method, Parameters, Tensors

METHODS: dict[str, Method] = {"maml": MAML}

__all__ = ["MAML", "METHODS", "Method", "Parameters", "Tensors"]
