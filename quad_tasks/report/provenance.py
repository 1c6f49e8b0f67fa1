"""Trace what identifies a finished run beyond its configuration: digests of all it read and made, what it ran on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from quad_tasks.report.finished_run import FinishedRun
from quad_tasks.report.model import Identity, Inputs, Machine, Provenance, StageKeys, Weights
from quad_tasks.runtime.reference_tables import read_reference
from quad_tasks.stages.bandit.ledger import read_ranking
from quad_tasks.stages.influence.fit_direction import read_direction
from quad_tasks.stages.pool.ingest import read_shard
from quad_tasks.stages.selection.publish import read_selection
from quad_tasks.storage import rounds
from quad_tasks.storage.keys import manifest_key, selection_folder
from quad_tasks.storage.manifest import digest, read_digest

PACKAGES = ("torch", "transformers", "tokenizers", "faiss-cpu", "numpy", "pyarrow", "prefect", "dask")
FILES = 200
"""Inputs listed one by one; the digest is over all of them."""


def trace(run: FinishedRun) -> Provenance:
    """Gather digests of inputs and of what was made of them, and the software and machine."""
    store, config = run.store, run.config
    published = manifest_key(selection_folder(config.run))
    selection = Identity()
    if store.exists(published):
        selection = Identity(uuid=read_selection(store, config.run).uuid, digest=read_digest(store, published))
    return Provenance(
        selection=selection,
        pool=Identity(manifest=run.version, digest=read_digest(store, run.version)),
        inputs=_inputs(run),
        reference_inputs=read_reference(store, run.reference).inputs,
        model=Weights(weights_sha256=run.model.weights_sha256),
        stages=tuple(_stage(run, number) for number in range(config.training.stages)),
        packages={name: _version(name) for name in PACKAGES},
        machine=Machine(python=platform.python_version(), system=platform.platform(), cores=os.cpu_count()),
    )


def _inputs(run: FinishedRun) -> Inputs:
    files = [read_shard(run.store, run.config.pool.name, name).input for name in run.pool.shards]
    sha256 = list(dict.fromkeys((file.uri, file.sha256) for file in files))  # a file may be several shards
    return Inputs(files=len(sha256), digest=digest([list(pair) for pair in sha256]), sha256=dict(sha256[:FILES]))


def _stage(run: FinishedRun, number: int) -> StageKeys:
    """Name what ranked a stage's documents, an earlier stage's direction among it, and what scored along that."""
    direction = read_ranking(run.store, run.config.run, number).direction
    stages = (rounds.list_rounds(run.store, run.config.run, stage) for stage in range(number + 1))
    along = [one.info for committed in stages for one in committed if one.info.direction == direction]
    made = read_direction(run.store, direction)
    return StageKeys(
        stage=number,
        checkpoint=made.checkpoint,
        factors=made.factors,
        direction=direction,
        scorer=along[-1].scorer["scorer"],
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
