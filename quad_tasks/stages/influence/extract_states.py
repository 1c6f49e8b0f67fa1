"""Stage: one forward pass over a pool version, kept beside it: every document's loss and mean hidden state.

What influence is predicted from may then include them. They belong to a pool version and a checkpoint, not to a run:
runs with another reference, budget or seed find them there. Blocks of positions are the unit of work and of a resume.

Shape suffixes: N documents, H hidden state.
"""

import numpy as np
import numpy.typing as npt
import torch

from quad_tasks.core.lm.batching import make_batches
from quad_tasks.core.lm.hidden_states import losses_and_states
from quad_tasks.core.lm.tokenizer import encode
from quad_tasks.manifests.pool import StatesManifest
from quad_tasks.records import ModelUse
from quad_tasks.runtime.checkpoints import load_checkpoint
from quad_tasks.runtime.run import starting_checkpoint
from quad_tasks.runtime.tasks import map_tasks, stage_task
from quad_tasks.storage import tables
from quad_tasks.storage.keys import manifest_key, states_block_key, states_folder
from quad_tasks.storage.manifest import digest, file_sha256, read_manifest, write_manifest
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.positions import read_positions
from quad_tasks.storage.store import Store

STATE_ROWS = 2048


def states_of(store: Store, version: str, use: ModelUse) -> str:
    """Return the key of the states of a pool version under the checkpoint it was tokenized for."""
    made_by = [starting_checkpoint(store, version), use.window_tokens, use.dtype, STATE_ROWS]
    return states_folder(version, digest(made_by))


@stage_task("extract states")
def extract_states(store: Store, version: str, use: ModelUse) -> str:
    """Read the pool version once with the checkpoint it was tokenized for; return the key of its states."""
    key = states_of(store, version, use)
    if store.exists(manifest_key(key)):
        return key
    n, checkpoint = read_version(store, version).documents, starting_checkpoint(store, version)
    blocks = [range(start, min(start + STATE_ROWS, n)) for start in range(0, n, STATE_ROWS)]
    items = [(store, version, checkpoint, key, number, block, use) for number, block in enumerate(blocks)]
    made = map_tasks(read_block, items, "read", "blocks", on_gpu=True)
    files = {states_block_key(key, number): sha256 for number, (_, sha256) in enumerate(made)}
    manifest = StatesManifest(checkpoint=checkpoint, documents=n, width=made[0][0], files=files)
    write_manifest(store, manifest_key(key), manifest)
    return key


def read_block(
    store: Store, version: str, checkpoint: str, key: str, number: int, block: range, use: ModelUse
) -> tuple[int, str]:
    """Write one block's [N, H + 1] float32, the loss last, unless it is there; return H and its digest; on a worker."""
    name = states_block_key(key, number)
    if store.exists(name):
        return int(tables.read_array(store, name).shape[1]) - 1, file_sha256(store, name)
    texts = read_positions(store, version, np.array(block), ["text"])["text"].to_pylist()
    model, tokenizer = load_checkpoint(store, checkpoint, use.dtype, use.device)
    batches, owner = make_batches(encode(tokenizer, texts), use.window_tokens, use.batch_tokens)
    loss, states = losses_and_states(model, batches)
    targets = torch.cat([batch["attention_mask"].sum(1) for batch in batches]).double() - 1
    rows = (
        torch.from_numpy(np.column_stack([states, loss])).double() * targets[:, None]
    )  # windows of a document, summed
    summed = torch.zeros(len(block), rows.shape[1], dtype=torch.float64).index_add_(0, owner, rows)
    count = torch.zeros(len(block), dtype=torch.float64).index_add_(0, owner, targets)
    return int(states.shape[1]), tables.write_array(store, name, (summed / count[:, None]).float().numpy())


def load_states(store: Store, key: str, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Read the states of the documents at `positions`, [N, H + 1], the loss last."""
    manifest = read_manifest(StatesManifest, store, manifest_key(key))
    found = np.empty((len(positions), manifest.width + 1), dtype=np.float32)
    block = positions // STATE_ROWS
    for number in np.unique(block).tolist():
        rows = np.flatnonzero(block == number)
        name = states_block_key(key, number)
        found[rows] = tables.read_array(store, name, manifest.files.get(name))[positions[rows] % STATE_ROWS]
    return found
