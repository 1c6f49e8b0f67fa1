"""Stage: choose from what was scored, publish the selection, and prove that every document is accounted for.

A stage's choice and the published selection each become visible by a manifest written last. Every document that came
in is in exactly one of: set aside (reason), unpulled, rejected (reason), selected.
"""

import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa

from quad_tasks.choose import read_chosen
from quad_tasks.compute import step
from quad_tasks.config import RunConfig
from quad_tasks.storage import pool as tables
from quad_tasks.storage import rounds
from quad_tasks.storage.manifest import digest, read_manifest, write_manifest
from quad_tasks.storage.positions import read_positions, read_table
from quad_tasks.storage.store import Store, open_store

SELECTION_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("text", pa.string()),
        ("metadata", pa.string()),
        ("n_tokens", pa.int64()),
        ("arm", pa.int32()),
        ("stage", pa.int32()),
        ("round", pa.int32()),
        ("influence", pa.float64()),
        ("scored", pa.bool_()),
    ]
)
BLOCK_ROWS = 1024


def read_scores(store: Store, run: str, stages: int) -> pa.Table:
    """Read every score of a run's first `stages` stages, with `stage` and `round`."""
    pieces = [
        rounds.read_round_table(store, committed, "scores")
        .append_column("stage", pa.array(np.full(committed.tables["scores"].rows, number, np.int32)))
        .append_column("round", pa.array(np.full(committed.tables["scores"].rows, committed.round, np.int32)))
        for number in range(stages)
        for committed in rounds.list_rounds(store, run, number)
    ]
    return pa.concat_tables(pieces)


@step("publish selection")
def publish_selection(config: RunConfig, version: str) -> str:
    """Write the selection's parts, its mixture and, last, its manifest; return the manifest's key."""
    store = open_store(config.workspace)
    key = f"runs/{config.run}/selection"
    if store.exists(f"{key}/manifest.json"):
        return f"{key}/manifest.json"
    chosen = read_chosen(store, config.run, config.training.stages)
    parts = []
    for number, part in enumerate(_parts(chosen, store, version, config.selection.part_bytes)):
        name = f"part-{number:05d}.parquet"
        rows, sha256 = tables.write_table_stream(store, f"{key}/{name}", SELECTION_SCHEMA, [part], BLOCK_ROWS)
        tokens = int(part["n_tokens"].to_numpy().sum())
        parts.append({"name": name, "rows": rows, "tokens": tokens, "sha256": sha256})
    pool = read_manifest(store, version)
    tokenizer = read_manifest(store, f"{pool['model']}/manifest.json")["tokenizer"]
    mixture = _mixture(store, version, chosen)
    body: dict[str, Any] = {
        "run": config.run,
        "config": digest(config.identity()),
        "pool": version,
        "pool_digest": pool["digest"],
        "tokenizer": tokenizer,
        "budget_tokens": config.selection.budget_tokens,
        "n_tokens": sum(part["tokens"] for part in parts),
        "rows": sum(part["rows"] for part in parts),
        "parts": parts,
        "mixture": mixture,
        **count_documents(store, config, version),
    }
    body["uuid"] = str(UUID(digest(body)[:32]))
    store.put(f"{key}/mixture.json", _json(mixture))
    write_manifest(store, f"{key}/manifest.json", {**body, "volatile": {"created": datetime.now(UTC).isoformat()}})
    return f"{key}/manifest.json"


def _parts(chosen: pa.Table, store: Store, version: str, part_bytes: int) -> Iterator[pa.Table]:
    """Join what was chosen with its texts, in arm order, cut where a part's texts pass `part_bytes`."""
    chosen = chosen.sort_by("position")
    pieces: list[pa.Table] = []
    size = 0
    for start in range(0, chosen.num_rows, BLOCK_ROWS):
        block = chosen.slice(start, BLOCK_ROWS)
        columns = ["text", "metadata", "n_bytes"]
        texts = read_positions(store, version, block["position"].to_numpy(), columns)
        joined = block.append_column("text", texts["text"]).append_column("metadata", texts["metadata"])
        pieces.append(joined.select(SELECTION_SCHEMA.names).cast(SELECTION_SCHEMA))
        size += int(texts["n_bytes"].to_numpy().sum())
        if size >= part_bytes:
            yield pa.concat_tables(pieces)
            pieces, size = [], 0
    if pieces:
        yield pa.concat_tables(pieces)


def _mixture(store: Store, version: str, chosen: pa.Table) -> dict[str, dict[str, Any]]:
    """Count tokens taken and available for each source; no document is repeated."""
    available: Counter[str] = Counter()
    for part in read_manifest(store, version)["parts"]:
        table = read_table(store, part["key"], ["source", "n_tokens"])
        available.update(_tokens_by(table, "source"))
    taken = _tokens_by(chosen, "source")
    total = sum(taken.values())
    return {
        source: {
            "weight": taken.get(source, 0) / total if total else 0.0,
            "tokens": taken.get(source, 0),
            "available_tokens": n,
            "repetition": 1,
        }
        for source, n in sorted(available.items())
    }


def _tokens_by(table: pa.Table, column: str) -> dict[Any, int]:
    grouped = table.group_by(column).aggregate([("n_tokens", "sum")])
    return dict(zip(grouped[column].to_pylist(), grouped["n_tokens_sum"].to_pylist(), strict=True))


def count_documents(store: Store, config: RunConfig, version: str) -> dict[str, Any]:
    """Count every document that came in, by where it is now."""
    pool = read_manifest(store, version)
    scores = read_scores(store, config.run, config.training.stages)
    chosen = read_chosen(store, config.run, config.training.stages)["position"].to_numpy()
    scored = scores["position"].to_numpy()
    accepted = scores["accepted"].to_numpy(zero_copy_only=False)
    left = ~np.isin(scored, chosen)
    alike = np.isin(scored, _near_duplicates(store, config)) & left
    reasons = {
        "below_threshold": left & ~alike & ~accepted,
        "over_budget": left & ~alike & accepted,
        "near_duplicate": alike,
    }
    touched = np.union1d(scored, chosen)
    return {
        "documents_in": pool["documents"] + sum(pool["set_aside"].values()),
        "set_aside": pool["set_aside"],
        "unpulled": pool["documents"] - len(touched),
        "rejected": {reason: int(mask.sum()) for reason, mask in reasons.items() if mask.any()},
        "selected": len(chosen),
    }


def _near_duplicates(store: Store, config: RunConfig) -> list[int]:
    stages = range(config.training.stages)
    manifests = [read_manifest(store, f"runs/{config.run}/stage-{n:02d}/selected.json") for n in stages]
    return [position for manifest in manifests for position in manifest["near_duplicates"]]


def _json(body: Any) -> bytes:
    return (json.dumps(body, indent=2, sort_keys=True) + "\n").encode()
