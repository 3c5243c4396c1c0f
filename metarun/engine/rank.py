"""Rank and world size of this process."""

from __future__ import annotations

import os
from typing import NamedTuple

RENDEZVOUS_ENV = "METARUN_JOIN"  # set for the processes that engine.workers starts: the URL where they meet


class Rank(NamedTuple):
    """Rank and world size of a process, among all processes of the run and among those on this machine.

    The process of rank 0 is the leader, the others are its workers.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


SINGLE_PROCESS = Rank(0, 1, 0, 1)


def rank_from_env() -> Rank | None:
    """The rank that torchrun, or the leader, has set in the environment; None if this process was started alone."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(name in os.environ for name in names):
        return None
    return Rank(*(int(os.environ[name]) for name in names))
