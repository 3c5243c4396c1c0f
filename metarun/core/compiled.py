"""Ahead-of-time compilation of the outer step, for small networks, whose time is mostly Python's overhead."""

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from metarun.core.forward import MetaLearner
from metarun.types import Task

log = logging.getLogger(__name__)

Function = Callable[..., Any]  # (meta-batch, further trees of tensors) -> anything
Key = tuple[bool, bool, tuple[torch.Size, ...]]  # (second order, multi-step loss, shapes of the meta-batch)


def has_compiler() -> bool:
    """Whether the C++ compiler that torch calls is installed."""
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is not None


class CompiledOuterStep:
    """The function that `make` builds for a meta-learner, compiled at the first call for each order, loss and shape.

    If compilation fails, for example without Python's headers, a warning is logged and the function runs uncompiled.
    """

    def __init__(self, learner: MetaLearner, make: Callable[[MetaLearner], Function]) -> None:
        torch.compiler.reset()  # otherwise functions of earlier runs count towards torch's limit of eight
        self.learner, self.make = learner, make
        self.functions: dict[Key, Function] = {}
        self.failed = False

    def needs_compilation(self, second_order: bool, multi_step: bool = False) -> bool:
        """Whether the next call with that order and loss will compile."""
        return not self.failed and all(key[:2] != (second_order, multi_step) for key in self.functions)

    def __call__(self, second_order: bool, tasks: Task, *others: Any, loss_weights: Tensor | None = None) -> Any:
        """Calls the function with `tasks`, `others` and `loss_weights`, which are tensors or trees of tensors."""
        others = (*others, loss_weights)
        key = (second_order, loss_weights is not None, tuple(side.shape for side in tasks))
        with torch.no_grad():  # the function computes its gradients itself
            if key not in self.functions:
                self.functions[key] = self.function(second_order, tasks, *others)
            return self.functions[key](tasks, *others)

    def function(self, second_order: bool, *arguments: Any) -> Function:
        """The function compiled for arguments of these shapes, or uncompiled if compilation has failed."""
        eager = self.make(replace(self.learner, use_second_order=second_order))
        if self.failed:
            return eager
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of missing CUDA
        began = time.perf_counter()
        try:
            compiled = aot_compile(eager, arguments)
        except Exception as error:  # from torch's compiler, the C++ compiler or the linker; any other recurs in eager
            self.failed = True
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            log.warning("the outer step could not be compiled and is computed without: %s", reason)
            return eager
        log.info("the outer step is compiled, in %.0f s", time.perf_counter() - began)
        return compiled


def aot_compile(function: Function, arguments: tuple[Any, ...]) -> Function:
    """Compiles `function` for arguments of these shapes; torch's guards, a fifth of a step's time, are off."""
    compiled = torch.compile(function, fullgraph=True, dynamic=False).aot_compile((arguments, {}))  # pyright: ignore[reportFunctionMemberAccess]
    compiled.disable_guard_check()
    return compiled
