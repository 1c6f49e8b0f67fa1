"""The memory that each process of a run takes at its peak, by role: the driving process, the scheduler, a worker.

Of the pool the driving process holds sums by arm and shard, so that most of what it takes follows from arms, and from
what is scored and chosen. Constants are measured where it says so, else counted from the arrays that the stages hold.
"""

from quad_tasks.commands.estimates.hardware import worker_memory
from quad_tasks.commands.estimates.stage_rows import Basis
from quad_tasks.core.selection.minhash import HASHES
from quad_tasks.runtime.tasks import CALLS_PER_THREAD, IN_FLIGHT
from quad_tasks.stages.pool import find_duplicates, sort_layout
from quad_tasks.stages.selection.training_memory import PROCESS_BYTES

DEALT_BYTES = 24
"""What the driving process holds of a range in a bundle of sorted pieces: its bounds, once more as they are sent."""
SCORE_BYTES, VALUE_BYTES = 300, 16
"""A scored document: its row in three tables; and a number of its features in a regression (measured with tracemalloc:
13 bytes beside 100,000 documents)."""
REGRESSION_BYTES = 300 * 2**20
"""What fitting a regression takes beside that (measured beside 10,000 to 100,000 documents: 55 to 450 MB in all)."""
CHOSEN_BYTES = 800
"""A chosen document beside its signature and its embedding: its row, and its place in what remembers both."""
MOMENT_BYTES = 16
"""A coordinate of an arm's sums in a part: value and square, in float64."""
SIZE_BYTES = 24
"""An arm's documents and bytes in the shards that one task measures."""
SCHEDULER_BYTES, TASK_BYTES = 64 * 2**20, 6_000
"""A scheduler without tasks, and each small task that it holds (measured: 61 MiB, and 5.6 kB beside 2,560 of them)."""
DEALT_SENT_BYTES = 16
"""Of a range in a bundle, in the arguments of a task: where it begins and ends."""
WORKER_KNOWN_BYTES = 2**20
"""What the scheduler keeps of a worker: assumed."""
COPIES = 3
"""Of a task's documents with their vectors, while they are sorted or gathered: read, joined, and in order."""
HASH_BYTES = 100
"""A document of a partition in which duplicates are sought: its hashes, numbers and sort order."""


def role_memory(basis: Basis, on_gpu: bool = False) -> dict[str, int]:
    """Estimate the peak memory of one process of each role, bytes: `driver`, `scheduler` and `worker`.

    Args:
        basis: of the plan.
        on_gpu: as for `plan_memory`.
    """
    config, shape, pieces, documents = basis.config, basis.shape, basis.pieces, basis.volumes.documents
    arms, workers = config.clustering.arms, config.compute.workers
    measured = min(pieces.shards, sort_layout.SPREAD)
    of_layout = pieces.bundles * pieces.ranges * DEALT_BYTES + measured * min(arms, documents / measured) * SIZE_BYTES
    of_layout += (arms + pieces.parts) * shape.dimension * MOMENT_BYTES
    of_choice = REGRESSION_BYTES + basis.scored * (SCORE_BYTES + VALUE_BYTES * shape.document_values)
    of_choice += basis.chosen * (CHOSEN_BYTES + 4 * HASHES + 4 * shape.dimension)
    window = max(IN_FLIGHT, CALLS_PER_THREAD * workers)
    model_bytes = worker_memory(config, shape, batches=not on_gpu)
    gathering = min(window, pieces.ranges) * pieces.bundles * DEALT_SENT_BYTES
    return {
        "driver": round(PROCESS_BYTES + max(of_layout, of_choice)),
        "scheduler": round(SCHEDULER_BYTES + window * TASK_BYTES + gathering + workers * WORKER_KNOWN_BYTES),
        "worker": round(PROCESS_BYTES + max(_task_bytes(basis), *model_bytes.values())),
    }


def _task_bytes(basis: Basis) -> float:
    """Return what the largest task without a model holds: a sorted piece, a group, a shard's vectors, a partition."""
    volumes, shape, pieces = basis.volumes, basis.shape, basis.pieces
    document = volumes.text_bytes / volumes.documents + 4 * shape.document_values
    rows = volumes.documents / min(pieces.sorted, pieces.groups)
    vectors = 2 * 4 * shape.dimension * volumes.documents / pieces.shards
    hashes = HASH_BYTES * min(volumes.documents, find_duplicates.PARTITION_DOCUMENTS)
    return max(COPIES * document * rows, vectors, hashes)
