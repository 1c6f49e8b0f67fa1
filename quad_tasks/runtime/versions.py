"""Versions of what computes: part of a run's identity, and the same on every worker.

Other versions of these packages may give other numbers from the same inputs, so that a run goes on only with those it
began with, and a cluster's workers are refused where theirs differ from the driver's.
"""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from distributed import Client, Worker, WorkerPlugin

COMPUTING_PACKAGES = (
    "faiss-cpu",
    "numpy",
    "pyarrow",
    "quad-data",
    "scikit-learn",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
)


class VersionMismatch(RuntimeError):
    """A worker computes with other versions than the driver."""


def computing_versions() -> dict[str, str]:
    """Return the version of each package that computes, and Python's, by name."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in COMPUTING_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def describe_differences(expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    """Name the packages whose versions differ; empty where none does."""
    names = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    return ", ".join(
        f"{name} {found.get(name, 'missing')} in place of {expected.get(name, 'no version')}" for name in names
    )


class SameVersions(WorkerPlugin):  # type: ignore[misc]  # distributed has no types
    """Refuses a worker whose versions are not the driver's, also one that joins later."""

    name = "quad-same-versions"

    def __init__(self, expected: Mapping[str, str]) -> None:
        """Take the driver's versions."""
        self.expected = dict(expected)

    def setup(self, worker: Worker) -> None:
        """Compare the worker's own with them.

        Raises:
            VersionMismatch: they differ.
        """
        differences = describe_differences(self.expected, computing_versions())
        if differences:
            raise VersionMismatch(
                f"Dask worker {worker.address}: expected the driver's versions, got {differences}: install them there"
            )


def refuse_mixed_workers(client: Client) -> None:
    """Check that the scheduler and every worker of a cluster have the driver's versions.

    Raises:
        VersionMismatch: a worker computes with others.
        ValueError: Dask's own versions, or those of what it sends with, differ.
    """
    client.get_versions(check=True)
    client.register_plugin(SameVersions(computing_versions()))
