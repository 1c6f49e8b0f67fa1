"""The Dask cluster a flow computes on: one by address, or a local one for as long as the flow runs."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import dask
from distributed import Client, LocalCluster

from quad_tasks.config.compute import ComputeConfig
from quad_tasks.runtime.check_environment import scheduler_address
from quad_tasks.runtime.processes.worker_memory import current_client
from quad_tasks.runtime.progress import working
from quad_tasks.runtime.versions import refuse_mixed_workers

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

MEMORY_VARIABLES = {"MALLOC_ARENA_MAX": "2", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
"""Of workers. glibc keeps an arena per thread: scoring then holds twice what it uses. In place of Dask's own default,
MALLOC_TRIM_THRESHOLD_=65536, which gives every large tensor back to the system: encoders run at .6 of their rate.
oneDNN keeps code for 1,024 products, one for each shape of a batch: a training of 135M parameters grew by gigabytes."""


@contextmanager
def _hidden(names: Sequence[str]) -> Iterator[None]:
    """Take variables out of the environment for a while: what Dask finds there goes before what it is told."""
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def dask_cluster(compute: ComputeConfig) -> Iterator[Client]:
    """Give the flow a Dask client: the one a flow around it opened, else one by address, else a local cluster's.

    Workers of a local cluster are processes of one task slot each, with `threads_per_worker` BLAS threads, whatever the
    environment says of these. They and the scheduler listen on loopback, where every user of the machine may connect,
    and run what they are sent: they speak TLS with certificates that are made for this cluster alone and stay in its
    processes.
    """
    existing = current_client()
    if existing is not None:
        yield existing
        return
    address = scheduler_address(compute)
    if address:
        with working("connect to the Dask cluster"):
            client = Client(address)
        with client:
            refuse_mixed_workers(client)
            yield client
        return
    environment = {name: str(compute.threads_per_worker) for name in THREAD_VARIABLES} | MEMORY_VARIABLES
    settings = {
        "distributed.nanny.pre-spawn-environ": environment,
        "distributed.worker.memory.terminate": False,
        "distributed.worker.daemon": True,
    }
    workers = "1 worker" if compute.workers == 1 else f"{compute.workers} workers"
    with dask.config.set(settings):
        with working(f"start {workers}"), _hidden(THREAD_VARIABLES):
            cluster = LocalCluster(
                n_workers=compute.workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address="127.0.0.1:0",
                memory_limit=0,
                security=True,
            )
        with cluster, Client(cluster) as client:
            yield client
