"""A Dask cluster on Coiled: print the address for `compute.dask_address`, then stay until ended. Not run by us.

    pip install coiled; coiled login
    python infra/coiled_cluster.py tls --workers 64 --image REGISTRY/quad-cpu:0.2.0

The image is that of `Dockerfile.cpu`, pushed to a registry, so that client and workers have the same versions. Coiled
makes the cluster's certificate; it is written to the folder given, where `quad` finds it (docs/guides/dask.md).
Checked against the source of coiled 1.135.6.
"""

import argparse
import signal
from pathlib import Path

from coiled import Cluster


def main() -> None:
    """Start a scheduler and workers of one task slot each, and keep their certificate."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tls", type=Path, help="folder for cert.pem and key.pem, yours alone")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--image", required=True)
    parser.add_argument("--worker-memory", default="4GiB", help="`quad plan` says how much a worker needs")
    given = parser.parse_args()
    with Cluster(
        n_workers=given.workers,
        container=given.image,
        worker_cpu=1,
        worker_memory=given.worker_memory,
        worker_options={"nthreads": 1, "memory_limit": 0},
        scheduler_memory="4GiB",
    ) as cluster:
        given.tls.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, text in (("cert", cluster.security.tls_scheduler_cert), ("key", cluster.security.tls_scheduler_key)):
            file = given.tls / f"{name}.pem"
            file.touch(mode=0o600)
            file.write_text(text)
        print(cluster.scheduler_address, flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
