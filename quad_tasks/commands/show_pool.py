"""A pool as `quad pool show` tells it: its versions, what was set aside, its sources, its largest arms."""

from typing import Any

import numpy as np

from quad_tasks.core.clustering.keywords import keywords
from quad_tasks.manifests.pool import PoolVersion
from quad_tasks.stages.bandit.ledger import load_arms
from quad_tasks.storage.pool_versions import list_versions
from quad_tasks.storage.positions import read_part, read_positions
from quad_tasks.storage.store import Store, StoreKeyError, open_store

TERM_DOCUMENTS = 16
TERMS = 6
SOURCES = 20


def describe_pool(workspace: str, pool: str, arms: int) -> dict[str, Any]:
    """Describe a pool from its manifests and tables.

    Args:
        workspace: path or URI it is kept under.
        pool: its name.
        arms: how many of the largest arms of the last version to list with their telling terms.

    Returns:
        Rows of `versions` (oldest first), and of the last one: `set_aside` by reason, `sources` and `arms`, both by
        tokens, largest first.

    Raises:
        StoreKeyError: the workspace has no such pool.
    """
    store = open_store(workspace)
    versions = list_versions(store, pool)
    if not versions:
        raise StoreKeyError(
            f"pool {pool!r} in {store.uri}: expected a version, found none (`quad pool refresh CONFIG.yaml` makes one; "
            "--workspace says where to look)"
        )
    key, last = versions[-1]
    counts = ("documents", "tokens", "bytes", "arms")
    return {
        "pool": pool,
        "versions": [
            {
                "version": k.split("/")[-2],
                "shards": len(version.shards),
                **{name: getattr(version, name) for name in counts},
            }
            for k, version in versions
        ],
        "set_aside": [{"reason": reason, "documents": n} for reason, n in sorted(last.set_aside.items())],
        "sources": _sources(store, last),
        "arms": _largest_arms(store, key, arms),
    }


def _sources(store: Store, version: PoolVersion) -> list[dict[str, Any]]:
    found: dict[str, dict[str, int]] = {}
    for part in version.parts:
        grouped = read_part(store, part, ["source", "n_tokens"]).group_by("source")
        for row in grouped.aggregate([("n_tokens", "count"), ("n_tokens", "sum")]).to_pylist():
            own = found.setdefault(row["source"], {"documents": 0, "tokens": 0})
            own["documents"] += row["n_tokens_count"]
            own["tokens"] += row["n_tokens_sum"]
    rows = sorted(found.items(), key=lambda item: (-item[1]["tokens"], item[0]))
    return [
        {"source": name, **own, "share": f"{own['tokens'] / max(1, version.tokens):.1%}"}
        for name, own in rows[:SOURCES]
    ]


def _largest_arms(store: Store, version: str, n: int) -> list[dict[str, Any]]:
    arms = load_arms(store, version)
    tokens, sizes = arms["n_tokens"].to_numpy(), arms["n_documents"].to_numpy()
    largest = [int(arm) for arm in np.argsort(-tokens, kind="stable")[:n] if sizes[arm]]
    texts = []
    for arm in largest:
        start = arms["position"][arm].as_py()
        positions = np.arange(start, start + min(TERM_DOCUMENTS, int(sizes[arm])))
        texts.append(read_positions(store, version, positions, ["text"])["text"].to_pylist())
    return [
        {"arm": arm, "documents": int(sizes[arm]), "tokens": int(tokens[arm]), "terms": ", ".join(words)}
        for arm, words in zip(largest, keywords(texts, TERMS) if largest else [], strict=True)
    ]
