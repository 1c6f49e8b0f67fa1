"""One document's story in a run: where it stands, how its arm fared, what it scored, and why it was taken or not.

Everything is read back from what the run committed; the ids of the pool are searched part by part, and after that only
the document's own arm, its rounds and its row groups are read. What was predicted of a document is predicted again, by
the same regression on the same scores, since the ledger keeps measurements alone.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from quad_tasks.config.schema import ConfigError, RunConfig, SelectionConfig
from quad_tasks.core.clustering.keywords import keywords
from quad_tasks.core.selection.fill_budget import targeted_budget
from quad_tasks.core.wasserstein import gaussian_distance
from quad_tasks.manifests.run import Choice
from quad_tasks.records import Stage
from quad_tasks.runtime.run import pinned_pool
from quad_tasks.stages.bandit.ledger import (
    SET_COLUMN,
    list_stage_rounds,
    load_arms,
    read_choice,
    read_choice_table,
    read_ranking,
)
from quad_tasks.stages.bandit.predict import predict_block
from quad_tasks.stages.influence.find_overlap import HELD_OUT_OVERLAP, read_overlap
from quad_tasks.stages.pool.ingest import read_shard
from quad_tasks.stages.selection.select_documents import fit_stage_scores, read_stage_scores, stage_selection
from quad_tasks.storage import rounds, tables
from quad_tasks.storage.keys import (
    choice_key,
    choice_manifest_key,
    documents_key,
    overlap_table_key,
    set_aside_key,
)
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.positions import column_vectors, positions_of, read_positions, read_table
from quad_tasks.storage.store import Store, StoreKeyError, open_store

NEAREST = 5
ARM_DOCUMENTS = 4096
"""Documents of an arm among which the nearest are looked for."""
TERM_DOCUMENTS = 16
TERMS = 6
EXCERPT_CHARACTERS = 600
BATCH_ROWS = 8192


class UnknownDocument(ConfigError):
    """A document's id that a run's pool has never seen."""


@dataclass(frozen=True)
class _Ledger:
    """What the rounds of a run say: pulls of one arm, scores of one document, and each stage's direction."""

    pulls: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    direction: dict[int, str]


def inspect_document(config: RunConfig, document_id: str) -> dict[str, Any]:
    """Tell a document's story.

    Args:
        config: the run's configuration.
        document_id: its id, as in the user's shard or as derived from its text.

    Returns:
        `id`, `where` (input, line, shard, row), `source`, `n_tokens`, `excerpt`, `arm` (number, size, terms, nearest
        arms), `nearest_documents`, `rounds` its arm was pulled in, `scores` (influence per token, with what each
        reference gave where there are several), `predicted_influence`, `verdict` and `reason`. Of a document that was
        set aside as it came in: `id`, `where`, `verdict`, `reason`.

    Raises:
        StoreKeyError: the run has no pool yet.
        UnknownDocument: no document of the pool, kept or set aside, has this id.
    """
    store = open_store(config.workspace)
    version = pinned_pool(store, config.run)
    if version is None:
        raise StoreKeyError(
            f"run {config.run!r} in {store.uri}: expected a pool, found none yet: `quad resume {config.run}` goes on"
        )
    manifest = read_version(store, version)
    row_of_parts = _find(store, [part.key for part in manifest.parts], "id", document_id)
    position = -1 if row_of_parts is None else int(positions_of(store, version, np.array([row_of_parts]))[0])
    if position < 0:
        return _set_aside(store, config.pool.name, manifest.shards, document_id)
    columns = ["id", "source", "text", "metadata", "n_tokens", "n_bytes", "arm", "shard", "shard_row"]
    row = read_positions(store, version, np.array([position]), columns).to_pylist()[0]
    arms = load_arms(store, version)
    ledger = _read_ledger(store, config, row["arm"], position)
    story: dict[str, Any] = {
        "id": row["id"],
        "where": _where(store, config.pool.name, row["shard"], row["shard_row"]),
        "position": position,
        "source": row["source"],
        "metadata": json.loads(row["metadata"]),
        "n_tokens": row["n_tokens"],
        "n_bytes": row["n_bytes"],
        "excerpt": row["text"][:EXCERPT_CHARACTERS],
        "arm": _arm(store, version, arms, row["arm"], position),
        "nearest_documents": _nearest_documents(store, version, arms, row["arm"], position),
        "rounds": ledger.pulls,
        "scores": ledger.scores,
    }
    nearest = (story["nearest_documents"] or [None])[0]
    aside = _held_out(store, config.run, position)
    return story | (aside or _verdict(store, config, version, row | {"position": position}, ledger, nearest))


def _find(store: Store, keys: Sequence[str], column: str, value: str) -> int | None:
    """Return the row of a value in a column of consecutive tables; None where it is in none."""
    start = 0
    for key in keys:
        for batch in tables.iter_batches(store, key, [column], BATCH_ROWS):
            found = pc.index(batch[column], value).as_py()
            if found >= 0:
                return start + int(found)
            start += batch.num_rows
    return None


def _where(store: Store, pool: str, shard: str, row: int) -> dict[str, Any]:
    line = tables.read_rows(store, documents_key(pool, shard), row, 1, ["line"])["line"][0].as_py()
    source = read_shard(store, pool, shard).input.uri
    return {"input": source, "line": line, "shard": shard, "row": row}


def _set_aside(store: Store, pool: str, shards: Sequence[str], document_id: str) -> dict[str, Any]:
    """Tell of a document that is in no arm: bad where it stood, or a duplicate of another."""
    for shard in shards:
        sha256 = read_shard(store, pool, shard).set_aside_sha256
        table = read_table(store, set_aside_key(pool, shard), sha256=sha256)
        found = table.filter(pc.equal(table["id"], document_id)).slice(0, 1).to_pylist()
        if found:
            where = {"input": found[0]["input"], "line": found[0]["line"], "shard": shard}
            reason = f"{found[0]['reason']}: {found[0]['detail']}"
            return {"id": document_id, "where": where, "verdict": "set aside", "reason": reason}
    for shard in shards:
        row = _find(store, [documents_key(pool, shard)], "id", document_id)
        if row is not None:
            other = _same_text(store, pool, shards, shard, row)
            where = _where(store, pool, shard, row)
            return {"id": document_id, "where": where, "verdict": "set aside", "reason": f"duplicate_text: of {other}"}
    raise UnknownDocument(
        f"document {document_id!r}: expected an id of the pool {pool!r}, kept or set aside, found none in its "
        f"{len(shards)} shards (a record whose id was not read, as in a broken line, cannot be found by it)"
    )


def _held_out(store: Store, run: str, position: int) -> dict[str, Any] | None:
    """Say which held-out document a document of the pool holds; None where it holds none."""
    found = read_overlap(store, run)
    if found is None:
        return None
    table = read_table(store, overlap_table_key(run), sha256=found.sha256)
    for row in table.filter(pc.equal(table["position"], position)).to_pylist():
        held = f"of {row['heldout_id']!r} in {row['domain']!r}, {row['share']:.0%} of the shorter's word sequences"
        return {"verdict": "set aside", "reason": f"{HELD_OUT_OVERLAP}: {held}", "predicted_influence": None}
    return None


def _same_text(store: Store, pool: str, shards: Sequence[str], shard: str, row: int) -> str:
    """Name the first document with the text of this one."""
    wanted = tables.read_rows(store, documents_key(pool, shard), row, 1, ["text_hash"])["text_hash"][0].as_py()
    for other in shards:
        at = _find(store, [documents_key(pool, other)], "text_hash", wanted)
        if at is not None and (other, at) != (shard, row):
            name = tables.read_rows(store, documents_key(pool, other), at, 1, ["id"])["id"][0].as_py()
            return f"{name!r} in {other}"
    return "a document with the same id"


def _arm(store: Store, version: str, arms: pa.Table, arm: int, position: int) -> dict[str, Any]:
    """Describe an arm: its size, what tells it from its nearest arms, and those."""
    centroids, variances = (column_vectors(arms[name]) for name in ("centroid", "variance"))
    own = (centroids[arm], variances[arm])
    distances = [gaussian_distance(*own, mean, variance) for mean, variance in zip(centroids, variances, strict=True)]
    held = arms["n_documents"].to_numpy() > 0
    nearest = [int(k) for k in np.argsort(distances, kind="stable") if held[k] and k != arm][:NEAREST]
    groups = [arm, *nearest]
    terms = keywords([_first_texts(store, version, arms, k) for k in groups], TERMS)
    described = [
        {"arm": k, "distance": round(distances[k], 4), "terms": words} for k, words in zip(groups, terms, strict=True)
    ]
    return {
        "arm": arm,
        "documents": arms["n_documents"][arm].as_py(),
        "tokens": arms["n_tokens"][arm].as_py(),
        "row": position - arms["position"][arm].as_py(),
        "terms": terms[0],
        "nearest_arms": described[1:],
    }


def _first_texts(store: Store, version: str, arms: pa.Table, arm: int) -> list[str]:
    start, n = arms["position"][arm].as_py(), min(TERM_DOCUMENTS, arms["n_documents"][arm].as_py())
    texts: list[str] = read_positions(store, version, np.arange(start, start + n), ["text"])["text"].to_pylist()
    return texts


def _nearest_documents(store: Store, version: str, arms: pa.Table, arm: int, position: int) -> list[dict[str, Any]]:
    """Find the documents of the arm with the highest cosine, among its first `ARM_DOCUMENTS` and the document's own."""
    start, n = arms["position"][arm].as_py(), arms["n_documents"][arm].as_py()
    positions = np.union1d(np.arange(start, start + min(n, ARM_DOCUMENTS)), [position])
    rows = read_positions(store, version, positions, ["id", "embedding"])
    vectors = column_vectors(rows["embedding"])
    own = int(np.searchsorted(positions, position))
    cosines = vectors @ vectors[own]
    best = [int(i) for i in np.argsort(-cosines, kind="stable") if i != own][:NEAREST]
    return [{"id": rows["id"][i].as_py(), "cosine": round(float(cosines[i]), 4)} for i in best]


def _read_ledger(store: Store, config: RunConfig, arm: int, position: int) -> _Ledger:
    ledger = _Ledger([], [], {})
    for number in range(config.training.stages):
        for committed in rounds.list_rounds(store, config.run, number):
            ledger.direction[number] = committed.info.direction
            name = {"stage": number, "round": committed.round, "kind": committed.info.kind}
            pulls = rounds.read_round_table(store, committed, "pulls")
            ledger.pulls.extend(name | row for row in pulls.filter(pc.equal(pulls["arm"], arm)).to_pylist())
            scores = rounds.read_round_table(store, committed, "scores")
            own = scores.filter(pc.equal(scores["position"], position)).to_pylist()
            ledger.scores.extend(name | _score(row, committed.info.threshold) for row in own)
    return ledger


def _score(row: dict[str, Any], threshold: float) -> dict[str, Any]:
    """Keep what a score says, the influence along each reference set among it where there are several."""
    by_reference = {name.removeprefix(SET_COLUMN): row[name] for name in sorted(row) if name.startswith(SET_COLUMN)}
    kept: dict[str, Any] = {name: row[name] for name in ("influence", "n_targets", "active", "accepted") if name in row}
    return {**kept, "threshold": threshold, **({"by_reference": by_reference} if by_reference else {})}


def _verdict(
    store: Store, config: RunConfig, version: str, row: dict[str, Any], ledger: _Ledger, nearest: dict[str, Any] | None
) -> dict[str, Any]:
    """Say what became of a document in the stages that have chosen, the last one deciding why it was left."""
    verdict: dict[str, Any] = {"verdict": "undecided", "reason": "no stage has chosen yet", "predicted_influence": None}
    for number in range(config.training.stages):
        key = choice_key(config.run, number, "selected")
        if not store.exists(choice_manifest_key(key)):
            return verdict
        choice, chosen = read_choice(store, key), read_choice_table(store, key)
        ranking = read_ranking(store, config.run, number)
        rank = pc.index(chosen["position"], row["position"]).as_py()
        predicted = _predicted(store, config, Stage(config.run, number, version, "", ranking.direction), row)
        if rank >= 0:
            reason = _why_taken(config.selection.mode, choice, chosen, rank, ranking.threshold)
            return {
                "verdict": "selected",
                "reason": f"stage {number}, rank {rank + 1:,} of {chosen.num_rows:,}: {reason}",
                "stage": number,
                "rank": rank + 1,
                "predicted_influence": predicted,
            }
        along = [stage for stage in range(number + 1) if ledger.direction[stage] == ranking.direction]
        scored = [score["influence"] for score in ledger.scores if score["stage"] in along]
        near_duplicate = row["position"] in choice.near_duplicates
        if near_duplicate:
            reason = _likeness(config.selection, nearest)
        else:
            reason = _why_left(config.selection, scored[-1] if scored else None, predicted, ranking.threshold, chosen)
        # rejected: also where its score is along a direction not used
        outcome = "rejected" if near_duplicate or ledger.scores else "unpulled"
        verdict = {"verdict": outcome, "reason": f"stage {number}: {reason}", "predicted_influence": predicted}
    return verdict


def _why_taken(mode: str, choice: Choice, chosen: pa.Table, rank: int, threshold: float) -> str:
    """Say why a stage took a document: what follows the part of the budget for influence was drawn at random."""
    taken = chosen.slice(rank, 1).to_pylist()[0]
    influence, tokens = taken["influence"], pc.sum(chosen["n_tokens"].slice(0, rank + 1)).as_py()
    if tokens <= targeted_budget(choice.budget_tokens, choice.general_share or 0.0):
        if influence is not None and influence > threshold:
            how = "measured" if taken["scored"] else "predicted"
            return f"{how} influence {influence:.4g} above τ = {threshold:.4g}, within the budget"
        if influence is None and mode == "cluster":
            return f"not scored: the mean of its arm is above τ = {threshold:.4g}, within the budget"
    return "drawn for the general share, whatever its influence"


def _why_left(
    settings: SelectionConfig, measured: float | None, predicted: float | None, threshold: float, chosen: pa.Table
) -> str:
    """Say why a stage left a document that is no near-duplicate."""
    influence, how = (predicted, "predicted influence") if measured is None else (measured, "influence")
    if influence is None:
        return {
            "predicted": "not scored, and not predicted: no scored document of its arm has an influence above τ",
            "cluster": "not scored: the mean of its arm is not above τ, or arms of a higher one filled the budget",
            "instance": "never drawn; mode 'instance' ranks what was scored",
        }[settings.mode]
    if influence <= threshold:
        return f"{how} {influence:.4g} not above τ = {threshold:.4g}"
    above = f"{how} {influence:.4g} above τ = {threshold:.4g}"
    if settings.redundancy > 0:
        return f"{above}, but too like better ones (selection.redundancy), or the budget was full"
    if settings.per_arm_share is not None:
        return f"{above}, but the budget or its arm's share of it was full (selection.per_arm_share)"
    least = pc.min(chosen["influence"].filter(pc.greater(chosen["influence"], threshold))).as_py()
    return f"{above}, but the budget was full" + (f" (least taken: {least:.4g})" if least is not None else "")


def _likeness(settings: SelectionConfig, nearest: dict[str, Any] | None) -> str:
    """Say what a near-duplicate is like: the nearest selected document of its arm, or one that shares its words."""
    cosine = settings.near_duplicate_cosine
    if nearest and cosine is not None and nearest["cosine"] >= cosine:
        return f"near-duplicate of {nearest['id']!r} (cosine {nearest['cosine']})"
    shared = settings.near_duplicate_overlap or 0.0
    return f"near-duplicate: at least {shared:.0%} of its five-word sequences are those of a better one"


def _predicted(store: Store, config: RunConfig, stage: Stage, row: dict[str, Any]) -> float | None:
    """Predict the document's influence as the stage's choice did; None where that predicts nothing of its arm."""
    if config.selection.mode != "predicted":
        return None
    scores, threshold = read_stage_scores(store, stage, list_stage_rounds(store, stage.run, stage.number))
    own = scores["influence"].to_numpy()[scores["arm"].to_numpy() == row["arm"]]
    if len(own) and own.max() <= threshold:
        return None
    predictor, features = fit_stage_scores(store, stage, stage_selection(config, stage.number), scores)
    return float(predict_block(predictor, store, stage.version, np.array([row["position"]]), features)[0])
