"""Whole files or none, and creation that has one winner, on each kind of filesystem.

Owns temporary names, hard links and conditional requests; refuses nothing itself: `store` turns what is raised here
into the package's errors. Decided: a link, not O_EXCL, since a file created so would be visible before it is whole.
"""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

WRITER_FIELD = "quad-writer"
"""Names the S3 metadata entry that tells whose create an object is."""
TEMPORARY_PREFIX = ".tmp-"
"""Starts the names of unfinished local files; no key part may start so, and no listing shows one."""


def create(files: Any, path: str, data: bytes, token: str) -> None:
    """Create a file or object exclusively.

    Args:
        files: the fsspec filesystem.
        path: where.
        data: the content.
        token: kept beside an S3 object, so that `is_own` knows it.

    Raises:
        FileExistsError: something stands there; S3 may say so by an HTTP conflict instead.
    """
    if isinstance(files, LocalFileSystem):
        _create_local(Path(path), data)
    elif isinstance(files, MemoryFileSystem):
        mine = MemoryFile(files, path, data)
        if files.store.setdefault(path, mine) is not mine:
            raise FileExistsError(path)
    elif "s3" in files.protocol:
        # below 100 MB this is one PUT with If-None-Match; a multipart create overwrote silently on Ceph 16
        files.pipe_file(path, data, mode="create", Metadata={WRITER_FIELD: token})
    else:
        files.pipe_file(path, data, mode="create")


def is_own(files: Any, path: str, token: str) -> bool:
    """Say whether the object in the way is this very write: aiohttp repeats a PUT whose connection broke, unasked."""
    if "s3" not in files.protocol:
        return False
    try:
        return bool(files.metadata(path).get(WRITER_FIELD) == token)
    except FileNotFoundError:
        return False


def _create_local(path: Path, data: bytes) -> None:
    with temporary_beside(path) as temporary:
        temporary.write_bytes(data)
        sync(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            # NFS may lose the answer to a link that was made: the link count tells (open(2), O_EXCL).
            if temporary.stat().st_nlink != 2:
                raise
    sync(path.parent)


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Lend a path in the folder of `path`, which is made if need be; what is left there at the end is removed."""
    made = list(itertools.takewhile(lambda folder: not folder.exists(), path.parents))
    path.parent.mkdir(parents=True, exist_ok=True)
    for folder in made:
        sync(folder.parent)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid4().hex}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk, so that what a manifest names outlives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
