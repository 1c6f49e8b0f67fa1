"""Requests as they are counted, against what an S3 server is asked by a run, and a store by the reads of a table."""

from collections import Counter
from datetime import datetime
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pytest
from s3_server import counting_s3
from small_pool import small_config, stored

from flows.select_data import select_data
from quad_tasks.commands.estimates.pieces import count_pieces
from quad_tasks.commands.estimates.requests import Run, count_requests, fitted
from quad_tasks.config.load import parse_config
from quad_tasks.config.schema import RunConfig
from quad_tasks.core.lm.token_features import feature_width
from quad_tasks.runtime.events import read_events
from quad_tasks.runtime.run import pinned_pool
from quad_tasks.storage import positions, tables
from quad_tasks.storage.store import Store, open_store

STAGES = ["model", "ingest", "embed", "cluster", "overlap", "fit", "bandit", "train", "publish"]
WITHIN = 1.5
Asked = tuple[float, str, str, str]
SMALL_PIECES = {
    "quad_tasks.storage.tables.PART_ROWS": 16,
    "quad_tasks.storage.tables.ROW_GROUP_ROWS": 16,
    "quad_tasks.stages.pool.sort_layout.PART_ROWS": 16,
    "quad_tasks.stages.pool.sort_layout.ROW_GROUP_ROWS": 16,
    "quad_tasks.stages.pool.sort_layout.GROUP_ROWS": 48,
    "quad_tasks.stages.pool.sort_layout.PIECE_ROWS": 40,
    "quad_tasks.stages.bandit.pool_prediction.BLOCK_DOCUMENTS": 64,
}
"""So that a run over a small pool has many of them. A part is one row group: of short texts several are read at once,
of real ones each by itself (`test_a_row_group_of_real_texts_is_a_range_of_its_own`)."""
ONE_STAGE = {"training__stages": 1, "training__frontier": [], "bandit__oversample": 1.6}


def run_on_s3(corpus, prefix: str, monkeypatch, **changes) -> tuple[RunConfig, list[Asked], list[Any], dict[str, Any]]:
    """Run over the small corpus on an S3 server; return the configuration, what the server was asked, events, pool."""
    names = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
    with counting_s3() as (address, asked):
        for name, value in (names | {"AWS_ENDPOINT_URL": address}).items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        client.close()
        config = parse_config(small_config(corpus, f"s3://bucket/{prefix}", **changes), "counted")
        asked.clear()
        select_data(config)
        during = list(asked)
        store = open_store(config.workspace)
        events = read_events(store, config.run)
        pool = stored(store, pinned_pool(store, config.run))
    return config, during, events, pool


def count_asked(asked, events) -> dict[str, int]:
    """Count requests by stage: each belongs to the first step that ends after it, the last ones to `publish`."""
    ends = [(datetime.fromisoformat(e["time"]).timestamp(), e["step"]) for e in events if e["event"] == "step_ended"]
    billed = [moment for moment, method, _, _ in asked if method != "DELETE"]
    return Counter(next((step for end, step in ends if moment <= end), "publish") for moment in billed)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("pieces", "changes"),
    [({}, {}), (SMALL_PIECES, ONE_STAGE)],
    ids=["two stages", "small pieces"],
)
def test_a_run_asks_each_stage_s_requests_within_a_factor(dask_client, corpus, tmp_path, monkeypatch, pieces, changes):
    for name, value in pieces.items():
        monkeypatch.setattr(name, value)
    config, asked, events, pool = run_on_s3(corpus, tmp_path.name, monkeypatch, **changes)
    rounds = [event for event in events if event["event"] == "round_committed"]
    run = Run(
        config=config.model_copy(update={"compute": config.compute.model_copy(update={"workers": 1})}),
        pieces=count_pieces(pool["documents"], pool["bytes"], len(pool["shards"]), pool["arms"]),
        documents=pool["documents"],
        stored_bytes=pool["bytes"] / 2,
        document_values=8 + feature_width(16),
        scored=sum(event["documents"] for event in rounds),
        chosen=sum(event["documents"] for event in events if event["event"] == "documents_selected"),
        rounds=len(rounds) - config.training.stages,
        reference_documents=12,
        factor_groups=1,
        covariance_bytes=10**5,
    )
    found = count_asked(asked, events)
    counted = {stage: sum(count_requests(stage, run)[:2]) for stage in STAGES}
    print({stage: (round(counted[stage]), found[stage]) for stage in STAGES})
    wrong = {s: (counted[s], found[s]) for s in STAGES if not 1 / WITHIN < counted[s] / found[s] < WITHIN}
    assert wrong == {}


@pytest.fixture
def part(monkeypatch):
    """A part of 256 documents of 1.4 kB in a store without a local path, and the ranges that are read of it."""
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list("abcdefghijklmnopqrstuvwxyz"), 6)) for _ in range(2000)]
    rows = {
        "id": [f"doc-{i}" for i in range(256)],
        "source": ["web"] * 256,
        "text": [" ".join(generator.choice(words, 200)) for _ in range(256)],
        "metadata": ["{}"] * 256,
        "n_tokens": [300] * 256,
        "n_bytes": [1400] * 256,
        "arm": [3] * 256,
        "shard": ["s"] * 256,
        "shard_row": list(range(256)),
        "order": generator.integers(0, 2**64, 256, dtype=np.uint64).tolist(),
        "embedding": generator.normal(size=(256, 128)).astype(np.float32).tolist(),
        "token_features": generator.normal(size=(256, 67)).astype(np.float32).tolist(),
    }
    store, schema, ranges = open_store("memory://part"), tables.arm_row_schema(128, 67), []
    batches = pa.Table.from_pydict(rows, schema).to_batches()
    tables.write_table_stream(store, "part.parquet", schema, batches, tables.ROW_GROUP_ROWS)
    read_range = Store.read_range

    def counted(self, key, start, end):
        ranges.append((start, end))
        return read_range(self, key, start, end)

    monkeypatch.setattr(Store, "read_range", counted)
    return store, ranges


@pytest.mark.parametrize(
    ("columns", "of_a_row_group"),
    [(["n_tokens"], 1), (["text"], 1), (["embedding", "n_tokens", "n_bytes", "arm", "token_features"], 1),
     (["source", "n_tokens"], 2)],
)  # fmt: skip
def test_a_row_group_of_real_texts_is_a_range_of_its_own(part, columns, of_a_row_group):
    store, ranges = part
    positions.read_table(store, "part.parquet", columns)
    assert len(ranges) == 1 + of_a_row_group * 4  # its footer, and four row groups


def test_batches_read_each_column_of_a_row_group_by_itself(part):
    store, ranges = part
    list(tables.iter_batches(store, "part.parquet", ["id", "text"]))
    assert len(ranges) == 1 + 2 * 4


def test_a_large_pool_s_requests_grow_with_it(tmp_path):
    config = parse_config(small_config(tmp_path, "s3://bucket/w", clustering__arms=5774), "grow")

    def count(documents: int) -> dict[str, float]:
        pieces = count_pieces(documents, 1400 * documents, documents // 10**5, 5774)
        run = Run(config, pieces, documents, 700.0 * documents, 195, 1000, 1000, 100, 50, 1, 10**6)
        return {stage: count_requests(stage, run).reads for stage in STAGES}

    one, ten, hundred = (count(10**power) for power in (7, 8, 9))
    assert ten["overlap"] == pytest.approx(10 * one["overlap"], rel=0.05)
    assert ten["overlap"] > 2 * 10**8 / tables.ROW_GROUP_ROWS
    assert ten["cluster"] == pytest.approx(10 * one["cluster"], rel=0.2)
    assert hundred["cluster"] == pytest.approx(100 * one["cluster"], rel=0.3)
    assert ten["fit"] < 1.2 * one["fit"]  # a sample of the pool


def test_a_run_that_predicts_nothing_reads_no_features(tmp_path):
    pieces = count_pieces(10**7, 10**10, 100, 6)
    counted = {}
    for mode, share in (("instance", 0.0), ("predicted", 0.75)):
        settings = {"selection__mode": mode, "bandit__active_share": share, "selection__general_share": 0}
        config = parse_config(small_config(tmp_path, "w", **settings), "modes")
        run = Run(config, pieces, 10**7, 5e9, 195, 400.0, 10, 30, 50, 1, 10**6)
        counted[mode] = count_requests("bandit", run).reads
        assert (fitted(run) == []) == (mode == "instance")
    assert counted["instance"] < 2 * pieces.row_groups < counted["predicted"] / 4


def test_regressions_are_due_when_half_as_many_documents_again_are_scored(tmp_path):
    config = parse_config(small_config(tmp_path, "w", training__stages=1, bandit__pilot_documents=100), "due")
    pieces = count_pieces(10**4, 10**6, 10, 6)
    run = Run(config, pieces, 10**4, 5e5, 100, 400.0, 10, 30, 50, 1, 10**6)  # 30 rounds of 10 documents
    assert fitted(run) == [100, 150, 230, 350]
