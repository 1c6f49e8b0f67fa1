"""What a run will take, stage by stage, before anything is spent: documents, tokens, FLOPs, bytes, time, money.

Counts follow from the configuration and a look at the inputs (`sample.py`); seconds from what a unit of each kind of
work takes on this machine (`probe.py`). The same look finds what would end the run in its first minutes: inputs that
cannot be read, fields that are not there, a budget above the pool, a workspace that takes no commits. Writes nothing on
local disk; of a remote workspace it asks what a run asks first, which leaves two tiny objects.
"""

import heapq
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from quad_tasks.config import ConfigError, RunConfig
from quad_tasks.model import FRESH, SAMPLE_BYTES_PER_TOKEN
from quad_tasks.probe import Rates, Shape, probe, usable_cores
from quad_tasks.progress import working
from quad_tasks.pull import PREDICTED_SCORED_SHARE
from quad_tasks.reference import split_reference
from quad_tasks.sample import Sample, look_at, value_at
from quad_tasks.storage.readers import InputError, expand_inputs
from quad_tasks.storage.store import check_conditional_create, open_store

WORKER_START_S = 8.0
"""A worker's start and its imports, before its first shard."""
ROUND_S = 1.0
"""A round's choice, regression and commit, beside its scoring."""
STEP_S = 1.0
"""A Prefect flow's own time."""
PUBLISH_S = 0.2
ACCEPTED_AT_RANDOM = 0.5
"""Share of the tokens that rounds of the bandit score in its arms that are above τ; of documents drawn actively nearly
all are (LAMBADA configuration: 0.87 of all with three quarters drawn actively)."""
ROUND_BYTES = 16_000
SCORE_BYTES = 60
PROBED_BYTES = 2_000_000
"""Text the probe works on, at most."""


@dataclass(frozen=True)
class Volumes:
    """How much of everything a run handles; documents and tokens are estimates.

    Attributes:
        documents: of the pool.
        text_bytes: their UTF-8.
        tokens: by the run's tokenizer.
        mean_tokens: of a document.
        stored_share: bytes of a compressed table per byte of text.
        reference_tokens: of the documents the direction is made from.
        measured_tokens: of those each model is measured on.
    """

    documents: int
    text_bytes: int
    tokens: int
    mean_tokens: float
    stored_share: float
    reference_tokens: int
    measured_tokens: int

    @property
    def stored_bytes(self) -> float:
        """Bytes of the pool's compressed tables."""
        return self.stored_share * self.text_bytes


@dataclass(frozen=True)
class Basis:
    """What every stage's row follows from.

    Attributes:
        config: the run's.
        volumes: how much there is.
        rates: what a unit of each kind of work takes.
        shape: of the model and the embeddings.
        busy: workers that work to the end of a stage whose unit is a file.
        read_byte: seconds a byte of the inputs takes to read.
        scored: tokens expected to be scored.
        rounds: of the bandit, all stages.
        alone: seconds of each stage that run in one process.
    """

    config: RunConfig
    volumes: Volumes
    rates: Rates
    shape: Shape
    busy: float
    read_byte: float
    scored: int
    rounds: int
    alone: dict[str, float]


@dataclass(frozen=True)
class Row:
    """What a stage handles, computes, writes and takes."""

    documents: int = 0
    tokens: int = 0
    flops: float = 0.0
    size_bytes: int = 0
    seconds: float = 0.0


def plan_run(config: RunConfig, price_per_hour: float | None = None) -> dict[str, Any]:
    """Estimate what every stage of a run takes on this machine.

    Args:
        config: the run's configuration.
        price_per_hour: of this machine, in any currency.

    Returns:
        `pool` and `reference` (documents, tokens, and whether they were counted or estimated), `scored` (tokens
        expected and at most), `stages` (name, `documents`, `tokens`, `flops`, `size_bytes` written, `seconds`,
        `money`), `total`, `machine`, and `one_process_s`: seconds that more workers do not shorten.

    Raises:
        ConfigError: a field that no record has, or a budget above the pool.
        InputError: an input is missing or cannot be read to its end.
        ModelError: the model cannot be loaded.
        UnsupportedStore: the workspace cannot commit.
    """
    _check_workspace(config.workspace)
    started = time.perf_counter()
    pool = _look(config.pool.inputs)
    read_byte = (time.perf_counter() - started) / (pool.read_bytes or 1)
    texts = _texts(pool, config.pool.fields.text)
    with working("measure this machine"):
        rates, shape = probe(config, texts)
    volumes = _volumes(config, pool, texts, shape)
    if config.selection.budget_tokens > volumes.tokens * 1.05:
        found = config.selection.budget_tokens
        raise ConfigError(
            f"selection.budget_tokens: expected at most the pool's tokens (about {volumes.tokens}), found {found}"
        )
    scored, at_most, rounds = _scored(config, volumes)
    busy = _as_many(pool.sizes, config.compute.workers)
    one_process = _one_process(config, volumes, rates, shape)
    stages = _stages(Basis(config, volumes, rates, shape, busy, read_byte, scored, rounds, one_process))
    for stage in stages:
        stage["money"] = None if price_per_hour is None else stage["seconds"] / 3600 * price_per_hour
    return {
        "run": config.run,
        "pool": {
            "documents": volumes.documents,
            "tokens": volumes.tokens,
            "text_bytes": volumes.text_bytes,
            "files": pool.files,
            "counted": pool.exact,
        },
        "model": {"source": config.model.source, "parameters": shape.parameters},
        "scored": {"tokens": scored, "tokens_at_most": at_most, "rounds": rounds},
        "stages": stages,
        "total": {
            key: None if stages[0][key] is None else sum(stage[key] for stage in stages)
            for key in ("flops", "size_bytes", "seconds", "money")
        },
        "machine": {"workers": config.compute.workers, "cores": usable_cores()},
        "one_process_s": one_process,
        "seconds_per_unit": asdict(rates),
    }


def _check_workspace(workspace: str) -> None:
    if "://" in workspace:
        check_conditional_create(open_store(workspace))
        return
    folder = Path(workspace).absolute()
    while not folder.exists():
        folder = folder.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ConfigError(f"workspace: expected a folder that can be written, found {folder}")


def _look(inputs: Sequence[str]) -> Sample:
    sample = look_at(expand_inputs(inputs))
    if sample.broken:
        raise InputError("\n".join(sample.broken.values()))
    if not sample.records:
        raise ConfigError(f"pool.inputs: expected records, found none (bad lines: {dict(sample.bad)})")
    return sample


def _texts(sample: Sample, field: str) -> list[str]:
    """Return the sample's texts, in one order for one sample."""
    values = [value_at(record, field) for record in sample.records]
    texts = [value for value in values if isinstance(value, str) and value.strip()]
    if not texts:
        known = ", ".join(sorted({name for record in sample.records for name in record}))
        raise ConfigError(f"pool.fields.text: expected a field that holds text, found none in {field!r} ({known})")
    order = np.random.default_rng(0).permutation(len(texts))
    taken, size = [], 0
    for i in order:
        if size >= PROBED_BYTES:
            break
        taken.append(texts[i])
        size += len(texts[i].encode())
    return taken


def _volumes(config: RunConfig, pool: Sample, texts: Sequence[str], shape: Shape) -> Volumes:
    values = [value_at(record, config.pool.fields.text) for record in pool.records]
    sampled_bytes = sum(len(value.encode(errors="replace")) for value in values if isinstance(value, str))
    documents = round(pool.documents * sum(isinstance(value, str) for value in values) / len(values))
    text_bytes = round(pool.record_bytes * sampled_bytes / pool.kept_bytes)
    tokens = round(text_bytes / shape.bytes_per_token)
    joined = "\n".join(texts).encode()
    reference, measured, heldout = (
        sum(len(document.text.encode()) for document in documents) / shape.bytes_per_token
        for documents in split_reference(config)
    )
    return Volumes(
        documents=documents,
        text_bytes=text_bytes,
        tokens=tokens,
        mean_tokens=tokens / max(1, documents),
        stored_share=len(zstandard.compress(joined)) / len(joined),
        reference_tokens=round(reference),
        measured_tokens=round(measured + heldout),
    )


def _scored(config: RunConfig, volumes: Volumes) -> tuple[int, int, int]:
    """Return the tokens expected to be scored, all stages, those at most, and the rounds of the bandit."""
    settings, stages = config.bandit, config.training.stages
    share = settings.max_scored_share
    if share is None:
        share = 1.0 if config.selection.mode == "instance" else PREDICTED_SCORED_SHARE
    at_most = share * volumes.tokens
    pilot = min(settings.pilot_documents * stages, volumes.documents) * volumes.mean_tokens
    wanted = settings.oversample * config.selection.budget_tokens - (1 - settings.threshold_quantile) * pilot
    accepted = ACCEPTED_AT_RANDOM + (1 - ACCEPTED_AT_RANDOM) * settings.active_share
    expected = max(pilot, min(pilot + max(0.0, wanted) / accepted, at_most))
    per_round = settings.arms_per_round * settings.documents_per_pull * volumes.mean_tokens
    rounds = min(math.ceil((expected - pilot) / per_round), settings.max_rounds * stages)
    return round(expected), round(max(at_most, pilot)), rounds


def _stages(basis: Basis) -> list[dict[str, Any]]:
    """Lay out the stages in a run's order, as a run times them."""
    stages = {
        "model": _model,
        "ingest": _ingest,
        "embed": _embed,
        "cluster": _cluster,
        **({"states": _states} if basis.config.selection.states else {}),
        "fit": _fit,
        "bandit": _bandit,
        "train": _train,
        "publish": _publish,
    }
    return [{"stage": name, **asdict(stage(basis))} for name, stage in stages.items()]


def _model(basis: Basis) -> Row:
    config, volumes, shape = basis.config, basis.volumes, basis.shape
    seconds = WORKER_START_S + STEP_S + basis.alone["model"]
    if config.model.source != FRESH:
        return Row(seconds=seconds)
    tokens = min(config.model.fresh.train_tokens, volumes.tokens)
    seconds += 2 * volumes.text_bytes * basis.read_byte / basis.busy
    return Row(0, tokens, 3.0 * shape.forward_flops * tokens, 4 * shape.parameters, seconds)


def _ingest(basis: Basis) -> Row:
    volumes = basis.volumes
    seconds = STEP_S + volumes.text_bytes * (basis.read_byte + basis.rates.workers.ingest_byte) / basis.busy
    return Row(volumes.documents, volumes.tokens, 0.0, round(volumes.stored_bytes), seconds)


def _embed(basis: Basis) -> Row:
    volumes, shape = basis.volumes, basis.shape
    flops = shape.forward_flops * volumes.tokens if basis.config.embedding.method == "model" else 0
    seconds = STEP_S + basis.alone["embed"] + volumes.text_bytes * basis.rates.workers.embed_byte / basis.busy
    return Row(volumes.documents, volumes.tokens, float(flops), 4 * shape.dimension * volumes.documents, seconds)


def _cluster(basis: Basis) -> Row:
    volumes, rates = basis.volumes, basis.rates
    product = volumes.documents * basis.config.clustering.arms * basis.shape.dimension * rates.centroid_product
    shared = 2 * volumes.text_bytes * rates.workers.write_byte + product
    seconds = STEP_S + basis.alone["cluster"] + shared / basis.busy
    size = round(volumes.stored_bytes + 4 * basis.shape.dimension * volumes.documents)
    return Row(volumes.documents, volumes.tokens, 0.0, size, seconds)


def _states(basis: Basis) -> Row:
    volumes, shape = basis.volumes, basis.shape
    seconds = STEP_S + volumes.tokens * basis.rates.workers.measure_token / basis.config.compute.workers
    flops = float(shape.forward_flops * volumes.tokens)
    return Row(volumes.documents, volumes.tokens, flops, 4 * (shape.width + 1) * volumes.documents, seconds)


def _fit(basis: Basis) -> Row:
    config, volumes, shape, work = basis.config, basis.volumes, basis.shape, basis.rates.workers
    first, times = config.factors.sample_documents, _fits(config)
    passes = [min(sample, volumes.documents) for sample in (first, config.factors.eigenvalue_documents or first)]
    tokens = round(sum(passes) / len(passes) * min(volumes.mean_tokens, config.model.window_tokens))
    gradient = volumes.reference_tokens
    flops = 4 * shape.forward_flops * tokens + 4 * shape.factor_values * tokens + 3 * shape.forward_flops * gradient
    shared = tokens * work.fit_token + gradient * work.gradient_token
    return Row(
        times * max(passes),
        times * (tokens + gradient),
        float(times * flops),
        times * 4 * (shape.factor_values + shape.tracked),
        times * STEP_S + basis.alone["fit"] + times * shared / config.compute.workers,
    )


def _bandit(basis: Basis) -> Row:
    config, scored = basis.config, basis.scored
    documents = scored / basis.volumes.mean_tokens
    seconds = config.training.stages * STEP_S + basis.rounds * ROUND_S
    return Row(
        round(documents),
        scored,
        float(3 * basis.shape.forward_flops * scored),
        round(basis.rounds * ROUND_BYTES + SCORE_BYTES * documents),
        seconds + scored * basis.rates.workers.score_token / config.compute.workers,
    )


def _train(basis: Basis) -> Row:
    config, shape, work = basis.config, basis.shape, basis.rates.workers
    budget, times, measured = config.selection.budget_tokens, config.training.stages, basis.volumes.measured_tokens
    models = config.training.seeds * (2 if config.training.control else 1) + len(config.training.frontier)
    measured_s = measured * work.measure_token
    trained_s = budget / times * work.train_token + measured_s
    measurements = times * (models + 1) * measured
    return Row(
        round(models * budget / basis.volumes.mean_tokens),
        models * budget + measurements,
        float(shape.forward_flops * (3 * models * budget + measurements)),
        times * 12 * shape.parameters,
        times * (STEP_S + _makespan([trained_s] * models + [measured_s], config.compute.workers)),
    )


def _publish(basis: Basis) -> Row:
    budget = basis.config.selection.budget_tokens
    text_bytes = budget * basis.shape.bytes_per_token
    size = round(basis.volumes.stored_share * text_bytes)
    seconds = PUBLISH_S + text_bytes * basis.rates.workers.write_byte
    return Row(round(budget / basis.volumes.mean_tokens), budget, 0.0, size, seconds)


def _fits(config: RunConfig) -> int:
    """Return how often factors and direction are fitted."""
    return 1 if config.training.refit == "never" else config.training.stages


def _as_many(sizes: Sequence[int], workers: int) -> float:
    """Return how many workers files of these sizes keep busy on average: one file keeps one."""
    return sum(sizes) / max(1.0, _makespan(sizes, workers))


def _makespan(durations: Sequence[float], workers: int) -> float:
    """Return when the last piece of work ends, where each worker that is free takes the next one."""
    ends = [0.0] * workers
    for duration in durations:
        heapq.heapreplace(ends, ends[0] + duration)
    return max(ends)


def _one_process(config: RunConfig, volumes: Volumes, rates: Rates, shape: Shape) -> dict[str, float]:
    """Return the seconds of each stage that run in one process, however many workers there are."""
    alone = dict.fromkeys(("model", "embed", "cluster", "fit"), 0.0)
    if config.model.source == FRESH:
        wanted = config.model.fresh.train_tokens
        sampled = min(SAMPLE_BYTES_PER_TOKEN * wanted, volumes.text_bytes)
        alone["model"] = sampled * (rates.tokenizer_byte + rates.encode_byte)
        alone["model"] += min(wanted, volumes.tokens) * rates.pretrain_token
    share = min(1.0, config.embedding.sample_documents / max(1, volumes.documents))
    alone["embed"] = rates.embed_fit + share * volumes.text_bytes * rates.embed_fit_byte
    sample = min(config.clustering.sample_documents, volumes.documents)
    products = sample * config.clustering.arms * shape.dimension * config.clustering.iterations
    alone["cluster"] = products * rates.centroid_product
    alone["fit"] = _fits(config) * rates.decompose
    return alone
