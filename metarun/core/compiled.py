"""Functions of a meta-batch, compiled: for small networks, whose time is otherwise Python's."""

from __future__ import annotations

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

Function = Callable[..., Any]  # of a meta-batch and further tensors
Key = tuple[bool, bool, tuple[torch.Size, ...]]  # second order, multi-step loss, shapes of a meta-batch


def has_compiler() -> bool:
    """Whether there is the C++ compiler that torch calls."""
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is not None


class CompiledOuterStep:
    """What `make` returns for a meta-learner, compiled at the first call of each order, loss and shape.

    The same object makes one thing only. Where compiling fails, as it does without Python's headers, the log says so
    and it goes on uncompiled.
    """

    def __init__(self, learner: MetaLearner, make: Callable[[MetaLearner], Function]) -> None:
        torch.compiler.reset()  # it counts the functions of earlier runs of this process, and stops at eight
        self.learner, self.make = learner, make
        self.functions: dict[Key, Function] = {}
        self.failed = False

    def needs_compilation(self, second_order: bool, multi_step: bool = False) -> bool:
        """Whether the first call of that order and loss is still to come."""
        return not self.failed and all(key[:2] != (second_order, multi_step) for key in self.functions)

    def __call__(self, second_order: bool, tasks: Task, *others: Any, loss_weights: Tensor | None = None) -> Any:
        """The function of `tasks`, `others` and `loss_weights`, which are tensors or trees of them."""
        others = (*others, loss_weights)
        key = (second_order, loss_weights is not None, tuple(side.shape for side in tasks))
        with torch.no_grad():  # whatever is differentiated is so within
            if key not in self.functions:
                self.functions[key] = self.function(second_order, tasks, *others)
            return self.functions[key](tasks, *others)

    def function(self, second_order: bool, *arguments: Any) -> Function:
        """Compiled for such arguments, or as it is."""
        eager = self.make(replace(self.learner, use_second_order=second_order))
        if self.failed:
            return eager
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of a CUDA nobody asked for
        began = time.perf_counter()
        try:
            found = aot_compile(eager, arguments)
        except Exception as error:  # of torch's compiler, the C++ compiler or the linker; anything else comes again
            self.failed = True
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            log.warning("the outer step could not be compiled and is computed without: %s", reason)
            return eager
        log.info("the outer step is compiled, in %.0f s", time.perf_counter() - began)
        return found


def aot_compile(function: Function, arguments: tuple[Any, ...]) -> Function:
    """Compiled for arguments of these shapes alone, which it then takes unseen: looking takes a fifth of the time."""
    found = torch.compile(function, fullgraph=True, dynamic=False).aot_compile((arguments, {}))  # pyright: ignore[reportFunctionMemberAccess]
    found.disable_guard_check()
    return found
