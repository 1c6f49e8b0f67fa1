"""Stage: whether a refitted direction may rank a stage's documents, by a short trial of both rankings.

Influence at a freshly trained checkpoint can mislead (method: "Stages"). From the stage's own checkpoint, optimizer and
schedule a copy is trained on the best that the new direction's ranking has left, another on the best of the last one
used; the ranking that leaves less loss on the direction's own reference documents is used. The measured part of the
reference has no say, so that what a run reports stays unseen. The verdict is a manifest: `<stage>/gate.json`.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from quad_tasks.checkpoints import load_checkpoint, restore_optimizer
from quad_tasks.choose import try_choice
from quad_tasks.compute import spread, step
from quad_tasks.config import RunConfig
from quad_tasks.core import training
from quad_tasks.core.model import encode, pick_device
from quad_tasks.core.selection import fill_budget
from quad_tasks.progress import notice
from quad_tasks.records import Stage
from quad_tasks.storage.manifest import read_manifest, write_manifest
from quad_tasks.storage.positions import read_positions, read_table
from quad_tasks.storage.store import open_store
from quad_tasks.train import learning_schedule, measure_references

TRIAL_SHARE = 0.5
"""Of a stage's tokens, that each trial trains on."""


@step("gate refit")
def gate_refit(config: RunConfig, stage: Stage) -> Stage:
    """Return the stage with the direction that is to rank its documents.

    That is its own, unless `training.refit` is `gated` and a trial spoke for the direction of the stage before.
    """
    if config.training.refit != "gated" or stage.number == 0:
        return stage
    store, key = open_store(config.workspace), f"{stage.prefix}/gate.json"
    if not store.exists(key):
        before = read_manifest(store, f"runs/{stage.run}/stage-{stage.number - 1:02d}/selected.json")["direction"]
        write_manifest(store, key, _try_both(config, stage, before))
    return replace(stage, direction=read_manifest(store, key)["used"])


def _try_both(config: RunConfig, stage: Stage, before: str) -> dict[str, Any]:
    if before == stage.direction:
        return {"used": before, "refitted_loss": None, "earlier_loss": None, "accepted": False}
    settings = {
        "training": config.training.model_dump(),
        "window_tokens": config.model.window_tokens,
        "batch_tokens": config.model.batch_tokens,
        "budget_tokens": config.selection.budget_tokens,
        "trial_tokens": int(TRIAL_SHARE * config.selection.budget_tokens / config.training.stages),
        "device": pick_device(config.compute.device),
        "seed": config.seed,
    }
    choices = {
        "refitted": try_choice(config, stage, "gate-refitted"),
        "earlier": try_choice(config, replace(stage, direction=before), "gate-earlier"),
    }
    items = [(config.workspace, stage, settings, chosen) for chosen in choices.values()]
    fresh, old = spread(train_trial, items, "try both rankings", "models", on_gpu=True)
    accepted = fresh < old
    notice(
        f"stage {stage.number}: {'the refitted' if accepted else 'the earlier'} ranking is used: after a trial the "
        f"reference's own loss is {fresh:.4f} by the refitted, {old:.4f} by the earlier"
    )
    used = stage.direction if accepted else before
    return {"used": used, "refitted_loss": fresh, "earlier_loss": old, "accepted": accepted}


def train_trial(workspace: str, stage: Stage, settings: dict[str, Any], chosen: str) -> float:
    """Train a copy of the stage's checkpoint on the best of a choice, on a worker; return the reference's own loss."""
    store = open_store(workspace)
    model, tokenizer = load_checkpoint.__wrapped__(workspace, stage.checkpoint, "float32", settings["device"])
    table = read_table(store, f"{chosen}.parquet", ["position", "n_tokens"])
    first = fill_budget(np.arange(table.num_rows), table["n_tokens"].to_numpy(), settings["trial_tokens"])
    rows = table["position"].to_numpy()[first]
    texts = read_positions(store, stage.version, np.sort(rows), ["text"])["text"].to_pylist()
    optimizer = training.make_optimizer(model, settings["training"]["weight_decay"])
    restore_optimizer(store, stage.checkpoint, optimizer)
    before = read_manifest(store, f"{stage.checkpoint}/manifest.json").get("trained_tokens", 0)
    training.train(
        model,
        optimizer,
        encode(tokenizer, texts),
        learning_schedule(settings),
        before,
        settings["window_tokens"],
        settings["training"]["batch_tokens"],
        np.random.default_rng([settings["seed"], 18, stage.number]),
    )
    reference = read_manifest(store, f"{stage.direction}/manifest.json")["reference"]
    limits = (settings["window_tokens"], settings["batch_tokens"])
    return measure_references(store, reference, "reference", model, tokenizer, limits)[0]
