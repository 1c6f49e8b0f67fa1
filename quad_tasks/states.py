"""Stage: one forward pass over a pool version, kept beside it: every document's loss and mean hidden state.

What influence is predicted from may then include them. They belong to a pool version and a checkpoint, not to a run:
runs with another reference, budget or seed find them there. Blocks of positions are the unit of work and of a resume.

Shape suffixes: N documents, H hidden state.
"""

import numpy as np
import numpy.typing as npt
import torch

from quad_tasks.checkpoints import load_checkpoint
from quad_tasks.compute import spread, step
from quad_tasks.config import RunConfig
from quad_tasks.core.model import encode, make_batches, pick_device
from quad_tasks.core.states import losses_and_states
from quad_tasks.run import starting_checkpoint
from quad_tasks.storage import pool as tables
from quad_tasks.storage.manifest import digest, read_manifest, write_manifest
from quad_tasks.storage.positions import read_positions
from quad_tasks.storage.store import Store, open_store

STATE_ROWS = 2048


def states_key(config: RunConfig, version: str) -> str | None:
    """Return where the states of a pool version under its first checkpoint are kept; None where none are wanted."""
    if not config.selection.states:
        return None
    model = config.model
    made_by = [starting_checkpoint(config, version), model.window_tokens, model.dtype, STATE_ROWS]
    return f"{version.rsplit('/', 1)[0]}/states-{digest(made_by)[:12]}"


@step("read states")
def read_pool_states(config: RunConfig, version: str) -> str | None:
    """Read the pool version with its first checkpoint, where that is wanted and not done; return the states' key."""
    key, store = states_key(config, version), open_store(config.workspace)
    if key is None or store.exists(f"{key}/manifest.json"):
        return key
    n, checkpoint = int(read_manifest(store, version)["documents"]), starting_checkpoint(config, version)
    model = config.model
    settings = (model.window_tokens, model.batch_tokens, model.dtype, pick_device(config.compute.device))
    blocks = [range(start, min(start + STATE_ROWS, n)) for start in range(0, n, STATE_ROWS)]
    items = [
        (config.workspace, version, checkpoint, key, number, block, *settings) for number, block in enumerate(blocks)
    ]
    widths = spread(read_block, items, "read", "blocks", on_gpu=True)
    write_manifest(store, f"{key}/manifest.json", {"checkpoint": checkpoint, "documents": n, "width": widths[0]})
    return key


def read_block(
    workspace: str,
    version: str,
    checkpoint: str,
    key: str,
    number: int,
    block: range,
    window_tokens: int,
    batch_tokens: int,
    dtype: str,
    device: str,
) -> int:
    """Write one block's [N, H + 1] float32, the loss last, unless it is there; return H; on a worker."""
    store, name = open_store(workspace), block_key(key, number)
    if store.exists(name):
        return int(tables.read_array(store, name).shape[1]) - 1
    texts = read_positions(store, version, np.array(block), ["text"])["text"].to_pylist()
    model, tokenizer = load_checkpoint(workspace, checkpoint, dtype, device)
    batches, owner = make_batches(encode(tokenizer, texts), window_tokens, batch_tokens)
    loss, states = losses_and_states(model, batches)
    targets = torch.cat([batch["attention_mask"].sum(1) for batch in batches]).double() - 1
    rows = (
        torch.from_numpy(np.column_stack([states, loss])).double() * targets[:, None]
    )  # windows of a document, summed
    summed = torch.zeros(len(block), rows.shape[1], dtype=torch.float64).index_add_(0, owner, rows)
    count = torch.zeros(len(block), dtype=torch.float64).index_add_(0, owner, targets)
    tables.write_array(store, name, (summed / count[:, None]).float().numpy())
    return int(states.shape[1])


def load_states(store: Store, key: str, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Read the states of the documents at `positions`, [N, H + 1], the loss last."""
    width = read_manifest(store, f"{key}/manifest.json")["width"]
    found = np.empty((len(positions), width + 1), dtype=np.float32)
    block = positions // STATE_ROWS
    for number in np.unique(block).tolist():
        rows = np.flatnonzero(block == number)
        found[rows] = tables.read_array(store, block_key(key, number))[positions[rows] % STATE_ROWS]
    return found


def block_key(key: str, number: int) -> str:
    """Name the block of that number."""
    return f"{key}/block-{number:06d}.npy"
