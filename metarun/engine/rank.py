"""Which of a run's processes this one is."""

from __future__ import annotations

import os
from typing import NamedTuple

RENDEZVOUS_ENV = "METARUN_JOIN"  # where the processes that engine.workers starts meet; torchrun's have another place


class Rank(NamedTuple):
    """Number and count of processes, in all and on this machine. Rank 0 leads, the others do what it asks."""

    rank: int
    size: int
    local_rank: int
    local_size: int


SINGLE_PROCESS = Rank(0, 1, 0, 1)


def rank_from_env() -> Rank | None:
    """What torchrun, or a process that leads, has put into the environment."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(name in os.environ for name in names):
        return None
    return Rank(*(int(os.environ[name]) for name in names))
