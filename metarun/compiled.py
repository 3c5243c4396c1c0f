"""The meta-gradient of a meta-batch as one compiled function: for small networks, whose time is otherwise Python's."""

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

from metarun.meta import Measures, MetaLearner, meta_gradient
from metarun.methods import Parameters
from metarun.task import Task

log = logging.getLogger(__name__)

Gradient = Callable[[Parameters, Task, Tensor, Tensor | None], tuple[Parameters, Tensor, Measures]]
Key = tuple[bool, bool, tuple[torch.Size, ...]]  # second order, multi-step loss, shapes of a meta-batch


def has_compiler() -> bool:
    """Whether there is the C++ compiler that torch calls."""
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is not None


class CompiledGradient:
    """`meta_gradient` with vectorised tasks, compiled at the first call of each order, loss and shape of a meta-batch.

    Where compiling fails, as it does without Python's headers, the log says so and it goes on uncompiled.
    """

    def __init__(self, learner: MetaLearner) -> None:
        torch.compiler.reset()  # it counts the functions of earlier runs of this process, and stops at eight
        self.learner = learner
        self.functions: dict[Key, Gradient] = {}
        self.failed = False

    def compiles(self, second_order: bool, multi_step: bool = False) -> bool:
        """Whether the first call of that order and loss is still to come."""
        return not self.failed and all(key[:2] != (second_order, multi_step) for key in self.functions)

    def __call__(
        self,
        second_order: bool,
        parameters: Parameters,
        tasks: Task,
        noise: Tensor,
        loss_weights: Tensor | None = None,
    ) -> Any:
        key = (second_order, loss_weights is not None, tuple(side.shape for side in tasks))
        arguments = (parameters, tasks, noise, loss_weights)
        if self.failed:
            return self.eager(second_order)(*arguments)
        with torch.no_grad():  # the gradient is taken within
            return self.functions[key](*arguments) if key in self.functions else self.first(key, *arguments)

    def first(self, key: Key, *arguments: Any) -> Any:
        """The call that compiles."""
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of a CUDA nobody asked for
        began = time.perf_counter()
        self.functions[key] = torch.compile(self.eager(key[0]), fullgraph=True, dynamic=False)
        try:
            found = self.functions[key](*arguments)
        except Exception as error:  # of torch's compiler, the C++ compiler or the linker; anything else comes again
            self.failed = True
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            log.warning("the outer step could not be compiled and is computed without: %s", reason)
            return self.eager(key[0])(*arguments)
        log.info("the outer step is compiled, in %.0f s", time.perf_counter() - began)
        return found

    def eager(self, second_order: bool) -> Gradient:
        learner = replace(self.learner, use_second_order=second_order)

        def gradient(
            parameters: Parameters, tasks: Task, noise: Tensor, loss_weights: Tensor | None
        ) -> tuple[Parameters, Tensor, Measures]:
            return meta_gradient(learner, parameters, tasks, noise, vectorised=True, loss_weights=loss_weights)

        return gradient
