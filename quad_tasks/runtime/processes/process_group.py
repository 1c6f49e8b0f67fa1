"""Run a function in several processes of this machine that share one training, on a GPU machine a device each.

The processes meet through a file and talk on loopback, by NCCL between GPUs and by Gloo between CPUs. If one of them
ends badly, or this process is killed, all end. This file is also the program that starts them, since a worker of Dask
may have no children of `multiprocessing`.
"""

import os
import pickle
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed
import torch.multiprocessing

from quad_tasks.core.lm.model import pick_device
from quad_tasks.core.lm.training import Processes
from quad_tasks.runtime.processes.child_process import ChildFailed, run_child

Argument = TypeVar("Argument")
CALL, MEETING = "call.pickle", "meeting"


def run_in_group(
    function: Callable[[Argument, Processes], Any],
    argument: Argument,
    count: int,
    device: str,
    say: Callable[[str], object],
) -> None:
    """Run a function once in each of `count` processes that are joined in torch's default process group.

    Args:
        function: of a module; it is given the argument and which of the processes it runs in.
        argument: can be pickled.
        count: processes.
        device: as configured; on GPUs process n takes device n.
        say: called with each line of what they print.

    Raises:
        ValueError: there are fewer devices than processes.
        torch.OutOfMemoryError: the memory of a device was too small.
        ChildFailed: one of them ended badly: the message holds its last lines.
    """
    found = pick_device(device)
    if found == "cuda" and torch.cuda.device_count() < count:
        raise ValueError(
            f"compute.training_processes: expected as many CUDA devices as processes, {count}, "
            f"found {torch.cuda.device_count()}"
        )
    with tempfile.TemporaryDirectory(prefix="quad-group-") as place:
        Path(place, CALL).write_bytes(pickle.dumps((function, argument)))
        try:
            run_child([sys.executable, "-m", __name__, place, str(count), found], None, say)
        except ChildFailed as error:
            if "torch.OutOfMemoryError: " in str(error):
                raise torch.OutOfMemoryError(str(error).rpartition("torch.OutOfMemoryError: ")[2]) from None
            raise ChildFailed(f"compute.training_processes, {count} processes on {found}: {error}") from None


def join_group(rank: int, place: str, count: int, device: str) -> None:
    """Join the group as process `rank`, run the function, and leave."""
    if device == "cuda":
        torch.cuda.set_device(rank)
    else:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    meeting = Path(place, MEETING).as_uri()
    backend = "nccl" if device == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, init_method=meeting, rank=rank, world_size=count)
    function, argument = pickle.loads(Path(place, CALL).read_bytes())  # written by the process that started this one
    function(argument, Processes(rank, count))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    start: Callable[..., object] = torch.multiprocessing.spawn  # type: ignore[attr-defined]
    start(join_group, (sys.argv[1], int(sys.argv[2]), sys.argv[3]), int(sys.argv[2]))
