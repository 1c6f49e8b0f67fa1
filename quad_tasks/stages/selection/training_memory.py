"""What memory trainings take, and how many of them fit `compute.memory_limit` at once."""

from quad_tasks.core.lm.training import PASS_BYTES

PROCESS_BYTES = 600 * 2**20
"""A process with torch, transformers and pyarrow imported, before it holds a model (measured: 0.45 to 0.6 GB)."""
TRAINED_BYTES = 16
"""A parameter in training: weight, gradient and AdamW's two moments, all in float32."""


def training_bytes(parameters: int, activations: int = PASS_BYTES) -> int:
    """Estimate what a process holds of a model in training, its activations of a pass among it."""
    return TRAINED_BYTES * parameters + activations


def trainings_at_once(memory_limit: int | None, workers: int, processes: int, parameters: int) -> int | None:
    """Return how many trainings fit the limit, beside the driving process and all workers; one at least.

    Args:
        memory_limit: bytes of all processes together; None: no limit.
        workers: processes of the cluster.
        processes: that share a training.
        parameters: of the model.

    Returns:
        None where there is no limit.
    """
    if memory_limit is None:
        return None
    left = memory_limit - (1 + workers) * PROCESS_BYTES
    return max(1, left // (processes * training_bytes(parameters)))
