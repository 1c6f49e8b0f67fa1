"""Objects under one URI: get, put, create only if absent, list; on a local folder, S3 or any fsspec filesystem.

Owns how bytes reach storage: atomic writes, exclusive creation, retries, and what may stand in a key or an error
message. Refuses keys that could leave the root, and stores that do not honour conditional creation (some S3 servers
accept ``If-None-Match: *`` and ignore it). Calls are tried again by `errors.call_with_retries` alone; s3fs's and
botocore's own retries are switched off.
"""

import functools
import io
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, TypeVar, cast
from uuid import uuid4

import fsspec
from fsspec.implementations.local import LocalFileSystem

from quad_tasks.storage.atomic_write import TEMPORARY_PREFIX, create, is_own, sync, temporary_beside
from quad_tasks.storage.errors import (
    EXISTS_STATUS,
    IN_FLIGHT_STATUS,
    InvalidKey,
    StorageError,
    StoreFault,
    StoreForbidden,
    StoreKeyError,
    StoreUnavailable,
    UnsupportedStore,
    call_in_daemon,
    call_with_retries,
    http_status,
    name_full_disk,
    redact,
)

__all__ = [
    "InvalidKey",
    "StorageError",
    "Store",
    "StoreFault",
    "StoreForbidden",
    "StoreKeyError",
    "StoreUnavailable",
    "UnsupportedStore",
    "check_conditional_create",
    "check_key",
    "open_store",
]

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
MAX_KEY_BYTES = 1024
"""S3's bound on an object's name."""
UNSAFE_IN_KEY = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\\]")
"""Control characters, line separators, lone surrogates and the backslash."""
PROBE_FOLDER = "probes"
"""Holds what `check_conditional_create` writes for a moment, each named by its time in seconds since 1970."""

HUB_SCHEME = "hf://"
"""Of the Hugging Face Hub, whose client lists a file's folder once, and reads further ahead than is asked for."""
CLIENT_VARIABLES = ("AWS_", "FSSPEC_")
"""Start the names of the environment variables that filesystem clients are made from."""

T = TypeVar("T")


class Store:
    """Objects under one root.

    Travels between processes by its URI: the filesystem client is built anew in each process, forked ones included.
    A ``memory://`` store lives in one process and is empty in any other.

    Attributes:
        uri: the root as given, with any password or token blanked; fit for messages and manifests.
    """

    def __init__(self, uri: str) -> None:
        """Open ``uri``; use `open_store`."""
        self._given_uri = uri
        self.uri = redact(uri)
        self._on_hub = uri.startswith(HUB_SCHEME)
        self._filesystem, self._root = connect(uri)
        self._process_id = os.getpid()

    def __reduce__(self) -> tuple[Callable[[str], "Store"], tuple[str]]:
        """Pickle as the URI alone."""
        return open_store, (self._given_uri,)

    def __repr__(self) -> str:
        """Name the store without its secrets."""
        return f"Store({self.uri!r})"

    def get(self, key: str) -> bytes:
        """Read a whole object.

        Raises:
            StoreKeyError: nothing stands under ``key``.
        """
        return cast(bytes, self._call(key, lambda files, path: files.cat_file(path)))

    def put(self, key: str, data: bytes) -> None:
        """Write an object, replacing any other; readers see the old bytes or the new, never a mixture."""
        if self.local_path(key) is not None:
            with self.spool(key) as temporary:
                temporary.write_bytes(data)
        else:
            self._call(key, lambda files, path: files.pipe_file(path, data))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless one stands there already; of any number of racing writers exactly one succeeds.

        On S3 a create whose answer was lost is still known for its writer's own, by a token in the object's metadata.
        On other remote stores such a create counts as another's: the caller stops, and nothing is written twice.

        Returns:
            True if this call created the object, False if one was there.
        """
        token = uuid4().hex

        def attempt(files: Any, path: str) -> bool:
            try:
                create(files, path, data, token)
            except Exception as error:
                status = http_status(error)
                if status == IN_FLIGHT_STATUS:
                    raise ConnectionResetError(f"HTTP {status}, a write of the same key in flight: {error}") from None
                if not (isinstance(error, FileExistsError) or status == EXISTS_STATUS):
                    raise
                return is_own(files, path, token)
            return True

        return self._call(key, attempt)

    def exists(self, key: str) -> bool:
        """Say whether an object (not a folder) stands under ``key``."""
        try:
            self.size(key)
        except StoreKeyError:
            return False
        return True

    def size(self, key: str) -> int:
        """Return the object's size in bytes.

        Raises:
            StoreKeyError: nothing stands under ``key``.
        """

        def measure(files: Any, path: str) -> int:
            info = files.info(path, refresh=True) if self._on_hub else files.info(path)
            if info["type"] != "file":
                raise FileNotFoundError(path)
            return int(info["size"])

        return self._call(key, measure)

    def modified_s(self, key: str) -> float:
        """Return when the object was written, in seconds since 1970.

        Raises:
            StoreKeyError: nothing stands under ``key``.
        """
        written: datetime = self._call(key, lambda files, path: files.modified(path))
        return written.timestamp()

    def list(self, prefix: str = "") -> list[str]:
        """Return every key inside the folder ``prefix`` and its subfolders, sorted; "" is the whole store."""
        prefix = prefix.removesuffix("/")
        if prefix:
            check_key(prefix)
        folder = f"{self._root}/{prefix}".removesuffix("/")

        def find() -> list[str]:
            return [str(path) for path in self._connected().find(folder)]

        found = call_with_retries(find, self._place(prefix))
        keys = (path[len(self._root) + 1 :] for path in found if path.startswith(f"{folder}/"))
        return sorted(key for key in keys if not key.rpartition("/")[2].startswith(TEMPORARY_PREFIX))

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        try:
            self._call(key, lambda files, path: files.rm_file(path))
        except StoreKeyError:
            return

    def open_input(self, key: str) -> BinaryIO:
        """Open an object as a seekable binary file whose reads fetch only the ranges asked for.

        Raises:
            StoreKeyError: nothing stands under ``key``.
        """
        local = self.local_path(key)
        if local is None:
            return cast(BinaryIO, _RangeFile(self, key))
        return cast(BinaryIO, self._call(key, lambda _files, _path: local.open("rb")))

    def read_range(self, key: str, start: int, end: int) -> bytes:
        """Read bytes [start, end) of an object.

        Raises:
            StoreKeyError: nothing stands under ``key``.
        """
        how = {"size": end, "cache_type": "none"} if self._on_hub else {}
        return cast(bytes, self._call(key, lambda files, path: files.cat_file(path, start=start, end=end, **how)))

    def local_path(self, key: str) -> Path | None:
        """Return where the object lies on this machine's filesystem, or None for a remote store."""
        check_key(key)
        return Path(f"{self._root}/{key}") if isinstance(self._filesystem, LocalFileSystem) else None

    @contextmanager
    def local_copy(self, key: str) -> Iterator[Path]:
        """Lend a path from which the object can be read: its own on a local store, else a temporary copy.

        Raises:
            StoreKeyError: nothing stands under ``key``.
        """
        local = self.local_path(key)
        if local is not None:
            self.size(key)
            yield local
            return
        with TemporaryDirectory(prefix="quad-") as folder:
            copy = Path(folder, "copy")
            self._call(key, lambda files, path: files.get_file(path, str(copy)))
            yield copy

    @contextmanager
    def spool(self, key: str) -> Iterator[Path]:
        """Lend a path to write to; when the block ends well the file becomes the object, else it is dropped.

        Files are used instead of memory, so an object may be larger than memory.
        """
        local = self.local_path(key)
        if local is not None:
            with name_full_disk(self._place(key)), temporary_beside(local) as temporary:
                yield temporary
                sync(temporary)
                temporary.replace(local)
            sync(local.parent)
            return
        with TemporaryDirectory(prefix="quad-") as folder:
            spooled = Path(folder, "spooled")
            yield spooled
            self._call(key, lambda files, path: files.put_file(str(spooled), path))

    def _place(self, key: str) -> str:
        return f"{key!r} in {self.uri}"

    def _connected(self) -> Any:
        if self._process_id != os.getpid():  # a forked client shares its parent's sockets and event loop
            self._filesystem, self._root = connect(self._given_uri)
            self._process_id = os.getpid()
        return self._filesystem

    def _call(self, key: str, operation: Callable[[Any, str], T]) -> T:
        check_key(key)
        return call_with_retries(lambda: operation(self._connected(), f"{self._root}/{key}"), self._place(key))


class _RangeFile(io.RawIOBase):
    """A remote object as a file: each read is one range request, retried as any other operation."""

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key
        self._size, self._position = store.size(key), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._position + len(buffer), self._size)
        wanted = max(0, end - self._position)
        if wanted == 0:
            return 0
        data = self._store.read_range(self._key, self._position, end)
        if len(data) != wanted:
            message = (
                f"{self._key!r} in {self._store.uri}: expected {wanted} bytes at {self._position}, got {len(data)}"
            )
            raise StorageError(message)
        buffer[:wanted] = data
        self._position = end
        return wanted


def open_store(uri: str) -> Store:
    """Open the store at ``uri``: a plain local path, ``file://``, ``s3://bucket/prefix``, or any fsspec URI.

    A process opens a store once for each setting of its environment: an S3 client takes 0.2 s to build.

    Raises:
        UnsupportedStore: no filesystem is known for the URI.
    """
    return _open(uri, tuple(sorted(item for item in os.environ.items() if item[0].startswith(CLIENT_VARIABLES))))


@functools.lru_cache(maxsize=32)
def _open(uri: str, _environment: tuple[tuple[str, str], ...]) -> Store:
    return Store(uri)


def connect(uri: str) -> tuple[Any, str]:
    """Build a fresh filesystem client for ``uri``.

    Returns:
        The fsspec filesystem, without listing caches, and the root path inside it, without a trailing slash.

    Raises:
        UnsupportedStore: no filesystem is known for the URI.
    """
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    is_s3 = uri.startswith(("s3://", "s3a://"))
    if is_s3:
        timeouts = {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S}
        options["config_kwargs"] = timeouts | {"retries": {"total_max_attempts": 1}}
    if not uri:
        raise UnsupportedStore("expected a URI or a local path, got an empty one")
    try:
        filesystem, root = fsspec.core.url_to_fs(uri, **options)
    except (ImportError, ValueError) as error:
        message = f"expected a local path, s3://bucket/prefix or another fsspec URI, got {redact(uri)!r}"
        raise UnsupportedStore(f"{message}: {redact(str(error))}") from None
    if is_s3:
        filesystem.retries = 1
    root = root.rstrip("/")
    if is_s3 and not root.partition("/")[0]:
        raise UnsupportedStore(f"expected a bucket's name after s3://, got {redact(uri)!r}")
    return filesystem, root


def check_key(key: str) -> None:
    """Check that ``key`` is a plain relative path that means the same on every store.

    Raises:
        InvalidKey: it is empty, absolute, too long, or holds '..', an empty part, a backslash or a control character.
    """
    parts = key.split("/")
    plain = UNSAFE_IN_KEY.search(key) is None and len(key.encode()) <= MAX_KEY_BYTES
    if not plain or any(part in ("", ".", "..") or part.startswith(TEMPORARY_PREFIX) for part in parts):
        expected = f"a relative path of at most {MAX_KEY_BYTES} bytes without '..', empty parts or control characters"
        raise InvalidKey(f"expected {expected}, got {key!r}")


def check_conditional_create(store: Store) -> None:
    """Prove that `Store.put_if_absent` has one winner on this store; the ledger's safety rests on it.

    Raises:
        UnsupportedStore: it had none or several, or a late writer replaced the object.
    """
    key = f"{PROBE_FOLDER}/{int(time.time())}-{uuid4().hex}"
    barrier = threading.Barrier(2)

    def write(name: str) -> bool:
        barrier.wait()
        return store.put_if_absent(key, f"{key} {name}".encode())

    try:
        writers = [call_in_daemon(functools.partial(write, name)) for name in ("one", "two")]
        created = [writer.result() for writer in writers]
        late = store.put_if_absent(key, b"late")
    except StoreFault as error:
        raise UnsupportedStore(f"{store.uri} cannot create an object only if absent: {error}") from error
    finally:
        store.delete(key)
    if sum(created) != 1 or late:
        got = f"{sum(created)} winners of 2 racing writers{', and a late one' if late else ''}"
        message = f"{store.uri} ignores conditional creation (If-None-Match: *): expected one winner, got {got}"
        raise UnsupportedStore(f"{message}; use a store that honours it, e.g. AWS S3, MinIO, Ceph or a local folder")
