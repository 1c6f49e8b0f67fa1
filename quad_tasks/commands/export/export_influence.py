"""Write the influence of every document of a run's pool, for whoever draws from it by a rule of their own.

Owns the file: what was measured, and what the regression that the run's last choice was made by predicts of the others.
A run keeps no predictions; they are made again from its scores, and equal those the choice was made from.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from quad_tasks.config.schema import RunConfig
from quad_tasks.records import Stage
from quad_tasks.runtime.progress import working
from quad_tasks.runtime.run import pinned_pool
from quad_tasks.stages.bandit.ledger import list_stage_rounds, read_choice
from quad_tasks.stages.bandit.predict import predict_block
from quad_tasks.stages.influence.find_overlap import overlap_positions
from quad_tasks.stages.selection.select_documents import fit_stage_scores, read_stage_scores, stage_selection
from quad_tasks.storage.keys import choice_key, choice_manifest_key
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.positions import read_positions
from quad_tasks.storage.store import Store, StoreKeyError, open_store

FILE = "influence.parquet"
COLUMNS = ("id", "source", "n_tokens", "arm")
READ_DOCUMENTS = 8192
"""Documents whose features are in memory at once."""


def export_influence(config: RunConfig, out: str) -> dict[str, Any]:
    """Write every pool document's influence, measured or predicted, as `influence.parquet`.

    Documents that hold held-out text are left out: who draws by the file would draw the answers.

    Columns: `id`, `source`, `n_tokens`, `arm`, `influence` per token (> 0: training on the document lowers the
    reference loss) and `scored`, whether it was measured. Documents come in the order of the pool's arms.

    Args:
        config: the run's configuration.
        out: path or URI of the folder.

    Returns:
        `run`, `stage`, `documents`, how many of them were `scored`, and the `file`.

    Raises:
        StoreKeyError: the run has chosen no documents yet.
        DigestMismatch: a table's bytes are not those committed.
    """
    store, target = open_store(config.workspace), open_store(out)
    stage = _last_choice(store, config)
    documents = scored = 0
    with working("predict influence"), target.spool(FILE) as path:
        writer = None
        for table in _tables(store, config, stage):
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
            documents, scored = documents + len(table), scored + int(np.count_nonzero(table["scored"].to_numpy()))
        if writer is not None:
            writer.close()
    return {"run": config.run, "stage": stage.number, "documents": documents, "scored": scored, "file": FILE}


def _last_choice(store: Store, config: RunConfig) -> Stage:
    """Find the last stage that has chosen its documents."""
    version = pinned_pool(store, config.run)
    for number in reversed(range(config.training.stages)):
        chosen = choice_key(config.run, number, "selected")
        if version is not None and store.exists(choice_manifest_key(chosen)):
            direction = read_choice(store, chosen).direction or ""
            return Stage(config.run, number, version, checkpoint="", direction=direction)  # nothing is scored again
    raise StoreKeyError(
        f"run {config.run!r} in {store.uri}: expected a choice of documents, found none yet: "
        f"`quad resume {config.run}` goes on with it"
    )


def _tables(store: Store, config: RunConfig, stage: Stage) -> Iterator[pa.Table]:
    how = stage_selection(config, stage.number)
    scores, _ = read_stage_scores(store, stage, list_stage_rounds(store, stage.run, stage.number))
    predictor, features = fit_stage_scores(store, stage, how, scores)
    order = np.argsort(scores["position"].to_numpy())
    position, measured = (scores[name].to_numpy()[order] for name in ("position", "influence"))
    n_documents = read_version(store, stage.version).documents
    held_out = overlap_positions(store, stage.run)
    for first in range(0, n_documents, READ_DOCUMENTS):
        positions = np.setdiff1d(np.arange(first, min(first + READ_DOCUMENTS, n_documents)), held_out)
        influence = predict_block(predictor, store, stage.version, positions, features)
        own = slice(*np.searchsorted(position, [first, first + READ_DOCUMENTS]))
        influence[np.searchsorted(positions, position[own])] = measured[own]
        rows = read_positions(store, stage.version, positions, COLUMNS)
        yield rows.append_column("influence", pa.array(influence)).append_column(
            "scored", pa.array(np.isin(positions, position[own]))
        )
