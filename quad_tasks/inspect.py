"""One document's story: where it stood, its arm and when that was pulled, what it scored, why it was taken or not.

Everything is read back from what the run committed; of the pool only ids are scanned, and of its arm the embeddings.
"""

import json
from typing import Any

import numpy as np
import pyarrow.compute as pc

from quad_tasks.choose import read_chosen
from quad_tasks.config import RunConfig
from quad_tasks.ingest import documents_key, set_aside_key, shard_manifest_key
from quad_tasks.publish import read_scores
from quad_tasks.run import pinned_pool
from quad_tasks.state import load_arms
from quad_tasks.storage import rounds
from quad_tasks.storage.manifest import read_manifest
from quad_tasks.storage.positions import column_vectors, read_positions, read_table
from quad_tasks.storage.store import Store, StoreKeyError, open_store

NEIGHBOURS = 5
COMPARED_DOCUMENTS = 4096
"""Of the arm, from its first: a random sample of it."""
TEXT_CHARACTERS = 500


def inspect_document(config: RunConfig, document_id: str) -> dict[str, Any]:
    """Tell what became of one document of a run's pool.

    Args:
        config: the run's configuration.
        document_id: the document's id.

    Returns:
        `verdict` and `reason`; `input`, `line`, `text`; and, where the document is in the pool, `shard`, `shard_row`,
        `arm` with its size, terms and nearest arms, `pulled_in` (stage and round), `influence` per target token with
        the stage and round that scored it, its rank among the scored, or `predicted_influence`, and the nearest
        documents of the arm with their cosines.

    Raises:
        StoreKeyError: the run has no pool yet, or there is no such document.
    """
    store = open_store(config.workspace)
    version = pinned_pool(config)
    if version is None:
        raise StoreKeyError(f"run {config.run!r} in {store.uri}: expected a run with a pool, found none")
    position = _find_position(store, version, document_id)
    if position is None:
        return _find_set_aside(store, config, version, document_id)
    columns = ["source", "text", "arm", "shard", "shard_row", "n_tokens", "embedding"]
    row = read_positions(store, version, np.array([position]), columns).to_pylist()[0]
    line = read_table(store, documents_key(config.pool.name, row["shard"]), ["line"])["line"][row["shard_row"]].as_py()
    verdict = _judge(store, config, position, row["arm"])
    return {
        "id": document_id,
        **verdict,
        "input": read_manifest(store, shard_manifest_key(config.pool.name, row["shard"]))["input"]["uri"],
        "line": line,
        "shard": row["shard"],
        "shard_row": row["shard_row"],
        "source": row["source"],
        "n_tokens": row["n_tokens"],
        "arm": _describe_arm(store, config, version, row["arm"]),
        "pulled_in": _pulled_in(store, config, row["arm"]),
        "nearest_documents": _nearest_documents(store, config, version, position, row),
        "text": row["text"][:TEXT_CHARACTERS],
    }


def _find_position(store: Store, version: str, document_id: str) -> int | None:
    start = 0
    for part in read_manifest(store, version)["parts"]:
        found = pc.index(read_table(store, part["key"], ["id"])["id"], document_id).as_py()
        if found >= 0:
            return start + int(found)
        start += part["rows"]
    return None


def _find_set_aside(store: Store, config: RunConfig, version: str, document_id: str) -> dict[str, Any]:
    """Look among what ingest set aside, and among duplicates, which the pool version leaves out."""
    for shard in read_manifest(store, version)["shards"]:
        manifest = read_manifest(store, shard_manifest_key(config.pool.name, shard))
        table = read_table(store, set_aside_key(config.pool.name, shard))
        for row in table.filter(pc.equal(table["id"], document_id)).to_pylist():
            where = {"input": row["input"], "line": row["line"]}
            return {"id": document_id, "verdict": "set aside", "reason": f"{row['reason']}: {row['detail']}", **where}
        documents = read_table(store, documents_key(config.pool.name, shard), ["id", "line", "text"])
        found = pc.index(documents["id"], document_id).as_py()
        if found >= 0:
            reason = "a document before it in the pool has the same text, or the same id"
            where = {"input": manifest["input"]["uri"], "line": documents["line"][found].as_py()}
            text = documents["text"][found].as_py()[:TEXT_CHARACTERS]
            return {"id": document_id, "verdict": "set aside", "reason": reason, **where, "text": text}
    raise StoreKeyError(f"document {document_id!r}: expected an id of pool {config.pool.name!r}, found none")


def _judge(store: Store, config: RunConfig, position: int, arm: int) -> dict[str, Any]:
    """Say what was decided of a document of the pool, and why."""
    stages = [
        n for n in range(config.training.stages) if store.exists(f"runs/{config.run}/stage-{n:02d}/selected.json")
    ]
    scores = read_scores(store, config.run, len(stages))
    row = scores.filter(pc.equal(scores["position"], position)).to_pylist()
    story: dict[str, Any] = {}
    if row:
        same_stage = scores.filter(pc.equal(scores["stage"], row[0]["stage"]))["influence"].to_numpy()
        story = {name: row[0][name] for name in ("influence", "stage", "round", "active")}
        story["rank_among_scored"] = int(np.count_nonzero(same_stage > row[0]["influence"])) + 1
        story["scored_in_stage"] = len(same_stage)
    chosen = read_chosen(store, config.run, len(stages))
    taken = chosen.filter(pc.equal(chosen["position"], position)).to_pylist()
    if taken:
        number = chosen["position"].to_pylist().index(position) + 1
        how = "measured" if taken[0]["scored"] else "predicted"
        if not row:
            story["predicted_influence"] = taken[0]["influence"]
        if taken[0]["influence"] is None:
            how, reason = "", f"number {number} of {len(chosen)}, drawn from the rest of its arm"
        else:
            reason = f"number {number} of {len(chosen)}, for its {how} influence"
        return {"verdict": "selected", "reason": reason, **story}
    for stage in stages:
        manifest = read_manifest(store, f"runs/{config.run}/stage-{stage:02d}/selected.json")
        if position in manifest["near_duplicates"]:
            return {"verdict": "left out", "reason": "near-duplicate of a better document of its arm", **story}
    if row:
        reason = "above τ, but the token budget was full" if row[0]["accepted"] else "its influence is not above τ"
        return {"verdict": "rejected", "reason": reason, **story}
    return {"verdict": "not pulled", "reason": "never scored, and its predicted influence did not place it", **story}


def _describe_arm(store: Store, config: RunConfig, version: str, arm: int) -> dict[str, Any]:
    arms = load_arms(config.workspace, version)
    centroids = column_vectors(arms["centroid"])
    distance = np.linalg.norm(centroids - centroids[arm], axis=1)
    nearest = [int(other) for other in np.argsort(distance, kind="stable") if other != arm][:NEIGHBOURS]
    described = {"arm": arm, "documents": arms["n_documents"][arm].as_py(), "nearest_arms": nearest}
    key = f"runs/{config.run}/report/report.json"
    if store.exists(key):
        described["terms"] = json.loads(store.get(key))["arms"][arm]["terms"]
    return described


def _pulled_in(store: Store, config: RunConfig, arm: int) -> list[str]:
    found = []
    for stage in range(config.training.stages):
        for committed in rounds.list_rounds(store, config.run, stage):
            if arm in rounds.read_round_table(store, committed, "pulls")["arm"].to_pylist():
                found.append(f"stage {stage} round {committed.round}")
    return found


def _nearest_documents(
    store: Store, config: RunConfig, version: str, position: int, row: dict[str, Any]
) -> list[dict[str, Any]]:
    """List the documents of the arm nearest by cosine, among its first."""
    arms = load_arms(config.workspace, version)
    start, n = arms["position"][row["arm"]].as_py(), arms["n_documents"][row["arm"]].as_py()
    positions = np.setdiff1d(np.arange(start, start + min(n, COMPARED_DOCUMENTS)), [position])
    if not len(positions):
        return []
    others = read_positions(store, version, positions, ["id", "embedding"])
    cosine = column_vectors(others["embedding"]) @ np.array(row["embedding"], dtype=np.float32)
    best = np.argsort(-cosine, kind="stable")[:NEIGHBOURS]
    ids = others["id"].take(best).to_pylist()
    return [{"id": name, "cosine": round(float(c), 4)} for name, c in zip(ids, cosine[best], strict=True)]
