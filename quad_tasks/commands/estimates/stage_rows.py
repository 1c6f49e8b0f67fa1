"""What each stage of a run handles, computes, writes and takes, from volumes and what a unit of work takes.

Knows nothing of how these were measured (`probe.py`) or of inputs: counts and seconds alone.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from quad_tasks.commands.estimates.pieces import Pieces, pieces_at_once
from quad_tasks.commands.estimates.probe import Rates, Shape
from quad_tasks.commands.estimates.requests import Requests, Run, count_requests, pool_predictions
from quad_tasks.commands.estimates.scoring_cost import Choosing
from quad_tasks.config.schema import RunConfig
from quad_tasks.config.values import CONDITIONAL_LOSS
from quad_tasks.stages.bandit.round_settings import pull_sizes
from quad_tasks.stages.influence.extract_states import STATE_ROWS
from quad_tasks.stages.influence.factor_memory import CHUNK_DOCUMENTS, chunk_documents
from quad_tasks.stages.pool.prepare_model import FRESH, SAMPLE_BYTES_PER_TOKEN

WORKER_START_S = 8.0
"""A worker's start and its imports, before its first shard."""
OVERLAP_S_PER_BYTE = 0.5e-6
"""Of a search for held-out text: .5 s of one core a megabyte, measured on the demo's pool."""
ROUND_S = 1.0
"""A round's choice, regression and commit, beside its scoring."""
STEP_S = 1.0
"""A Prefect flow's own time."""
PUBLISH_S = 0.2
ROUND_BYTES, SCORE_BYTES = 16_000, 60
HASH_BYTES, ASSIGNMENT_BYTES, ORDER_BYTES = 24, 16, 8
"""Of a document: two hashes of its text and one of its id; its arm, its order and its distance; its order again."""
PREDICT_S, LENGTH_S = 27e-6, 2.4e-6
"""To read a document's 195 numbers and predict it, and to read its tokens alone: measured on a local disk, one core."""
REQUEST_S, READ_THREADS = 0.02, 8
"""A request's wait: assumed; and the threads by which Arrow reads a table."""
RANKING_BYTES = 16
"""Of a document in a prediction or a ranking of the pool: a value and tokens."""


@dataclass(frozen=True)
class Volumes:
    """How much of everything a run handles; documents and tokens are estimates.

    Attributes:
        documents: of the pool.
        text_bytes: their UTF-8.
        tokens: by the run's tokenizer.
        mean_tokens: of a document.
        stored_share: bytes of a compressed table per byte of text.
        reference_documents: that the direction is made from.
        reference_tokens: of these.
        measured_tokens: of those each model is measured on.
    """

    documents: int
    text_bytes: int
    tokens: int
    mean_tokens: float
    stored_share: float
    reference_documents: int
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
        busy: workers that work to the end of a stage whose unit is a shard.
        read_byte: seconds a byte of the inputs takes to read.
        choosing: what choosing documents is expected to take.
        alone: seconds of each stage that run in one process.
        pieces: that the pool is cut into.
    """

    config: RunConfig
    volumes: Volumes
    rates: Rates
    shape: Shape
    busy: float
    read_byte: float
    choosing: Choosing
    alone: dict[str, float]
    pieces: Pieces

    @property
    def scored(self) -> float:
        """Documents scored, all stages."""
        return self.choosing.tokens / self.volumes.mean_tokens

    @property
    def chosen(self) -> float:
        """Documents selected, all stages."""
        return self.config.selection.budget_tokens / self.volumes.mean_tokens


@dataclass(frozen=True)
class Row:
    """What a stage handles, computes, writes and takes."""

    documents: int = 0
    tokens: int = 0
    flops: float = 0.0
    size_bytes: int = 0
    seconds: float = 0.0


def stage_rows(basis: Basis) -> list[dict[str, Any]]:
    """Lay out the stages in a run's order, as a run times them."""
    stages = {
        "model": _model,
        "ingest": _ingest,
        "embed": _embed,
        "cluster": _cluster,
        "overlap": _overlap,
        **({"states": _states} if basis.config.bandit.features == "hidden_states" else {}),
        "fit": _fit,
        "bandit": _bandit,
        "train": _train,
        "publish": _publish,
    }
    run, rows = _asked(basis), []
    for name, stage in stages.items():
        asked = count_requests(name, run)
        row = asdict(stage(basis)) | {"reads": round(asked.reads), "writes": round(asked.writes)}
        row["seconds"] += _waiting_seconds(basis, asked)
        rows.append({"stage": name, **row})
    return rows


def _waiting_seconds(basis: Basis, asked: Requests) -> float:
    """Return how long a stage waits for object storage: each worker for one request, the driving process for some."""
    shared = asked.reads + asked.writes - asked.alone
    waits = shared / basis.config.compute.workers + asked.alone / READ_THREADS
    return waits * request_seconds(basis.config.workspace)


def request_seconds(workspace: str) -> float:
    """Return what a request takes where a workspace is object storage; 0 for a local one, whose files are near."""
    return REQUEST_S if "://" in workspace and not workspace.startswith("file://") else 0.0


def _asked(basis: Basis) -> Run:
    volumes, shape = basis.volumes, basis.shape
    return Run(
        config=basis.config,
        pieces=basis.pieces,
        documents=volumes.documents,
        stored_bytes=volumes.stored_bytes,
        document_values=shape.document_values,
        scored=basis.scored,
        chosen=basis.chosen,
        rounds=basis.choosing.rounds,
        reference_documents=volumes.reference_documents,
        factor_groups=shape.factor_groups,
        covariance_bytes=shape.covariance_bytes,
    )


def passing_bytes(basis: Basis) -> int:
    """Return the most bytes that the workspace holds for a while beside what stays: sorted pieces, or rankings."""
    volumes = basis.volumes
    sorted_pieces = volumes.stored_bytes + 4 * basis.shape.document_values * volumes.documents
    return round(max(sorted_pieces, 3 * RANKING_BYTES * volumes.documents))


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
    return Row(volumes.documents, volumes.tokens, float(flops), 4 * shape.document_values * volumes.documents, seconds)


def _cluster(basis: Basis) -> Row:
    volumes, rates = basis.volumes, basis.rates
    product = volumes.documents * basis.config.clustering.arms * basis.shape.dimension * rates.centroid_product
    shared = 2 * volumes.text_bytes * rates.workers.write_byte + product
    seconds = STEP_S + basis.alone["cluster"] + shared / basis.busy
    document = 4 * basis.shape.document_values + HASH_BYTES + ASSIGNMENT_BYTES + ORDER_BYTES
    size = round(volumes.stored_bytes + document * volumes.documents)
    return Row(volumes.documents, volumes.tokens, 0.0, size, seconds)


def _overlap(basis: Basis) -> Row:
    volumes, searched = basis.volumes, basis.config.heldout.overlap_words is not None
    shared = volumes.text_bytes * OVERLAP_S_PER_BYTE if searched else 0.0
    return Row(volumes.documents, volumes.tokens, 0.0, 0, STEP_S + shared / _busy(basis, basis.pieces.parts))


def _states(basis: Basis) -> Row:
    volumes, shape = basis.volumes, basis.shape
    blocks = math.ceil(volumes.documents / STATE_ROWS)
    seconds = STEP_S + volumes.tokens * basis.rates.workers.measure_token / _busy(basis, blocks)
    flops = float(shape.forward_flops * volumes.tokens)
    return Row(volumes.documents, volumes.tokens, flops, 4 * (shape.width + 1) * volumes.documents, seconds)


def _fit(basis: Basis) -> Row:
    config, volumes, shape, work = basis.config, basis.volumes, basis.shape, basis.rates.workers
    if config.bandit.scorer == CONDITIONAL_LOSS:
        return _adapt(basis)
    first, times = config.factors.sample_documents, _fits(config)
    passes = [min(sample, volumes.documents) for sample in (first, config.factors.eigenvalue_documents or first)]
    tokens = round(sum(passes) / len(passes) * min(volumes.mean_tokens, config.model.window_tokens))
    gradient = volumes.reference_tokens
    flops = 4 * shape.forward_flops * tokens + 4 * shape.factor_values * tokens + 3 * shape.forward_flops * gradient
    chunks = math.ceil(max(passes) / chunk_documents(max(passes), shape.covariance_bytes))
    shared = tokens * work.fit_token / _busy(basis, chunks)
    shared += gradient * work.gradient_token / _busy(basis, math.ceil(volumes.reference_documents / CHUNK_DOCUMENTS))
    return Row(
        times * max(passes),
        times * (tokens + gradient),
        float(times * flops),
        times * 4 * (shape.factor_values + shape.tracked),
        times * (STEP_S + shared + basis.rates.decompose / min(config.compute.workers, shape.factor_groups)),
    )


def _adapt(basis: Basis) -> Row:
    """Plan the copies that the conditional loss scores by, in place of a fit: trainings on the reference."""
    config, shape, work, times = basis.config, basis.shape, basis.rates.workers, _fits(basis.config)
    copies, tokens = len(config.reference.named_sets()), basis.volumes.reference_tokens
    trained = config.bandit.adaptation_passes * tokens
    seconds = trained * work.train_token / min(copies, config.compute.workers)
    flops = float(times * 3 * shape.forward_flops * trained)
    return Row(0, times * trained, flops, times * 4 * shape.parameters * copies, times * (STEP_S + seconds))


def _bandit(basis: Basis) -> Row:
    config, scored, rounds = basis.config, basis.choosing.tokens, basis.choosing.rounds
    documents = scored / basis.volumes.mean_tokens
    seconds = config.training.stages * STEP_S + rounds * ROUND_S
    busy = workers_busy(tasks_of_a_round(config), config.compute.workers)
    predicted = pool_predictions(_asked(basis)) * PREDICT_S / _busy(basis, basis.pieces.blocks)
    seconds += basis.volumes.documents * (predicted + LENGTH_S)
    return Row(
        round(documents),
        scored,
        basis.choosing.scoring,
        round(rounds * ROUND_BYTES + SCORE_BYTES * documents),
        seconds + scored * _score_token(basis) / busy,
    )


def tasks_of_a_round(config: RunConfig) -> list[int]:
    """Return the documents of each task of a round: its pulls, then what is drawn beside them in pulls' sizes."""
    sizes = pull_sizes(config.bandit)
    beside = sizes.arms_per_round * (sizes.documents_per_pull - sizes.random_documents)
    whole, rest = divmod(beside, sizes.documents_per_pull)
    return [sizes.random_documents] * sizes.arms_per_round + [sizes.documents_per_pull] * whole + [rest] * (rest > 0)


def _score_token(basis: Basis) -> float:
    """Return the seconds of scoring a token: exactly, or by the losses of the checkpoint and of its copies."""
    config, work = basis.config, basis.rates.workers
    models = 1 + len(config.reference.named_sets())
    return models * work.measure_token if config.bandit.scorer == CONDITIONAL_LOSS else work.score_token


def _train(basis: Basis) -> Row:
    config, shape, work = basis.config, basis.shape, basis.rates.workers
    budget, times, measured = config.selection.budget_tokens, config.training.stages, basis.volumes.measured_tokens
    models = config.training.seeds * (2 if config.training.control else 1) + len(config.training.frontier)
    measured_s = measured * work.measure_token
    trained_s = budget / times * work.train_token / config.compute.training_processes + measured_s
    measurements = times * (models + 1) * measured
    return Row(
        round(models * budget / basis.volumes.mean_tokens),
        models * budget + measurements,
        float(shape.forward_flops * (3 * models * budget + measurements)),
        times * 12 * shape.parameters,
        times * (STEP_S + makespan([trained_s] * models + [measured_s], config.compute.workers)),
    )


def _publish(basis: Basis) -> Row:
    budget = basis.config.selection.budget_tokens
    text_bytes = budget * basis.shape.bytes_per_token
    size = round(basis.volumes.stored_share * text_bytes)
    seconds = PUBLISH_S + text_bytes * basis.rates.workers.write_byte + 2 * LENGTH_S * basis.volumes.documents
    return Row(round(budget / basis.volumes.mean_tokens), budget, 0.0, size, seconds)


def _busy(basis: Basis, pieces: int) -> float:
    """Return how many workers this many equal pieces of work keep busy."""
    return pieces_at_once(max(1, pieces), basis.config.compute.workers)


def _fits(config: RunConfig) -> int:
    """Return how often factors and direction are fitted."""
    return 1 if config.training.refit == "never" else config.training.stages


def workers_busy(sizes: Sequence[int], workers: int) -> float:
    """Return how many workers shards of these sizes keep busy on average: one shard keeps one."""
    return sum(sizes) / max(1.0, makespan(sizes, workers))


def makespan(durations: Sequence[float], workers: int) -> float:
    """Return when the last piece of work ends, where each worker that is free takes the next one."""
    ends = [0.0] * workers
    for duration in durations:
        heapq.heapreplace(ends, ends[0] + duration)
    return max(ends)


def one_process_seconds(config: RunConfig, volumes: Volumes, rates: Rates, shape: Shape) -> dict[str, float]:
    """Return the seconds of each stage that run in one process, however many workers there are."""
    alone = dict.fromkeys(("embed", "cluster", "fit"), 0.0) | {"model": rates.prepare_model}
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
    alone["fit"] = _fits(config) * rates.decompose if shape.factor_groups == 1 else 0.0
    return alone
