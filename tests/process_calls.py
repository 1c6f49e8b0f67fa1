"""What tests call in other processes: importable there by a name that no installed package shares."""

import os

import pyarrow as pa
import torch
from small_pool import round_info

from quad_tasks.storage.rounds import RoundAlreadyCommitted, commit_round
from quad_tasks.storage.store import Store


def commit_round_of_one(store: Store) -> bool:
    """Commit round 0 of run `r`; say whether this process did."""
    try:
        commit_round(store, "r", 0, 0, {"pulls": pa.table({"arm": [0]})}, round_info(documents=os.getpid()))
    except RoundAlreadyCommitted:
        return False
    return True


def fail_in_second(message, processes):
    """Fail in the second process, while the first waits for it."""
    if processes.rank == 1:
        raise ValueError(message)
    torch.distributed.barrier()
