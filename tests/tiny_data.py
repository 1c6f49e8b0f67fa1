"""Made-up documents and vectors that several tests compute with."""

import numpy as np

from quad_tasks.core.lm.model import LlamaSize

SIZE = LlamaSize(width=16, layers=1, heads=2, key_value_heads=1, mlp_width=24)
DOCUMENTS = [[int(t) for t in np.random.default_rng(n).integers(0, 64, 5 + n)] for n in range(12)]
"""Token ids of a vocabulary of 64."""
TARGETS = sum(len(ids) - 1 for ids in DOCUMENTS)


def unit_vectors(n: int, dimension: int, seed: int) -> np.ndarray:
    x_ND = np.random.default_rng(seed).normal(size=(n, dimension))
    return (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float32)
