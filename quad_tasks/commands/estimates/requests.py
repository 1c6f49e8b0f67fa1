"""How often a run asks object storage, stage by stage: reads (GET, HEAD) and writes (PUT, LIST), as S3 bills them.

Counted from the code, and held to what a small run asked of an S3 server (`tests/commands/estimates/test_requests.py`).
Asked once each: an object (`Store.get`, and so a manifest) by 2 reads; a table by 2, its size and its footer, and by
one more for each row group that is read, since between a column's pages of two row groups lie their texts; an array
and a file of tensors by 1; whether something is there by 1 read, and 1 write more where it is not (s3fs lists the
folder then). An object above `UPLOAD_BYTES` is written in pieces. Deletes are free and left out, and so are retries
and what the lease is renewed by. What a run asks between two stages counts with the one that follows.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from quad_tasks.commands.estimates.pieces import Pieces, touched
from quad_tasks.config.schema import RunConfig
from quad_tasks.config.values import CONDITIONAL_LOSS
from quad_tasks.core.selection.remaining import MOST_DOCUMENTS, REFITTED_DOCUMENTS
from quad_tasks.stages.bandit.cost import cost_cap
from quad_tasks.stages.bandit.estimate_left import FOLDS
from quad_tasks.stages.bandit.ledger import REFIT_GROWTH
from quad_tasks.stages.bandit.round_settings import pull_sizes, round_settings
from quad_tasks.stages.influence.extract_states import STATE_ROWS
from quad_tasks.stages.influence.factor_memory import CHUNK_DOCUMENTS, chunk_documents
from quad_tasks.stages.pool.prepare_model import FRESH
from quad_tasks.stages.selection.drop_near_duplicates import SIGN_ROWS
from quad_tasks.stages.selection.fill_pool_budget import OFFERED_TOKENS
from quad_tasks.storage.tables import PART_ROWS

OBJECT, TABLE = 2, 2
UPLOAD_BYTES = 50 * 2**20
"""Above it s3fs begins an upload, sends pieces of this size, and ends it."""
CUT_PASSES = 6
"""Reads of a block of a ranking to fill a budget: four digits of the cut, its documents, and what is taken."""
PREDICTION_READS = 7
"""Of a block of predictions: four digits of the cut, its edge, what lies near it, what is left to gain."""
FILLS = 2
"""Times a budget is filled: once more where near-duplicates were left out."""
PASSING_BYTES = (40, 40, 8)
"""Of a document: hashes of its text and its id with its number each, twice; its arm and its distance."""
REPORTED_DOCUMENTS = 3_000
"""Whose texts or embeddings a report reads."""


class Requests(NamedTuple):
    """What a stage asks of object storage; `alone`: those of the reads that the driving process does by itself."""

    reads: float = 0.0
    writes: float = 0.0
    alone: float = 0.0


class Run(NamedTuple):
    """What requests follow from.

    Attributes:
        config: the run's.
        pieces: of the pool.
        documents: of the pool.
        stored_bytes: of the pool's compressed texts.
        document_values: numbers stored of each document.
        scored: documents scored, all stages.
        chosen: documents selected, all stages.
        rounds: of the bandit, pilots left out.
        reference_documents: that the direction is made from.
        factor_groups: of blocks whose covariances are kept together.
        covariance_bytes: of all covariances.
    """

    config: RunConfig
    pieces: Pieces
    documents: int
    stored_bytes: float
    document_values: int
    scored: float
    chosen: float
    rounds: int
    reference_documents: int
    factor_groups: int
    covariance_bytes: int


def count_requests(stage: str, run: Run) -> Requests:
    """Count what a stage, named as a run times it, asks of object storage."""
    return STAGES[stage](run)


def _model(run: Run) -> Requests:
    """Count the run's record, its lease, the reference's tables, and a checkpoint's files."""
    return Requests(36, 37)


def _ingest(run: Run) -> Requests:
    """Count for each shard: is it there, the tokenizer's digest, three objects, its seal, its manifest again."""
    shards = run.pieces.shards
    tables = shards * _uploads(run.stored_bytes / shards)
    return Requests(7 * shards + _tokenizer(run) * run.config.compute.workers + 10, 3 * shards + tables + 3)


def _embed(run: Run) -> Requests:
    """Count three passes over a shard's texts: the sample, embeddings, token features; two arrays are written."""
    pieces, workers = run.pieces, run.config.compute.workers
    sampled = touched(run.config.embedding.sample_documents, pieces.shard_blocks)
    reads = 23 * pieces.shards + 2 * pieces.shard_blocks + sampled + (4 + _tokenizer(run)) * workers + _checkpoint(run)
    arrays = pieces.shards * _uploads(4 * run.document_values * run.documents / pieces.shards)
    return Requests(reads + 5, 3 * pieces.shards + arrays + 10)


def _cluster(run: Run) -> Requests:
    """Count assignments, drift from new centroids, duplicates, sought twice, and the layout.

    A partition reads a range of every bundle of hashes or distances, and a range of arms one of nearly every bundle of
    sorted pieces.
    """
    pieces = run.pieces
    document = run.stored_bytes / run.documents + 4 * run.document_values
    assigned = TABLE + 2 * math.ceil(run.documents / pieces.shards / PART_ROWS)
    reads = (39 + assigned) * pieces.shards + 4 * pieces.shard_blocks + 11 * pieces.sorted
    reads += 5 * pieces.partitions * pieces.hash_bundles + 2 * pieces.bundles
    reads += pieces.dealt + pieces.groups + 2 * pieces.parts + 15
    passing = sum(_uploads(each * run.documents / pieces.hash_bundles) for each in PASSING_BYTES)
    tables = pieces.hash_bundles * passing + pieces.bundles * _uploads(document * run.documents / pieces.bundles)
    tables += pieces.parts * _uploads(document * run.documents / pieces.parts)
    return Requests(reads, 4 * pieces.shards + pieces.bundles + pieces.groups + tables + 24)


def _overlap(run: Run) -> Requests:
    """Count a pass over ids and texts, each column of a row group by itself."""
    searched = run.config.heldout.overlap_words is not None
    return Requests(20 + searched * _scan(run, 2, opened=0), 10)


def _states(run: Run) -> Requests:
    """Count a pass over texts, and a block's array."""
    blocks = math.ceil(run.documents / STATE_ROWS)
    return Requests(_scan(run, 1, opened=blocks) + blocks + _checkpoint(run) * run.config.compute.workers, 2 * blocks)


def _fit(run: Run) -> Requests:
    """Count the sample's documents and sums by chunk and group of blocks, then the reference's, by chunk; or copies."""
    config, groups = run.config, run.factor_groups
    times = 1 if config.training.refit == "never" else config.training.stages
    if config.bandit.scorer == CONDITIONAL_LOSS:
        copies = len(config.reference.named_sets())
        return Requests(times * (copies * (_checkpoint(run) + 6) + 45), times * (8 * copies + 25))
    first = config.factors.sample_documents
    passes = [min(n, run.documents) for n in (first, config.factors.eigenvalue_documents or first)]
    lengths = [chunk_documents(n, run.covariance_bytes) for n in passes]
    counts = [math.ceil(n / length) for n, length in zip(passes, lengths, strict=True)]
    reads = sum(count * _fetch(run, length) for count, length in zip(counts, lengths, strict=True))
    chunks = sum(counts)
    reads += chunks * (1 + 2 * groups) + 6 * math.ceil(run.reference_documents / CHUNK_DOCUMENTS) + 2 * groups
    writes = 2 * chunks * (1 + groups) + 2 * math.ceil(run.reference_documents / CHUNK_DOCUMENTS) + 2 * groups
    return Requests(times * (reads + _checkpoint(run) * config.compute.workers + 45), times * (writes + 25))


def _bandit(run: Run) -> Requests:
    """Count rounds, what they score, regressions of it over the whole pool, and the stages' choices.

    Workers read lengths of all documents once, and those of what pulls are to score when a round is planned.
    """
    config, stages, pieces = run.config, run.config.training.stages, run.pieces
    sizes, pilot = pull_sizes(config.bandit), min(config.bandit.pilot_documents, run.scored / stages)
    beside = sizes.arms_per_round * (1 - sizes.random_documents / sizes.documents_per_pull)
    drawn = run.rounds * (sizes.arms_per_round * _fetch(run, 1) + beside * _fetch(run, sizes.documents_per_pull))
    drawn += stages * min(pilot, config.clustering.arms) * _fetch(run, 1)
    fits = stages * fitted(run)
    regressions = sum(_regression(run, fit) for fit in fits)
    chosen, blocks = _choice(run), len(fits) * pieces.blocks
    tried = chosen.reads + _fetch(run, run.chosen / stages) + _checkpoint(run) + 20
    lengths = _scan(run, 1, opened=0)
    pulls = run.rounds * sizes.arms_per_round + stages * min(pilot, config.clustering.arms)
    planned = 0 if cost_cap(config) is None else pulls * _fetch(run, 1)
    reads = lengths + planned + drawn + regressions + stages * chosen.reads + 2 * trials(config) * tried
    reads += (35 + 10 * (stages - 1)) * (run.rounds + stages) + stages * 60
    reads += (_checkpoint(run) + 4) * config.compute.workers * stages
    writes = 7 * (run.rounds + stages) + blocks + (stages + 2 * trials(config)) * chosen.writes + 15 * stages
    return Requests(reads, writes)


def fitted(run: Run) -> list[float]:
    """Return how many documents each regression of a stage's rounds is fitted on, after the round that makes it due."""
    if not round_settings(run.config, 0).predicts:
        return []
    stages = run.config.training.stages
    scored, rounds = run.scored / stages, run.rounds / stages
    pilot = min(run.config.bandit.pilot_documents, scored)
    each, sizes = (scored - pilot) / max(1.0, rounds), [pilot]
    while each > 0:
        due = pilot + math.ceil((REFIT_GROWTH * sizes[-1] - pilot) / each) * each
        if due > scored:
            break
        sizes.append(due)
    return sizes


def pool_predictions(run: Run) -> int:
    """Count how often all documents are predicted: by each regression of a stage, and for each choice by prediction."""
    stages, frontier = run.config.training.stages, len(run.config.training.frontier)
    choices = stages * (1 + frontier) + 2 * trials(run.config)
    return stages * len(fitted(run)) + (choices if run.config.selection.mode == "predicted" else 0)


def trials(config: RunConfig) -> int:
    """Count the stages that try a refitted ranking beside the earlier one."""
    return config.training.stages - 1 if config.training.refit == "gated" else 0


def _regression(run: Run, scored: float) -> float:
    """Count reads of a regression: of the scored documents, of its folds, of all documents, and of what is left."""
    known, left = _fetch(run, scored), _fetch(run, min(MOST_DOCUMENTS, run.documents))
    fold = _fetch(run, 0.8 * scored) + _fetch(run, 0.2 * scored + REFITTED_DOCUMENTS)
    whole = _scan(run, 2, opened=2 * run.pieces.read_blocks)
    return 2 * known + FOLDS * fold + left + whole + PREDICTION_READS * run.pieces.blocks


def _choice(run: Run) -> Requests:
    """Count a choice and its general share: ranked, filled, near-duplicates left out.

    By prediction all documents' features are read, by arms their tokens; scored documents alone need no blocks.
    """
    pieces, mode, share = run.pieces, run.config.selection.mode, run.config.selection.general_share > 0
    reads, ranked = _described(run) + 30, 0 if mode == "instance" else pieces.blocks
    if mode == "predicted":
        reads += _fetch(run, run.scored / run.config.training.stages) + _scan(run, 2, opened=2 * pieces.read_blocks)
    elif mode == "cluster":
        reads += _scan(run, 1, opened=pieces.blocks)
    reads += share * (_scan(run, 1, opened=pieces.blocks) + FILLS * _passes(run) * pieces.blocks)
    reads += (FILLS * _passes(run) + 1) * ranked
    return Requests(reads, ranked + share * pieces.blocks + 8)


def _described(run: Run) -> float:
    """Count reads of the documents of a choice: texts and embeddings to compare, what is told of them, their tokens."""
    chosen = run.chosen / run.config.training.stages
    signed = math.ceil(chosen / SIGN_ROWS) * _fetch(run, min(chosen, SIGN_ROWS))
    return FILLS * signed + 3 * _fetch(run, chosen)


def _train(run: Run) -> Requests:
    """Count the controls and other mixtures, and for each training the checkpoint, its documents, and measuring."""
    config, stages, blocks = run.config, run.config.training.stages, run.pieces.blocks
    controls = config.training.seeds if config.training.control else 0
    models = config.training.seeds + controls + len(config.training.frontier)
    control = _scan(run, 1, opened=blocks) + FILLS * _passes(run) * blocks + _described(run) + 25
    mixture = _choice(run)
    texts = _fetch(run, run.chosen / stages)
    reads = controls * control + len(config.training.frontier) * mixture.reads
    reads += models * (texts + _checkpoint(run) + 30) + 30
    writes = controls * (blocks + 6) + len(config.training.frontier) * mixture.writes + 4 * models + 15
    return Requests(stages * reads, stages * writes)


def _publish(run: Run) -> Requests:
    """Count a pass over sources and tokens by workers; then, alone, the selection's texts and manifests, for both."""
    rounds = run.rounds + run.config.training.stages
    alone = _fetch(run, run.chosen) + _fetch(run, REPORTED_DOCUMENTS)
    alone += 10 * run.pieces.shards + 38 * rounds + 150 * run.config.training.stages + 150
    return Requests(_scan(run, 2, opened=0) + alone, 30 + 5 * run.config.training.stages, alone)


def _scan(run: Run, ranges: int, opened: int) -> float:
    """Count reads of columns of all parts: ranges of every row group; `opened` times more than once a part."""
    return TABLE * (run.pieces.parts + opened) + ranges * run.pieces.row_groups


def _fetch(run: Run, draws: float) -> float:
    """Count reads of documents that lie anywhere in the pool: of the parts and of the row groups they lie in."""
    return TABLE * touched(draws, run.pieces.parts) + touched(draws, run.pieces.row_groups)


def _passes(run: Run) -> int:
    """Return how often a block of a ranking is read to fill a stage's budget."""
    return 1 if run.config.selection.budget_tokens / run.config.training.stages <= OFFERED_TOKENS else CUT_PASSES


def _checkpoint(run: Run) -> int:
    """Count reads of a checkpoint: its manifest, and its files where the workspace keeps them."""
    return 12 if run.config.model.source == FRESH else OBJECT


def _tokenizer(run: Run) -> int:
    return 10 if run.config.model.source == FRESH else OBJECT


def _uploads(size_bytes: float) -> int:
    """Count the writes of an object of this size."""
    return 1 if size_bytes < UPLOAD_BYTES else 2 + math.ceil(size_bytes / UPLOAD_BYTES)


STAGES: dict[str, Callable[[Run], Requests]] = {
    "model": _model,
    "ingest": _ingest,
    "embed": _embed,
    "cluster": _cluster,
    "overlap": _overlap,
    "states": _states,
    "fit": _fit,
    "bandit": _bandit,
    "train": _train,
    "publish": _publish,
}
