"""Stage: train on what was chosen, beside a random control, and measure what it gained and what it cost.

Every training of a stage starts from the stage's checkpoint with its optimizer state, under one learning-rate schedule
over all stages. The model of the first seed is the checkpoint the next stage works on; the others show the interval.
"""

from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from quad_tasks.checkpoints import load_checkpoint, restore_optimizer, save_checkpoint, weights_sha256
from quad_tasks.choose import draw_control, select_mixture
from quad_tasks.compute import spread, step
from quad_tasks.config import RunConfig
from quad_tasks.core import training
from quad_tasks.core.model import encode, pick_device
from quad_tasks.records import Stage
from quad_tasks.storage.manifest import read_manifest, write_manifest
from quad_tasks.storage.positions import read_positions, read_table
from quad_tasks.storage.store import Store, open_store

FIRST_SELECTED = "trained/selected-0"
"""The checkpoint the next stage goes on from."""


@step("train and measure")
def train_stage(config: RunConfig, stage: Stage, reference: str) -> str:
    """Train the selected and the random arms of a stage, measure them and the model before; return the next checkpoint.

    Losses stand in `losses.json` under `<stage>/trained/`: `before`, `selected-<seed>`, `random-<seed>` and
    `general-<share>`.
    """
    settings = {
        "training": config.training.model_dump(),
        "window_tokens": config.model.window_tokens,
        "batch_tokens": config.model.batch_tokens,
        "budget_tokens": config.selection.budget_tokens,
        "device": pick_device(config.compute.device),
        "seed": config.seed,
    }
    common = (config.workspace, stage, reference, settings)
    seeds = range(config.training.seeds)
    items: list[tuple[Any, ...]] = [(*common, f"{stage.prefix}/selected", f"trained/selected-{n}", n) for n in seeds]
    if config.training.control:
        items += [(*common, draw_control(config, stage, n), f"trained/random-{n}", n) for n in seeds]
    for share in config.training.frontier:
        items.append((*common, select_mixture(config, stage, share), f"trained/general-{share:g}", 0))
    items.append((*common, None, "trained/before", 0))
    spread(train_and_measure, items, "train and measure", "models", on_gpu=True)
    return f"{stage.prefix}/{FIRST_SELECTED}"


def train_and_measure(
    workspace: str,
    stage: Stage,
    reference: str,
    settings: dict[str, Any],
    chosen: str | None,
    name: str,
    seed: int,
) -> str:
    """Train a copy of the stage's checkpoint on chosen documents (none: leave it as it is), measure it, commit."""
    store = open_store(workspace)
    key = f"{stage.prefix}/{name}"
    if store.exists(f"{key}/losses.json"):
        return key
    if store.exists(f"{key}/manifest.json"):  # of an attempt that ended before it was measured
        model, tokenizer = load_checkpoint(workspace, key, "float32", settings["device"])
    elif chosen is None:
        model, tokenizer = load_checkpoint(workspace, stage.checkpoint, "float32", settings["device"])
    else:
        model, tokenizer = _train(workspace, stage, settings, chosen, name, seed)
    losses = measure_model(workspace, reference, model, tokenizer, settings)
    write_manifest(store, f"{key}/losses.json", losses)
    return key


def _train(
    workspace: str, stage: Stage, settings: dict[str, Any], chosen: str, name: str, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Train a copy of the stage's checkpoint; keep the one that the next stage goes on from."""
    store, load = open_store(workspace), load_checkpoint.__wrapped__
    model, tokenizer = load(workspace, stage.checkpoint, "float32", settings["device"])
    start = read_manifest(store, f"{stage.checkpoint}/manifest.json")
    rows = read_table(store, f"{chosen}.parquet", ["position"])["position"].to_numpy()
    texts = read_positions(store, stage.version, np.sort(rows), ["text"])["text"].to_pylist()
    optimizer = training.make_optimizer(model, settings["training"]["weight_decay"])
    restore_optimizer(store, stage.checkpoint, optimizer)
    trained = training.train(
        model,
        optimizer,
        encode(tokenizer, texts),
        learning_schedule(settings),
        start.get("trained_tokens", 0),
        settings["window_tokens"],
        settings["training"]["batch_tokens"],
        np.random.default_rng([settings["seed"], 9, stage.number, seed]),
    )
    if name == FIRST_SELECTED:
        info = {k: start[k] for k in ("name", "architecture", "parameters", "tokenizer")}
        info |= {"trained_tokens": trained, "weights_sha256": weights_sha256(model)}
        save_checkpoint(store, f"{stage.prefix}/{name}", model, tokenizer, info, optimizer)
    return model, tokenizer


def learning_schedule(settings: dict[str, Any]) -> training.Schedule:
    """Build the one schedule that runs through all stages."""
    total = settings["budget_tokens"]
    return training.Schedule(settings["training"]["learning_rate"], settings["training"]["warmup_share"] * total, total)


def measure_model(
    workspace: str, reference: str, model: Any, tokenizer: Any, settings: dict[str, Any]
) -> dict[str, Any]:
    """Measure the held-out reference loss, nats per target token, and bits per byte of every held-out domain.

    Of several reference sets the loss is the mean by their weights; `references` then holds each one's.
    """
    store = open_store(workspace)
    limits = (settings["window_tokens"], settings["batch_tokens"])
    loss, losses = measure_references(store, reference, "measured", model, tokenizer, limits)
    per_byte = {}
    for domain, texts in sorted(_texts_by_domain(store, f"{reference}/heldout.parquet").items()):
        domain_nats, _ = training.measure(model, encode(tokenizer, texts), *limits)
        per_byte[domain] = training.bits_per_byte(domain_nats, sum(len(text.encode()) for text in texts))
    return {"reference_loss": loss, "references": losses if len(losses) > 1 else {}, "domains": per_byte}


def measure_references(
    store: Store, reference: str, part: str, model: Any, tokenizer: Any, limits: tuple[int, int]
) -> tuple[float, dict[str, float]]:
    """Measure the loss on a part of the reference, nats per target: the mean of its sets by weight, and each one's.

    Args:
        store: of the workspace.
        reference: key of the reference tables.
        part: `measured`, what is held out; or `reference`, what the direction is made from.
        model: measured.
        tokenizer: its own.
        limits: tokens of a window and of a batch.
    """
    losses = {}
    for name, texts in _texts_by_domain(store, f"{reference}/{part}.parquet").items():
        nats, targets = training.measure(model, encode(tokenizer, texts), *limits)
        losses[name] = nats / targets
    sets = read_manifest(store, f"{reference}/manifest.json")["reference"]["sets"]
    weight = {one["name"]: one["weight"] for one in sets}
    weights = [weight.get(name, 1.0) for name in losses]
    return float(np.average(list(losses.values()), weights=weights)), losses


def _texts_by_domain(store: Store, key: str) -> dict[str, list[str]]:
    rows = read_table(store, key, ["text", "domain"])
    texts: dict[str, list[str]] = {}
    for text, domain in zip(rows["text"].to_pylist(), rows["domain"].to_pylist(), strict=True):
        texts.setdefault(domain, []).append(text)
    return texts
