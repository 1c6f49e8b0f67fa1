"""Named arrays in one safetensors object: EK-FAC factors, the reference direction, bandit statistics.

Owns the bytes: the same arrays and metadata give the same file. Refuses dtypes other than those of `DTYPES`, so that
what is read back is what numpy computes with. Source of the format: https://huggingface.co/docs/safetensors.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from quad_tasks.storage.errors import StorageError
from quad_tasks.storage.manifest import check_digest, check_file
from quad_tasks.storage.store import Store

DTYPES = ("float32", "float64", "int64", "uint8")
METADATA_FIELD = "quad"
"""One entry holds all metadata as JSON: safetensors writes several entries in an order that changes between runs."""
DIGEST_FIELD = "sha256"
"""Names, in that entry, the digest of all else, which is checked when the arrays are read."""


class InvalidTensors(StorageError, ValueError):
    """The object is not a whole safetensors file written by this module."""


def save_tensors(store: Store, key: str, arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> str:
    """Write arrays as one object.

    Args:
        store: where to.
        key: the object's key.
        arrays: name -> array of any shape; float32, float64, int64 or uint8.
        metadata: what the arrays are of, for people and checks.

    Returns:
        The SHA-256 of the object's bytes, in hex.

    Raises:
        TypeError: an array has another dtype.
    """
    for name, array in arrays.items():
        if str(array.dtype) not in DTYPES:
            raise TypeError(f"array {name!r} for {key!r}: expected dtype {', '.join(DTYPES)}, got {array.dtype}")
    contiguous = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    described = {**metadata, DIGEST_FIELD: _digest(contiguous, metadata)}
    with store.spool(key) as path:
        save_file(contiguous, path, metadata={METADATA_FIELD: json.dumps(described, sort_keys=True)})
        with path.open("rb") as written:
            return hashlib.file_digest(written, "sha256").hexdigest()


def load_tensors(
    store: Store, key: str, sha256: str | None = None
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Read the arrays and metadata that `save_tensors` wrote.

    Args:
        store: the workspace.
        key: the object's key.
        sha256: digest of the object's bytes, as its manifest has it; None: nothing has one.

    Raises:
        StoreKeyError: there is no such object.
        InvalidTensors: the object is truncated, or no such file.
        DigestMismatch: the arrays or the metadata are not those that were written, or others stand there.
    """
    if sha256 is not None:
        check_file(store, key, sha256)
    with _open_tensors(store, key) as (tensors, metadata, expected):
        arrays = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (not a mapping)
    check_digest(store, key, expected=expected, got=_digest(arrays, metadata))
    return arrays, metadata


def iterate_tensors(store: Store, key: str) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Read the arrays that `save_tensors` wrote one at a time, by name in ascending order.

    Their digest is checked after the last one: what was made of them counts only once the iteration has ended.

    Args:
        store: the workspace.
        key: the object's key.

    Raises:
        StoreKeyError: there is no such object.
        InvalidTensors: the object is truncated, or no such file.
        DigestMismatch: the arrays or the metadata are not those that were written.
    """
    with _open_tensors(store, key) as (tensors, metadata, expected):
        sha256 = _begin_digest(metadata)
        for name in sorted(tensors.keys()):
            array = tensors.get_tensor(name)
            _add_to_digest(sha256, name, array)
            yield name, array
    check_digest(store, key, expected=expected, got=sha256.hexdigest())


@contextmanager
def _open_tensors(store: Store, key: str) -> Iterator[tuple[Any, dict[str, str], str]]:
    """Open what `save_tensors` wrote: the file, its metadata, and the digest that it should have.

    Raises:
        StoreKeyError: there is no such object.
        InvalidTensors: the object is truncated, or no such file.
    """
    try:
        with store.local_copy(key) as path, safe_open(path, framework="numpy") as tensors:
            metadata = json.loads((tensors.metadata() or {}).get(METADATA_FIELD, "null"))
            if not isinstance(metadata, dict):
                raise InvalidTensors(f"{key!r} in {store.uri}: expected metadata under {METADATA_FIELD!r}, got none")
            expected = str(metadata.pop(DIGEST_FIELD, "none"))
            yield tensors, metadata, expected
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, StorageError):
            raise
        raise InvalidTensors(f"{key!r} in {store.uri}: expected a safetensors file, got {error}") from error


def _digest(arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256, in hex, of metadata and contiguous arrays: their names, types, shapes and bytes."""
    sha256 = _begin_digest(metadata)
    for name, array in sorted(arrays.items()):
        _add_to_digest(sha256, name, array)
    return str(sha256.hexdigest())


def _begin_digest(metadata: Mapping[str, str]) -> Any:
    return hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())


def _add_to_digest(sha256: Any, name: str, array: npt.NDArray[Any]) -> None:
    sha256.update(json.dumps([name, str(array.dtype), array.shape]).encode())
    sha256.update(array.reshape(-1).view(np.uint8).data)
