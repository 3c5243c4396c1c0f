"""Rank and world size of this process."""

import os
from typing import NamedTuple

RENDEZVOUS_ENV = "METARUN_JOIN"  # holds the rendezvous URL in processes that engine.workers starts


class Rank(NamedTuple):
    """Rank and world size in the run, and on this machine. Rank 0 is the leader, the others are its workers."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


SINGLE_PROCESS = Rank(0, 1, 0, 1)


def rank_from_env() -> Rank | None:
    """The rank that torchrun, or the leader, has set in the environment; None if this process was started alone."""
    values = [os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")]
    return None if None in values else Rank(*(int(value) for value in values if value is not None))
