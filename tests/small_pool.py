"""A small pool of three made-up topics, and the configuration of a run over it that takes seconds."""

import hashlib
import json
from pathlib import Path

import numpy as np

from quad_tasks.config.schema import RunConfig
from quad_tasks.manifests.pool import Part, PoolVersion
from quad_tasks.manifests.run import RoundInfo
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.positions import read_positions
from quad_tasks.storage.rounds import list_rounds
from quad_tasks.storage.store import open_store

TOPICS = {
    "weather": "rain cloud storm wind sunny warm cold snow forecast sky thunder mild breeze fog drizzle",
    "kitchen": "bread flour oven butter sugar bake recipe spoon bowl salt pepper onion simmer taste dough",
    "harbour": "ship sail anchor captain rope deck tide port crew cargo mast wave dock lantern gull",
}
DOCUMENTS_PER_TOPIC = 60
BAD_LINES = (b'{"id": "broken", "text": "cut o', b'{"id": "no-text", "source": "x"}', b'{"id": "short", "text": "a"}')


def write_jsonl(path: Path, records: list[dict[str, object]], bad_lines: tuple[bytes, ...] = ()) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record).encode() for record in records] + list(bad_lines)
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def stored(store, key: str) -> dict[str, object]:
    """Read a manifest as the JSON it is, past the models that check it."""
    return json.loads(store.get(key))


def digests_of(config: RunConfig) -> dict[str, str]:
    """Return the digests of a run's published parts, of its selection and of every round."""
    store = open_store(config.workspace)
    folder = f"runs/{config.run}/selection"
    manifest = stored(store, f"{folder}/manifest.json")
    parts = [f"{folder}/{part['name']}" for part in manifest["parts"]]
    found = {key: hashlib.sha256(store.get(key)).hexdigest() for key in parts}
    found[folder] = manifest["digest"]
    for stage in range(config.training.stages):
        for committed in list_rounds(store, config.run, stage):
            key = f"runs/{config.run}/stage-{stage:02d}/round-{committed.round:05d}/manifest.json"
            found[key] = stored(store, key)["digest"]
    return found


def round_info(**changes: object) -> RoundInfo:
    """Return what a round that did nothing would note, with `changes`."""
    nothing: dict[str, object] = {
        "kind": "bandit", "threshold": 0.0, "direction": "", "reward_moments": (0.0, 0.0, 0.0), "arms": 0,
        "documents": 0, "active_documents": 0, "tokens": 0, "accepted_documents": 0, "accepted_tokens": 0,
        "mean_reward": 0.0, "effective_arms": 0.0, "findings": (), "scorer": {"scorer": "exact"},
    }  # fmt: skip
    return RoundInfo.model_validate(nothing | changes)


def pool_version(parts: list[Part], **changes: object) -> PoolVersion:
    """Return a version made of `parts` and little else."""
    little: dict[str, object] = {
        "pool": "p", "tables": "tables", "model": "model", "embedder": "embedder", "clustering": "clustering",
        "seed": 0, "shards": (), "parts": parts, "arms": 1, "documents": sum(part.rows for part in parts),
        "tokens": 0, "bytes": 0, "files": {},
        "set_aside": {}, "recipe": "",
        "drift": {"new_documents": 0, "beyond_radius": 0.0, "occupancy_shift": 0.0, "drift": 0.0},
    }  # fmt: skip
    return PoolVersion.model_validate(little | changes)


def read_column(store, version: str, column: str) -> np.ndarray:
    """Read one column of all of a version's documents, in the order of positions."""
    documents = read_version(store, version).documents
    return read_positions(store, version, np.arange(documents), [column])[column].to_numpy()


def topic_records(topic: str, n: int, seed: int) -> list[dict[str, object]]:
    generator = np.random.default_rng([seed, len(topic)])
    records = []
    for i in range(n):
        words = generator.choice(TOPICS[topic].split(), int(generator.integers(12, 60)))
        records.append({"id": f"{topic}-{seed}-{i}", "text": " ".join(words), "source": topic, "domain": topic})
    return records


def write_corpus(directory: Path) -> Path:
    """Write a pool of three topics with a duplicate and bad lines, a reference of one topic, held-out files of all."""
    for topic in TOPICS:
        records = topic_records(topic, DOCUMENTS_PER_TOPIC, seed=0)
        bad = BAD_LINES if topic == "weather" else ()
        extra = [{**records[3], "id": f"{topic}-copy"}] if topic == "kitchen" else []
        write_jsonl(directory / "pool" / f"{topic}.jsonl", records + extra, bad)
        write_jsonl(directory / "heldout" / f"{topic}.jsonl", topic_records(topic, 8, seed=1))
    write_jsonl(directory / "reference" / "harbour.jsonl", topic_records("harbour", 24, seed=2))
    return directory


def small_config(corpus: Path, workspace: str, **changes: object) -> dict[str, object]:
    """Return the configuration of a run of seconds; `changes` are dotted keys with `__` for the dot."""
    body: dict[str, object] = {
        "run": "small",
        "workspace": workspace,
        "pool": {"inputs": [f"{corpus}/pool/*.jsonl"]},
        "reference": {"inputs": [f"{corpus}/reference/*.jsonl"]},
        "heldout": {"inputs": [f"{corpus}/heldout/*.jsonl"], "reference_domain": "harbour"},
        "model": {
            "window_tokens": 64,
            "batch_tokens": 512,
            "fresh": {
                "vocabulary": 320,
                "width": 16,
                "layers": 2,
                "heads": 2,
                "key_value_heads": 1,
                "mlp_width": 32,
                "train_tokens": 4000,
            },
        },
        "embedding": {"dimension": 8},
        "clustering": {"arms": 6},
        "factors": {"sample_documents": 40},
        "bandit": {
            "pilot_documents": 24,
            "arms_per_round": 2,
            "documents_per_pull": 4,
            "max_scored_share": 0.6,
            "scorer": "exact",
        },
        "selection": {
            "budget_tokens": 1500,
            "near_duplicate_cosine": None,
        },  # 15 words: all alike
        "training": {"stages": 2, "batch_tokens": 512, "frontier": [0.5]},
        "compute": {"device": "cpu"},
    }
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        target = body
        for parent in parents:
            target = target[parent]  # type: ignore[assignment]
        target[last] = value
    return body
