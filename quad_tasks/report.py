"""Stage: the run's report, `report.json` with every number and `index.html` made from it alone.

Everything is read back from what the run committed; nothing is measured here but time and memory.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.decomposition import PCA

from quad_tasks.arm_summaries import course_of_pulls, describe_arms
from quad_tasks.artifacts import show_report
from quad_tasks.choose import DIVERSITY_DOCUMENTS, read_chosen
from quad_tasks.compute import peak_gpu_memory_bytes, peak_memory_bytes, step
from quad_tasks.config import RunConfig
from quad_tasks.core import diversity
from quad_tasks.core.diagnosis import Measured, diagnose
from quad_tasks.findings import announce_findings
from quad_tasks.progress import working
from quad_tasks.provenance import trace
from quad_tasks.publish import count_documents, read_scores
from quad_tasks.report_page import render_page
from quad_tasks.state import SET_COLUMN
from quad_tasks.storage import rounds
from quad_tasks.storage.manifest import digest, read_manifest
from quad_tasks.storage.positions import column_vectors, read_positions, read_table
from quad_tasks.storage.store import Store, open_store
from quad_tasks.timing import read_times

MAP_DOCUMENTS = 2000
EXAMPLES = 5
EXAMPLE_CHARACTERS = 600
BINS = 60
TAIL = 0.005  # share of the scored documents beyond the histogram's first and last bin


@step("write report")
def write_report(config: RunConfig, version: str, reference: str) -> str:
    """Write `report.json` and the page, and return the page's key."""
    store = open_store(config.workspace)
    key = f"runs/{config.run}/report"
    with working("write report"):
        report = collect_report(config, version, reference)
        report["peak_memory_bytes"] = max(report["peak_memory_bytes"], _earlier_peak(store, f"{key}/report.json"))
        store.put(f"{key}/report.json", (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())
        store.put(f"{key}/index.html", render_page(report).encode())
    announce_findings(f"run {config.run}", report["findings"])
    show_report(report, f"{store.uri}/{key}/index.html")
    return f"{key}/index.html"


def _earlier_peak(store: Store, key: str) -> int:
    """Return the peak memory of the attempt that wrote a report before: a resume of what is done needs little."""
    return int(json.loads(store.get(key))["peak_memory_bytes"]) if store.exists(key) else 0


def read_findings(config: RunConfig) -> list[dict[str, Any]]:
    """Read the findings of a reported run."""
    report = json.loads(open_store(config.workspace).get(f"runs/{config.run}/report/report.json"))
    findings: list[dict[str, Any]] = report["findings"]
    return findings


def collect_report(config: RunConfig, version: str, reference: str) -> dict[str, Any]:
    """Gather every number of a finished run; keys as the README's "The report" lists them."""
    store = open_store(config.workspace)
    pool = read_manifest(store, version)
    model = read_manifest(store, f"{pool['model']}/manifest.json")
    scores = read_scores(store, config.run, config.training.stages)
    chosen = read_chosen(store, config.run, config.training.stages)
    counts = count_documents(store, config, version)
    documents = read_documents_index(store, version)
    stages = [_stage(store, config, n) for n in range(config.training.stages)]
    profiles = _diversity(store, config, version, scores, chosen, documents)
    times = read_times(store, config.run)
    arms = describe_arms(store, config, version, scores, chosen, documents)
    measured = _measured(config, pool, arms, scores, chosen, stages[-1], profiles, times, _rescored(store, config))
    return {
        "run": config.run,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "quad_version": package_version("quad-data"),
        "config_digest": digest(config.identity()),
        "config": config.model_dump(mode="json"),
        "pool": {
            "name": config.pool.name,
            "version": version,
            **{key: pool[key] for key in ("documents", "tokens", "bytes", "set_aside", "arms")},
            "inputs": list(config.pool.inputs),
            "sources": _by_source(documents),
        },
        "scored": {**_totals(scores), "share": scores.num_rows / pool["documents"]},
        **{key: counts[key] for key in ("rejected", "unpulled")},
        "selected": {
            **_totals(chosen),
            "budget_tokens": config.selection.budget_tokens,
            "by_arm": {str(arm): n for arm, n in sorted(_sum_by(chosen, "arm").items())},
            "by_source": _by_source(chosen),
        },
        "tokenizer": model["tokenizer"],
        "model": {"source": model["name"], **{key: model[key] for key in ("architecture", "parameters")}},
        "reference": {
            "key": reference,
            "domain": config.heldout.reference_domain,
            "sets": _reference_sets(store, reference, scores, chosen),
        },
        "threshold": stages[-1]["threshold"],
        "stages": stages,
        "arms": arms,
        "pulls": course_of_pulls(store, config),
        "influence": _histogram(scores, chosen),
        "examples": _examples(store, version, scores, stages[-1]["threshold"]),
        "map": _map(store, config, version, scores, chosen),
        "diversity": profiles,
        "prediction": stages[-1].pop("prediction"),
        "findings": [asdict(f) for f in diagnose(measured)],
        "provenance": trace(store, config, version, reference),
        "time_s": times,
        "peak_memory_bytes": peak_memory_bytes(),
        "peak_gpu_memory_bytes": peak_gpu_memory_bytes(),
    }


def _reference_sets(store: Store, reference: str, scores: pa.Table, chosen: pa.Table) -> list[dict[str, Any]]:
    """List the reference sets: `name`, `documents`, `weight` and, of several, the mean influence along each."""
    selected = np.isin(scores["position"].to_numpy(), chosen["position"].to_numpy())
    sets: list[dict[str, Any]] = read_manifest(store, f"{reference}/manifest.json")["reference"]["sets"]
    for one in sets if len(sets) > 1 else ():
        influence = scores[f"{SET_COLUMN}{one['name']}"].to_numpy()
        one["mean_influence"] = float(influence.mean())
        one["mean_influence_selected"] = float(influence[selected].mean()) if selected.any() else None
    return sets


def read_documents_index(store: Store, version: str) -> pa.Table:
    """Read arm, source and tokens of every document of a version, in arm order."""
    parts = read_manifest(store, version)["parts"]
    return pa.concat_tables([read_table(store, part["key"], ["arm", "source", "n_tokens"]) for part in parts])


def _measured(
    config: RunConfig,
    pool: Mapping[str, Any],
    arms: Sequence[Mapping[str, Any]],
    scores: pa.Table,
    chosen: pa.Table,
    last: Mapping[str, Any],
    profiles: Mapping[str, dict[str, float]],
    times: Mapping[str, float],
    rescored: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None,
) -> Measured:
    """Gather what the failure signatures are judged by; scores are those of the last stage."""
    before, after = last["before"], last["selected"]
    at_random = ~scores["active"].to_numpy(zero_copy_only=False)
    staged = scores.filter(pa.array(at_random & (scores["stage"].to_numpy() == last["stage"])))
    others = [d for d in before["domains"] if d != config.heldout.reference_domain]
    return Measured(
        selected_tokens=int(chosen["n_tokens"].to_numpy().sum()),
        budget_tokens=config.selection.budget_tokens,
        pool_tokens=pool["tokens"],
        scored_tokens=int(scores["n_tokens"].to_numpy().sum()),
        time_s=times,
        influence_N=staged["influence"].to_numpy(),
        arm_N=staged["arm"].to_numpy(),
        round_N=staged["round"].to_numpy(),
        n_arms=sum(1 for arm in arms if arm["documents"]),
        documents_per_pull=config.bandit.documents_per_pull,
        selected=profiles["selected"],
        random=profiles["random"],
        reference_change=after["reference_loss"] / before["reference_loss"] - 1,
        heldout_changes={d: after["domains"][d] / before["domains"][d] - 1 for d in others},
        rescored=rescored,
    )


def _rescored(store: Store, config: RunConfig) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
    """Read influence old and new of what the last stage scored again, if it did."""
    pilot = rounds.read_round(store, config.run, config.training.stages - 1, 0)
    if "rescored" not in pilot.tables:
        return None
    table = rounds.read_round_table(store, pilot, "rescored")
    return table["before"].to_numpy(), table["influence"].to_numpy()


def _totals(table: pa.Table) -> dict[str, int]:
    return {"documents": table.num_rows, "tokens": int(table["n_tokens"].to_numpy().sum())}


def _sum_by(table: pa.Table, column: str) -> dict[Any, int]:
    grouped = table.group_by(column).aggregate([("n_tokens", "sum")])
    return dict(zip(grouped[column].to_pylist(), grouped["n_tokens_sum"].to_pylist(), strict=True))


def _by_source(table: pa.Table) -> dict[str, dict[str, int]]:
    grouped = table.group_by("source").aggregate([("n_tokens", "sum"), ("n_tokens", "count")])
    rows = sorted(grouped.to_pylist(), key=lambda row: -row["n_tokens_sum"])
    return {row["source"]: {"documents": row["n_tokens_count"], "tokens": row["n_tokens_sum"]} for row in rows}


def _stage(store: Store, config: RunConfig, number: int) -> dict[str, Any]:
    """Collect a stage's losses, mean over seeds with each seed's reference loss, and its rounds."""
    prefix = f"runs/{config.run}/stage-{number:02d}"
    committed = rounds.list_rounds(store, config.run, number)
    kinds = ["selected", *(["random"] if config.training.control else [])]
    chosen = read_manifest(store, f"{prefix}/selected.json")
    fields = ("kind", "arms", "documents", "tokens", "mean_reward", "effective_arms", "accepted_tokens")
    return {
        "stage": number,
        "direction": committed[0].info["direction"],
        "threshold": committed[0].info["threshold"],
        "budget_tokens": chosen["budget_tokens"],
        "prediction": chosen.get("prediction"),
        "seeds": list(range(config.training.seeds)),
        "before": _losses(store, [f"{prefix}/trained/before"]),
        **{k: _losses(store, [f"{prefix}/trained/{k}-{n}" for n in range(config.training.seeds)]) for k in kinds},
        "frontier": _frontier(store, config, prefix, kinds),
        "pilot": committed[0].info["pilot"],
        "findings": chosen["findings"],
        "rounds": [{"round": r.round, **{name: r.info[name] for name in fields}} for r in committed],
    }


def _frontier(store: Store, config: RunConfig, prefix: str, kinds: Sequence[str]) -> list[dict[str, float]]:
    """List what each trained general share gave: reference loss, and the mean of the other domains, bits per byte."""
    names = {config.selection.general_share: "selected-0", **({1.0: "random-0"} if "random" in kinds else {})}
    names |= {share: f"general-{share:g}" for share in config.training.frontier}
    points = []
    for share, name in sorted(names.items()):
        losses = read_manifest(store, f"{prefix}/trained/{name}/losses.json")
        others = [bits for domain, bits in losses["domains"].items() if domain != config.heldout.reference_domain]
        mean = float(np.mean(others)) if others else None
        points.append({"general_share": share, "reference_loss": losses["reference_loss"], "other_domains": mean})
    return points


def _losses(store: Store, keys: Sequence[str]) -> dict[str, Any]:
    measured = [read_manifest(store, f"{key}/losses.json") for key in keys]
    by_seed = [m["reference_loss"] for m in measured]
    domains = measured[0]["domains"]
    by_set = measured[0].get("references", {})
    return {
        "reference_loss": float(np.mean(by_seed)),
        "reference_loss_by_seed": by_seed,
        "references": {name: float(np.mean([m["references"][name] for m in measured])) for name in by_set},
        "domains": {name: float(np.mean([m["domains"][name] for m in measured])) for name in domains},
    }


def _histogram(scores: pa.Table, chosen: pa.Table) -> dict[str, Any]:
    values = scores["influence"].to_numpy()
    low, high = np.quantile(values, [TAIL, 1 - TAIL])
    edges = np.linspace(low, high if high > low else low + 1e-12, BINS + 1)
    mask = np.isin(scores["position"].to_numpy(), chosen["position"].to_numpy())
    return {
        "bin_edges": edges.tolist(),
        "scored": np.histogram(np.clip(values, low, high), edges)[0].tolist(),
        "selected": np.histogram(np.clip(values[mask], low, high), edges)[0].tolist(),
    }


def _examples(store: Store, version: str, scores: pa.Table, threshold: float) -> dict[str, Any]:
    values = scores["influence"].to_numpy()
    order = np.argsort(-values, kind="stable")
    border = np.argsort(np.abs(values - threshold), kind="stable")
    groups = {"best": order[:EXAMPLES], "borderline": border[:EXAMPLES], "worst": order[::-1][:EXAMPLES]}
    examples = {}
    for name, rows in groups.items():
        taken = scores.take(rows)
        texts = read_positions(store, version, taken["position"].to_numpy(), ["text"])["text"].to_pylist()
        described = taken.select(["id", "source", "arm", "influence", "n_tokens"]).to_pylist()
        examples[name] = [{**d, "text": t[:EXAMPLE_CHARACTERS]} for d, t in zip(described, texts, strict=True)]
    return examples


def _map(store: Store, config: RunConfig, version: str, scores: pa.Table, chosen: pa.Table) -> dict[str, Any]:
    """Project a random sample of the pool on the first two principal components of its embeddings."""
    generator = np.random.default_rng([config.seed, 10])
    n = read_manifest(store, version)["documents"]
    positions = np.sort(generator.choice(n, min(n, MAP_DOCUMENTS), replace=False))
    rows = read_positions(store, version, positions, ["arm", "embedding"])
    plane = PCA(n_components=2, random_state=0).fit_transform(column_vectors(rows["embedding"]))
    known = dict(zip(scores["position"].to_pylist(), scores["influence"].to_pylist(), strict=True))
    return {
        "x": np.round(plane[:, 0].astype(float), 4).tolist(),
        "y": np.round(plane[:, 1].astype(float), 4).tolist(),
        "arm": rows["arm"].to_pylist(),
        "influence": [known.get(position) for position in positions.tolist()],
        "selected": np.isin(positions, chosen["position"].to_numpy()).tolist(),
    }


def _diversity(
    store: Store, config: RunConfig, version: str, scores: pa.Table, chosen: pa.Table, documents: pa.Table
) -> dict[str, dict[str, float]]:
    """Measure diversity of a sample of the selection, and of as many documents chosen otherwise.

    `random`: uniformly; `top_influence`: the best of those scored; `cluster_uniform`: from arms drawn uniformly.
    """
    generator = np.random.default_rng([config.seed, 11])
    selected = chosen["position"].to_numpy()
    n = min(DIVERSITY_DOCUMENTS, len(selected))
    pool_counts = np.bincount(documents["arm"].to_numpy())
    profiles = {}
    arm = documents["arm"].to_numpy()
    best = scores["position"].to_numpy()[np.argsort(-scores["influence"].to_numpy(), kind="stable")]
    samples = {
        "selected": generator.choice(selected, n, replace=False),
        "random": generator.choice(documents.num_rows, n, replace=False),
        "top_influence": best[:n],
        "cluster_uniform": generator.choice(len(arm), n, replace=False, p=_uniform_over_arms(arm)),
    }
    for name, sample in samples.items():
        rows = read_positions(store, version, sample, ["text", "arm", "embedding"])
        counts = np.bincount(rows["arm"].to_numpy(), minlength=len(pool_counts))
        vectors = column_vectors(rows["embedding"])
        profiles[name] = diversity.diversity_profile(rows["text"].to_pylist(), vectors, counts, pool_counts)
    return profiles


def _uniform_over_arms(arm_N: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return [N] each document's chance where arms are drawn uniformly and documents uniformly within."""
    size_K = np.bincount(arm_N)
    chance_N: np.ndarray[Any, Any] = 1 / (size_K[arm_N] * np.count_nonzero(size_K))
    return chance_N
