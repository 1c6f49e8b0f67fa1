"""What a run will take, stage by stage, before anything is spent: documents, tokens, FLOPs, bytes, requests, money.

Counts follow from the configuration and a look at the inputs (`input_sample.py`), which may be a sample of a larger
pool; seconds from what a unit of each kind of work takes on this machine (`estimates`). The same look finds what would
end the run in its first minutes: inputs that cannot be read, fields that are not there, a budget above the pool, a
workspace that takes no commits. Writes nothing on local disk; of a remote workspace it asks what a run asks first,
which leaves two tiny objects.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import zstandard

from quad_tasks.commands.estimates.advice import advise
from quad_tasks.commands.estimates.hardware import describe_device, plan_memory, planned_batch, rates_on
from quad_tasks.commands.estimates.memory_roles import role_memory
from quad_tasks.commands.estimates.pieces import count_pieces
from quad_tasks.commands.estimates.probe import Shape, is_slow_dtype, probe, usable_cores
from quad_tasks.commands.estimates.scoring_cost import plan_choosing
from quad_tasks.commands.estimates.stage_rows import (
    Basis,
    Volumes,
    one_process_seconds,
    passing_bytes,
    request_seconds,
    stage_rows,
    tasks_of_a_round,
    workers_busy,
)
from quad_tasks.commands.input_sample import Sample, look_at_pool, sample_texts, scale_sample, value_at
from quad_tasks.config.schema import ConfigError, RunConfig
from quad_tasks.core.lm.model import pick_device
from quad_tasks.runtime.check_environment import check_workspace
from quad_tasks.runtime.progress import working
from quad_tasks.stages.influence.prepare_reference import split_reference
from quad_tasks.stages.influence.settle_batch import sharing_workers
from quad_tasks.stages.selection.train import peak_rate

COST_KEYS = ("reading", "scoring", "pool", "share", "most_share", "training")


def plan_run(
    config: RunConfig,
    price_per_hour: float | None = None,
    device: str | None = None,
    documents: int | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Estimate what every stage of a run takes on this machine, or with a device of the shipped table.

    Args:
        config: the run's configuration.
        price_per_hour: of all machines together, in any currency.
        device: what each worker's model runs on (`hardware.DEVICES`); None: on this machine, as measured.
        documents: of the pool, of which the inputs are a sample: its files, bytes and tokens are as many times those
            of the inputs; None: the inputs are the pool.
        workers: of the run; None: `compute.workers`. What they do is measured by no more at once than there are cores.

    Returns:
        `pool` (documents, tokens, whether they were counted or estimated, and `sample_documents`, those of the inputs,
        where the pool is larger), `scored` (tokens expected and at most), `cost` (FLOPs of `reading` hidden states and
        embeddings, of `scoring`, of scoring the whole `pool` exactly, of `training` on the budget; `share` and
        `most_share` of the pool's), `stages` (name, `documents`, `tokens`, `flops`, `size_bytes` that stay in the
        workspace, `reads` and `writes` of object storage, `seconds`, `money`), `total`, `storage` (bytes `kept` at the
        end, and at the `peak`), `memory` (bytes, by stage of all processes, and by `roles` of one process), `machine`,
        `one_process_s`: seconds that more workers do not shorten, and `advice`: settings that do not suit the pool.

    Raises:
        ConfigError: a workspace that cannot be written, a field that no record has, a budget above the pool, a
            device unknown or too small, or a pool of fewer documents than the inputs have.
        InputError: an input is missing or cannot be read to its end.
        ModelError: the model cannot be loaded.
        UnsupportedStore: the workspace cannot commit.
    """
    check_workspace(config.workspace)
    started = time.perf_counter()
    sample = look_at_pool(config)
    read_byte = (time.perf_counter() - started) / (sample.read_bytes or 1)
    pool = sample if documents is None else scale_sample(sample, documents)
    basis = _measure(config, sample, pool, read_byte, device, workers)
    stages = stage_rows(basis)
    for stage in stages:
        stage["money"] = None if price_per_hour is None else stage["seconds"] / 3600 * price_per_hour
    planned = _describe(basis, pool, stages, device)
    planned["pool"]["sample_documents"] = None if documents is None else sample.documents
    planned["machine"]["elsewhere"] = workers is not None
    planned["model"]["batch_tokens"] = planned_batch(config, basis.shape, device, _sharing(config, device, workers))[1]
    return planned


def _measure(
    config: RunConfig, sample: Sample, pool: Sample, read_byte: float, device: str | None, workers: int | None
) -> Basis:
    """Measure what units of work take here, and count those of a pool that `sample` was taken from."""
    texts = sample_texts(sample, config.pool.fields.text)
    with working("measure this machine"):
        rates, shape = probe(config if workers is None else _with_workers(config, min(workers, usable_cores())), texts)
    config = config if workers is None else _with_workers(config, workers)
    config, _ = planned_batch(config, shape, device, _sharing(config, device, workers))
    if device is not None:
        rates = rates_on(device, config, rates, shape)
    volumes = _volumes(config, pool, texts, shape)
    _refuse_budget(config, volumes)
    choosing = plan_choosing(config, volumes.documents, volumes.tokens, shape.size)
    busy = workers_busy(pool.shards, config.compute.workers)
    alone = one_process_seconds(config, volumes, rates, shape)
    shards = round(len(sample.shards) * pool.documents / sample.documents)
    pieces = count_pieces(volumes.documents, volumes.text_bytes, shards, config.clustering.arms)
    return Basis(config, volumes, rates, shape, busy, read_byte, choosing, alone, pieces)


def _with_workers(config: RunConfig, workers: int) -> RunConfig:
    return config.model_copy(update={"compute": config.compute.model_copy(update={"workers": workers})})


def _sharing(config: RunConfig, device: str | None, workers: int | None) -> int:
    """Return how many workers share a GPU; those that are planned for elsewhere have one each."""
    return 1 if device or workers else sharing_workers(config.compute)


def _describe(basis: Basis, pool: Sample, stages: list[dict[str, Any]], device: str | None) -> dict[str, Any]:
    config, volumes, shape, choosing = basis.config, basis.volumes, basis.shape, basis.choosing
    kept = sum(stage["size_bytes"] for stage in stages)
    on_gpu = device is not None or pick_device(config.compute.device) == "cuda"
    return {
        "run": config.run,
        "pool": {
            "documents": volumes.documents,
            "tokens": volumes.tokens,
            "text_bytes": volumes.text_bytes,
            "files": pool.files,
            "counted": pool.exact,
            "set_aside": dict(pool.bad.most_common()),
        },
        "model": {
            "source": config.model.source,
            "parameters": shape.parameters,
            "slow_dtype": device is None and is_slow_dtype(config),
        },
        "training": {"learning_rate": peak_rate(config), "configured": config.training.learning_rate is not None},
        "memory": plan_memory(config, shape, on_gpu) | {"roles": role_memory(basis, on_gpu)},
        "storage": {"kept": kept, "peak": kept + passing_bytes(basis)},
        "scored": {key: getattr(choosing, key) for key in ("tokens", "tokens_at_most", "rounds")},
        "cost": {key: getattr(choosing, key) for key in COST_KEYS},
        "stages": stages,
        "total": {
            key: None if stages[0][key] is None else sum(stage[key] for stage in stages)
            for key in ("flops", "size_bytes", "reads", "writes", "seconds", "money")
        },
        "machine": {"workers": config.compute.workers, "cores": usable_cores(), "elsewhere": False},
        "request_s": request_seconds(config.workspace),
        "device": None if device is None else describe_device(device, shape.parameters),
        "one_process_s": basis.alone,
        "advice": advise(
            config,
            volumes.documents,
            basis.pieces.shards,
            len(tasks_of_a_round(config)),
            choosing.most_share,
        ),
        "seconds_per_unit": asdict(basis.rates),
    }


def _refuse_budget(config: RunConfig, volumes: Volumes) -> None:
    found = config.selection.budget_tokens
    if found > volumes.tokens * 1.05:
        raise ConfigError(
            f"selection.budget_tokens: expected at most the pool's tokens (about {volumes.tokens}), found {found}"
        )


def _volumes(config: RunConfig, pool: Sample, texts: Sequence[str], shape: Shape) -> Volumes:
    values = [value_at(record, config.pool.fields.text) for record in pool.records]
    sampled_bytes = sum(len(value if isinstance(value, bytes) else value.encode()) for value in values)
    documents = pool.documents
    text_bytes = round(pool.record_bytes * sampled_bytes / pool.kept_bytes)
    tokens = round(text_bytes / shape.bytes_per_token)
    joined = "\n".join(texts).encode()
    split = split_reference(config.reference, config.heldout, config.seed)
    reference, measured, heldout = (
        sum(len(document.text.encode()) for document in documents) / shape.bytes_per_token for documents in split
    )
    return Volumes(
        documents=documents,
        text_bytes=text_bytes,
        tokens=tokens,
        mean_tokens=tokens / max(1, documents),
        stored_share=len(zstandard.compress(joined)) / len(joined),
        reference_documents=len(split[0]),
        reference_tokens=round(reference),
        measured_tokens=round(measured + heldout),
    )
