"""Named arrays in one safetensors object: EK-FAC factors, the reference direction, bandit statistics.

Owns the bytes: the same arrays and metadata give the same file. Refuses dtypes other than those of `DTYPES`, so that
what is read back is what numpy computes with. Source of the format: https://huggingface.co/docs/safetensors.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from quad_tasks.storage.faults import StorageError
from quad_tasks.storage.manifest import check_digest
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


def load_tensors(store: Store, key: str) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Read the arrays and metadata that `save_tensors` wrote.

    Raises:
        StoreKeyError: there is no such object.
        InvalidTensors: the object is truncated, or no such file.
        DigestMismatch: the arrays or the metadata are not those that were written.
    """
    try:
        with store.local_copy(key) as path, safe_open(path, framework="numpy") as tensors:
            arrays = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (not a mapping)
            metadata = json.loads((tensors.metadata() or {}).get(METADATA_FIELD, "null"))
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, StorageError):
            raise
        raise InvalidTensors(f"{key!r} in {store.uri}: expected a safetensors file, got {error}") from error
    if not isinstance(metadata, dict):
        raise InvalidTensors(f"{key!r} in {store.uri}: expected metadata under {METADATA_FIELD!r}, got none")
    expected = str(metadata.pop(DIGEST_FIELD, "none"))
    check_digest(store, key, expected=expected, got=_digest(arrays, metadata))
    return arrays, metadata


def _digest(arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256, in hex, of metadata and contiguous arrays: their names, types, shapes and bytes."""
    sha256 = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        sha256.update(json.dumps([name, str(array.dtype), array.shape]).encode())
        sha256.update(array.reshape(-1).view(np.uint8).data)
    return sha256.hexdigest()
