"""Chunks' sums are merged a tensor at a time."""

import tracemalloc

import numpy as np
import torch

from quad_tasks.stages.influence import fit_parts
from quad_tasks.storage.store import open_store
from quad_tasks.storage.tensors import save_tensors


def test_merging_chunks_holds_one_set_of_sums_and_little_more(tmp_path):
    store, n_tensors, width = open_store(str(tmp_path)), 16, 256
    sums = {f"squares/{n}": np.full((width, width), n, np.float32) for n in range(n_tensors)}
    parts = [f"part-{number}" for number in range(3)]
    for part in parts:
        save_tensors(store, part, {**sums, "counts": np.array([5])}, {})
    fit_parts.merge_parts(store, parts)  # what is imported first is held too
    tracemalloc.start()
    total = fit_parts.merge_parts(store, parts)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert int(total.pop("counts")) == 15
    assert all(torch.equal(total[name], torch.from_numpy(3 * array)) for name, array in sums.items())
    assert peak < 1.4 * n_tensors * 4 * width**2
