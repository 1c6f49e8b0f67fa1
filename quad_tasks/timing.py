"""Wall time of a run's steps, kept beside its ledger; the time of interrupted attempts counts too."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from quad_tasks.storage.store import Store, open_store


@contextmanager
def timed(workspace: str, run: str, step: str) -> Iterator[None]:
    """Record how long the body took, in seconds, under the step's name, also when it fails."""
    started = time.perf_counter()
    try:
        yield
    finally:
        body = {"step": step, "seconds": time.perf_counter() - started}
        open_store(workspace).put(f"runs/{run}/times/{uuid4().hex}.json", json.dumps(body).encode())


def read_times(store: Store, run: str) -> dict[str, float]:
    """Return seconds spent in each step of a run, all attempts together."""
    total: dict[str, float] = {}
    for key in store.list(f"runs/{run}/times"):
        body = json.loads(store.get(key))
        total[body["step"]] = total.get(body["step"], 0.0) + body["seconds"]
    return total
