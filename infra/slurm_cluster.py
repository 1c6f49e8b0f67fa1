"""A Dask cluster whose workers are SLURM jobs: print the address for `compute.dask_address`, then stay until ended.

pip install -c constraints.txt dask-jobqueue
python infra/bootstrap.py certificates ~/tls            # on a file system that every node has, yours alone
python infra/slurm_cluster.py ~/tls --jobs 32           # on a node that stays, e.g. in tmux
python infra/slurm_cluster.py ~/tls --print             # the job script alone; needs no SLURM
"""

import argparse
import signal

from dask_jobqueue import SLURMCluster
from distributed.security import Security

ENVIRONMENT = ("OMP_NUM_THREADS=1", "MALLOC_TRIM_THRESHOLD_=67108864", "MALLOC_MMAP_THRESHOLD_=33554432")
"""Of workers; the sizes keep Dask from giving every large tensor back to the system."""


def main() -> None:
    """Start a scheduler here and ask SLURM for workers, one process and one task slot a core."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tls", help="folder of cert.pem and key.pem")
    parser.add_argument("--jobs", type=int, default=8, help="SLURM jobs")
    parser.add_argument("--cores", type=int, default=8, help="workers of each job")
    parser.add_argument("--memory-gib", type=int, default=4, help="of each worker; `quad plan` says how much it needs")
    parser.add_argument("--time", default="08:00:00", help="of each job")
    parser.add_argument("--port", type=int, default=8786, help="of the scheduler")
    parser.add_argument("--print", action="store_true", help="print the job script and end")
    given = parser.parse_args()
    certificate, key = f"{given.tls}/cert.pem", f"{given.tls}/key.pem"
    roles = {f"tls_{role}_{kind}": f for role in ("scheduler", "worker", "client")
             for kind, f in (("cert", certificate), ("key", key))}  # fmt: skip
    with SLURMCluster(
        cores=given.cores,
        processes=given.cores,
        memory=f"{given.cores * given.memory_gib} GiB",
        walltime=given.time,
        job_script_prologue=[f"export {setting}" for setting in ENVIRONMENT],
        worker_extra_args=["--memory-limit", "0"],  # SLURM holds a job to its memory; Dask counts torch's wrongly
        protocol="tls://",
        security=Security(tls_ca_file=certificate, require_encryption=True, **roles),
        scheduler_options={"port": 0 if given.print else given.port, "dashboard_address": "127.0.0.1:0"},
    ) as cluster:
        if given.print:
            print(cluster.job_script())
            return
        cluster.scale(jobs=given.jobs)
        print(cluster.scheduler_address, flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
