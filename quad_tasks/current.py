"""Which stage a run is at, and what a stage's rounds and trainings came to, read from what was committed."""

from typing import Any

from quad_tasks.config import RunConfig
from quad_tasks.storage.manifest import read_manifest
from quad_tasks.storage.rounds import list_rounds
from quad_tasks.storage.store import open_store


def trainings(config: RunConfig) -> list[str]:
    """Name what each stage trains and measures: `before`, `selected-<seed>`, `random-<seed>`, `general-<share>`."""
    seeds = range(config.training.seeds)
    kinds = ["selected", *(["random"] if config.training.control else [])]
    shares = [f"general-{share:g}" for share in config.training.frontier]
    return ["before", *(f"{kind}-{seed}" for kind in kinds for seed in seeds), *shares]


def current_stage(config: RunConfig) -> int:
    """Return the first stage that is not trained, the last one where all are."""
    store, last = open_store(config.workspace), config.training.stages - 1
    for number in range(last):
        folder = f"runs/{config.run}/stage-{number:02d}/trained"
        if not all(store.exists(f"{folder}/{name}/losses.json") for name in trainings(config)):
            return number
    return last


def stage_summary(config: RunConfig, chosen: str) -> dict[str, Any]:
    """Say what a stage's rounds cost and what they chose.

    Args:
        config: the run's configuration.
        chosen: key of the choice, `runs/<run>/stage-<NN>/selected`.
    """
    store = open_store(config.workspace)
    number = int(chosen.split("/")[-2].removeprefix("stage-"))
    committed, choice = list_rounds(store, config.run, number), read_manifest(store, f"{chosen}.json")
    return {
        "run": config.run,
        "stage": number,
        "rounds": len(committed),
        "scored_documents": sum(r.info["documents"] for r in committed),
        "scored_tokens": sum(r.info["tokens"] for r in committed),
        "threshold": choice["threshold"],
        "effective_arms": round(committed[-1].info["effective_arms"], 1),
        "chosen_documents": choice["documents"],
        "chosen_tokens": choice["tokens"],
        "budget_tokens": choice["budget_tokens"],
        "findings": [finding["signature"] for finding in choice["findings"]],
    }


def read_losses(config: RunConfig, checkpoint: str) -> list[dict[str, Any]]:
    """Read what each training of a stage came to: reference loss, nats per token, and bits per byte by domain.

    Args:
        config: the run's configuration.
        checkpoint: key of one of the stage's checkpoints, `runs/<run>/stage-<NN>/trained/<name>`.
    """
    store, folder = open_store(config.workspace), checkpoint.rpartition("/")[0]
    rows = []
    for name in trainings(config):
        losses = read_manifest(store, f"{folder}/{name}/losses.json")
        domains = {domain: round(bits, 4) for domain, bits in losses["domains"].items()}
        rows.append({"trained_on": name, "reference_loss": round(losses["reference_loss"], 4), **domains})
    return rows
