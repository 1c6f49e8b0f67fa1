"""A selection is the same bytes whatever made it: how many workers, how large parts and pieces are, and where they lie.

Two presets and two ways to select, drawn from a seed: in this process with the sizes as shipped and the workspace on a
local folder, and on two workers, processes of their own, with small sizes and the workspace on an S3 server.
"""

import importlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import dask
import pytest
from distributed import Client, LocalCluster
from s3_server import running_s3
from small_pool import small_config

from flows.select_data import select_data
from quad_tasks.config.load import parse_config
from quad_tasks.stages.bandit.ledger import read_choice
from quad_tasks.storage.keys import choice_key
from quad_tasks.storage.store import open_store

SEED = 0
PRESETS, MODES = ["paper", "released", "thompson", "contextual"], ["predicted", "instance", "cluster"]
SORTED, TABLES = "quad_tasks.stages.pool.sort_layout", "quad_tasks.storage.tables"
SIZES = {
    f"{TABLES}.ROW_GROUP_ROWS": 16, f"{SORTED}.ROW_GROUP_ROWS": 16, f"{SORTED}.PART_ROWS": 32,
    f"{SORTED}.GROUP_ROWS": 48, f"{SORTED}.PIECE_ROWS": 40, f"{SORTED}.SPREAD": 3, f"{SORTED}.HELD_BYTES": 10_000,
    "quad_tasks.stages.pool.find_duplicates.PARTITION_DOCUMENTS": 50,
    "quad_tasks.stages.pool.measure_drift.RANGE_DOCUMENTS": 50,
    "quad_tasks.stages.bandit.pool_prediction.BLOCK_DOCUMENTS": 23,
    "quad_tasks.stages.bandit.pool_prediction.READ_DOCUMENTS": 5,
    "quad_tasks.stages.bandit.cost.READ_DOCUMENTS": 3,
}  # fmt: skip


def set_sizes(sizes: dict[str, int]) -> dict[str, int]:
    """Set constants of the product in this process, by their dotted names; return what they were."""
    before = {}
    for dotted, value in sizes.items():
        module, name = dotted.rsplit(".", 1)
        before[dotted] = getattr(importlib.import_module(module), name)
        setattr(importlib.import_module(module), name, value)
    return before


@contextmanager
def sizes_of(client: Client, sizes: dict[str, int]) -> Iterator[None]:
    """Give this process and the workers other sizes for a while."""
    before = set_sizes(sizes)
    client.run(set_sizes, sizes)
    try:
        yield
    finally:
        set_sizes(before)
        client.run(set_sizes, before)


@pytest.fixture
def bucket(monkeypatch) -> Iterator[str]:
    """An empty bucket of an S3 server, which workers started later know too."""
    with running_s3() as address:
        names = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in (names | {"AWS_ENDPOINT_URL": address}).items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        client.close()
        yield "s3://bucket/workspace"


@pytest.fixture
def two_workers(bucket) -> Iterator[Client]:
    """Two workers, each a process of its own."""
    local = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "memory_limit": 0}
    with (
        dask.config.set({"distributed.scheduler.worker-ttl": None, "distributed.worker.profile.enabled": False}),
        LocalCluster(**local, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        yield client


def selected(corpus, workspace: str, **changes: Any) -> str:
    """Run up to a selection of one stage; return the digest of its table's bytes."""
    changes = {"training__stages": 1, "training__frontier": [], "selection__general_share": 0.25} | changes
    config = parse_config(small_config(corpus, workspace, **changes), changes["run"])
    select_data(config, until="bandit")
    return read_choice(open_store(workspace), choice_key(config.run, 0, "selected")).sha256


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_selection_is_the_same_bytes_whatever_made_it(dask_client, two_workers, bucket, corpus, tmp_path):
    drawn = random.Random(SEED)
    pairs = list(zip(drawn.sample(PRESETS, 2), drawn.sample(MODES, 2), strict=True))
    runs = [{"run": "-".join(pair), "bandit__preset": pair[0], "selection__mode": pair[1]} for pair in pairs]
    with dask_client.as_current():
        expected = [selected(corpus, str(tmp_path), **changes) for changes in runs]
    with two_workers.as_current(), sizes_of(two_workers, SIZES):
        assert len(two_workers.run(int)) == 2
        assert [selected(corpus, bucket, **changes) for changes in runs] == expected, pairs
    assert len(set(expected)) > 1
