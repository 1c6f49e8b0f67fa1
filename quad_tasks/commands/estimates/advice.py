"""Sizes that suit this many documents: what `quad init` writes and `quad plan` compares with (docs/scaling.md).

One home for the numbers: the table of docs/scaling.md is held to them by a test.
"""

import math

from quad_tasks.config.schema import RunConfig

DOCUMENTS_PER_ARM_AND_ARM = 3
"""An arm for each of its documents, three times over: sqrt(N / 3) arms."""
MOST_ARMS = 10_000
SAMPLED_PER_ARM = 100
"""Documents that an arm's centroid is trained on, at least."""
LEAST_PILOT, PILOT_PER_ARM = 256, 2
MOST_SHARDS = 10_000
"""Of a pool: a refresh asks the store some ninety times a shard, however small, and the driving process reads all their
manifests one after another, several times: on object storage that takes it minutes each time."""
LARGE_POOL, LARGE_COST_SHARE = 10**8, 0.005
"""From this many documents on scoring is kept to this share of scoring the whole pool."""
MOST_DOCUMENTS = 10**9
"""No pool this large has been tried: it is to be split."""
SLACK = 2
"""Settings within this factor of what is advised are left alone."""


def advised_arms(documents: int) -> int:
    """Return how many arms suit this many documents."""
    return max(2, min(MOST_ARMS, round(math.sqrt(documents / DOCUMENTS_PER_ARM_AND_ARM))))


def advised_pilot(arms: int, documents: int) -> int:
    """Return how many documents a pilot suits: two an arm, a tenth of the pool at most."""
    return max(2, min(max(LEAST_PILOT, PILOT_PER_ARM * arms), max(2, documents // 10)))


def advise(config: RunConfig, documents: int, shards: int, tasks: int, most_share: float | None) -> list[str]:
    """Say which settings do not suit this many documents, or this many workers, a line each.

    Args:
        config: the run's.
        documents: of the pool.
        shards: of the pool.
        tasks: that a round of the bandit has.
        most_share: of scoring the whole pool exactly, that choosing may take; None: no cap.
    """
    lines = [*_of_workers(config.compute.workers, shards, tasks), *_of_arms(config, documents)]
    if documents >= LARGE_POOL:
        if most_share is None or most_share > SLACK * LARGE_COST_SHARE:
            found = "no cap" if most_share is None else f"{most_share:.3g}"
            lines.append(f"bandit.max_cost_share: {LARGE_COST_SHARE} keeps scoring a small share, found {found}")
        if "://" not in config.workspace:
            lines.append("workspace: object storage (s3://bucket/prefix), which workers of all machines reach")
    if documents >= MOST_DOCUMENTS:
        lines.append(
            "no pool of this many documents has been tried: split it into pools of 100,000,000 by source or hash, each "
            "with its share of the budget, or let a cheap filter leave as many"
        )
    return lines


def _of_workers(workers: int, shards: int, tasks: int) -> list[str]:
    lines = []
    if shards < workers:
        lines.append(
            f"pool.inputs: one shard (a file, or 256 MiB of a plain .jsonl or Parquet file) keeps one worker busy: "
            f"{workers:,} workers need as many, found {shards:,}"
        )
    if shards > MOST_SHARDS:
        lines.append(f"pool.inputs: pack files, {MOST_SHARDS:,} shards at most suit a refresh, found {shards:,}")
    if tasks < workers:
        lines.append(
            f"bandit.arms_per_round: a round has {tasks:,} parts for {workers:,} workers: "
            f"{math.ceil(workers / tasks)} times as many arms give each one a part"
        )
    return lines


def _of_arms(config: RunConfig, documents: int) -> list[str]:
    lines, arms, suited = [], config.clustering.arms, advised_arms(documents)
    if not suited / SLACK <= arms <= suited * SLACK:
        lines.append(f"clustering.arms: about {suited:,} suit {documents:,} documents, found {arms:,}")
    sampled = min(documents, SAMPLED_PER_ARM * max(arms, suited))
    if config.clustering.sample_documents < sampled / SLACK:
        lines.append(
            f"clustering.sample_documents: {sampled:,}, {SAMPLED_PER_ARM} an arm, found "
            f"{config.clustering.sample_documents:,}"
        )
    pilot = advised_pilot(max(arms, suited), documents)
    if config.bandit.pilot_documents < pilot / SLACK:
        lines.append(
            f"bandit.pilot_documents: {pilot:,}, {PILOT_PER_ARM} an arm, found {config.bandit.pilot_documents:,}"
        )
    return lines
