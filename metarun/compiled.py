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
from torch.utils._pytree import tree_map

from metarun.meta import Measures, MetaLearner, meta_gradient
from metarun.methods import Parameters
from metarun.task import Task

log = logging.getLogger(__name__)

Gradient = Callable[[Parameters, Task, Tensor], tuple[Parameters, Tensor, Measures]]


def has_compiler() -> bool:
    """Whether there is the C++ compiler that torch calls."""
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is not None


class CompiledGradient:
    """`meta_gradient` with vectorised tasks, compiled at the first call of each order and number of tasks.

    Where compiling fails, as it does without Python's headers, the log says so and it goes on uncompiled.
    """

    def __init__(self, learner: MetaLearner) -> None:
        self.learner = learner
        self.functions: dict[bool, Gradient] = {}
        self.called: set[tuple[bool, int]] = set()
        self.failed = False

    def compiles(self, second_order: bool, count: int) -> bool:
        """Whether a call with that order and number of tasks compiles first."""
        return not self.failed and (second_order, count) not in self.called

    def __call__(self, second_order: bool, parameters: Parameters, tasks: Task, noise: Tensor) -> Any:
        learner = replace(self.learner, use_second_order=second_order)
        if not self.failed:
            parameters = tree_map(torch.detach, parameters)
            if second_order not in self.functions:
                self.functions[second_order] = compiled(learner)
            function = self.functions[second_order]
            if not self.compiles(second_order, len(noise)):
                return function(parameters, tasks, noise)
            self.called.add((second_order, len(noise)))
            began = time.perf_counter()
            try:
                found = function(parameters, tasks, noise)
            except Exception as error:  # of torch's compiler, the C++ compiler or the linker; anything else comes again
                self.failed = True
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                log.warning("the outer step could not be compiled and is computed without: %s", reason)
            else:
                log.info("the outer step is compiled, in %.0f s", time.perf_counter() - began)
                return found
        return meta_gradient(learner, parameters, tasks, noise, vectorised=True)


def compiled(learner: MetaLearner) -> Gradient:
    quiet = logging.getLogger("torch.utils.cpp_extension")
    quiet.setLevel(logging.ERROR)  # it warns of a CUDA that nobody asked for

    def gradient(parameters: Parameters, tasks: Task, noise: Tensor) -> tuple[Parameters, Tensor, Measures]:
        return meta_gradient(learner, parameters, tasks, noise, vectorised=True)

    return torch.compile(gradient, fullgraph=True, dynamic=False)
