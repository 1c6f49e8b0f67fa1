"""Local files that a killed process never finished: they carry a temporary name, and no listing of a store shows them.

Refuses to guess on remote stores: there an unfinished object does not exist, and unfinished multipart uploads are ended
by the bucket's own lifecycle rule.
"""

import time
from pathlib import Path

from quad_tasks.storage.create import TEMPORARY_PREFIX
from quad_tasks.storage.store import Store


def unfinished_files(store: Store, prefix: str, min_age_s: float) -> list[Path]:
    """Return the unfinished files inside the folder `prefix` that were last written at least `min_age_s` ago, sorted.

    A younger one may belong to a living process.
    """
    folder = store.local_path(prefix)
    if folder is None:
        return []
    latest = time.time() - min_age_s
    return sorted(path for path in folder.rglob(f"{TEMPORARY_PREFIX}*") if path.stat().st_mtime <= latest)
