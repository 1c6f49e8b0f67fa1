"""Two finished runs side by side: what both chose, how the mixture shifted, what came out, how they were configured."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from quad_tasks.stages.bandit.ledger import read_chosen
from quad_tasks.storage.keys import report_key
from quad_tasks.storage.store import Store, StoreKeyError, open_store


def compare_runs(workspace: str, run_a: str, run_b: str) -> dict[str, Any]:
    """Compare two reported runs of one workspace.

    Returns:
        `overlap`: documents and tokens of each, of both, and the Jaccard index of documents, the last two None where
        the runs' pools have other names, whose ids are other documents'; `mixture`: by source the share of tokens in
        each and its shift, largest first, and by arm where both chose from the same pool version; `outcome`: reference
        loss (nats per token) and bits per byte of each domain after the last stage, lower is better; `config`: the keys
        that differ.

    Raises:
        StoreKeyError: a run has no report.
    """
    store = open_store(workspace)
    a, b = (_read_report(store, run) for run in (run_a, run_b))
    tokens_a, tokens_b = (_read_chosen(store, run) for run in (run_a, run_b))
    both = tokens_a.keys() & tokens_b.keys()
    one_pool = a["config"]["pool"]["name"] == b["config"]["pool"]["name"]
    overlap = {
        "documents_a": len(tokens_a),
        "documents_b": len(tokens_b),
        "documents_in_both": len(both) if one_pool else None,
        "tokens_a": sum(tokens_a.values()),
        "tokens_b": sum(tokens_b.values()),
        "tokens_in_both": sum(tokens_a[name] for name in both) if one_pool else None,
        "jaccard": round(len(both) / max(len(tokens_a.keys() | tokens_b.keys()), 1), 4) if one_pool else None,
    }
    return {
        "runs": [run_a, run_b],
        "overlap": overlap,
        "mixture": list(_mixture(a, b)),
        "outcome": list(_outcome(a, b)),
        "config": [
            {"key": key, "a": x, "b": y}
            for key, x, y in _differences(_flatten(a["config"]), _flatten(b["config"]))
            if key != "run"
        ],
    }


def _read_report(store: Store, run: str) -> dict[str, Any]:
    key = report_key(run)
    if not store.exists(key):
        raise StoreKeyError(
            f"run {run!r} in {store.uri}: expected a finished run with a report, found none "
            f"(`quad status {run}` says how far it is, `quad resume {run}` goes on with it)"
        )
    report: dict[str, Any] = json.loads(store.get(key))
    return report


def _read_chosen(store: Store, run: str) -> dict[str, int]:
    """Read ids and tokens of what a run published."""
    stages = len(_read_report(store, run)["stages"])
    table = read_chosen(store, run, stages)
    return dict(zip(table["id"].to_pylist(), table["n_tokens"].to_pylist(), strict=True))


def _mixture(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    kinds = {"source": [{name: row["tokens"] for name, row in r["selected"]["by_source"].items()} for r in (a, b)]}
    if a["pool"]["version"] == b["pool"]["version"]:
        kinds["arm"] = [r["selected"]["by_arm"] for r in (a, b)]
    for kind, (one, two) in kinds.items():
        total_a, total_b = max(sum(one.values()), 1), max(sum(two.values()), 1)
        names = one.keys() | two.keys()
        rows = [(name, one.get(name, 0) / total_a, two.get(name, 0) / total_b) for name in names]
        for name, x, y in sorted(rows, key=lambda row: (-abs(row[2] - row[1]), row[0])):
            yield {"of": kind, "name": name, "a": round(x, 4), "b": round(y, 4), "shift": round(y - x, 4)}


def _outcome(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for kind in ("selected", "random"):
        one, two = (r["stages"][-1].get(kind) for r in (a, b))
        if one is None or two is None:
            continue
        measures = [("reference loss", one["reference_loss"], two["reference_loss"])]
        shared = sorted(one["domains"].keys() & two["domains"].keys())
        measures += [(f"{domain}, bits per byte", one["domains"][domain], two["domains"][domain]) for domain in shared]
        for name, x, y in measures:
            yield {"trained_on": kind, "measure": name, "a": round(x, 4), "b": round(y, 4), "b_less_a": round(y - x, 4)}


def _flatten(body: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in body.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for key in sorted(a.keys() | b.keys()):
        if a.get(key) != b.get(key):
            yield key, a.get(key), b.get(key)
