"""Manifests: small JSON objects that make data visible, each written once, after its data, and carrying its digest.

Owns canonical JSON, digests, and the rule that a manifest is created only if absent. Refuses a manifest whose content
is not what its digest says, and a second one of different content under the same key. What may differ between two
runs of the same work (who, when) stands under ``volatile`` and is outside the digest.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from quad_tasks.storage.faults import StorageError
from quad_tasks.storage.store import Store

DIGEST_FIELD = "digest"
VOLATILE_FIELD = "volatile"

Model = TypeVar("Model", bound=BaseModel)


class ManifestMismatch(StorageError, ValueError):
    """Another manifest of different content stands under the key."""


class DigestMismatch(StorageError, ValueError):
    """Stored bytes are not those whose digest was recorded."""


class InvalidManifest(StorageError, ValueError):
    """The object is not a manifest."""


def digest(value: Any) -> str:
    """Return the SHA-256, in hex, of ``value`` as canonical JSON: sorted keys, no spaces, UTF-8.

    Args:
        value: JSON values only; tuples count as lists and keys as their text, as JSON would store them.

    Raises:
        TypeError: a value has no JSON form.
        ValueError: a number is NaN or infinite.
    """
    stored = json.loads(json.dumps(value, allow_nan=False))
    canonical = json.dumps(stored, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def encode_manifest(body: Mapping[str, Any]) -> bytes:
    """Return ``body`` as a manifest's bytes: JSON with sorted keys and its digest, which leaves ``volatile`` out.

    Raises:
        TypeError: a value has no JSON form.
        ValueError: a number is NaN or infinite.
    """
    with_digest = {**body, DIGEST_FIELD: _digest_of_body(body)}
    return (json.dumps(with_digest, sort_keys=True, indent=2, allow_nan=False) + "\n").encode()


def write_manifest(store: Store, key: str, body: Mapping[str, Any]) -> str:
    """Create a manifest, or find that an equal one is there already.

    Args:
        store: where to.
        key: the manifest's key.
        body: JSON values; a ``digest`` in it is replaced, ``volatile`` is stored but not compared.

    Returns:
        The digest of the content.

    Raises:
        ManifestMismatch: a manifest of different content stands there.
        InvalidManifest: something that is not a manifest stands there.
    """
    ours = _digest_of_body(body)
    if store.put_if_absent(key, encode_manifest(body)):
        return ours
    theirs = read_manifest(store, key)[DIGEST_FIELD]
    if theirs != ours:
        raise ManifestMismatch(
            f"{key!r} in {store.uri}: expected digest {ours}, got {theirs}: other content is committed"
        )
    return ours


def read_manifest(store: Store, key: str) -> dict[str, Any]:
    """Read a manifest and check its digest.

    Returns:
        The body as written, with ``digest``.

    Raises:
        StoreKeyError: there is none.
        InvalidManifest: the object is not a JSON object with a digest.
        DigestMismatch: the content is not what the digest says.
    """
    try:
        body = json.loads(store.get(key))
    except ValueError as error:
        raise InvalidManifest(f"{key!r} in {store.uri}: expected a JSON object, got {error}") from error
    if not isinstance(body, dict) or not isinstance(body.get(DIGEST_FIELD), str):
        raise InvalidManifest(
            f"{key!r} in {store.uri}: expected a JSON object with a digest, got {type(body).__name__}"
        )
    check_digest(store, key, expected=body[DIGEST_FIELD], got=_digest_of_body(body))
    return body


def read_record(model: type[Model], store: Store, key: str) -> Model:
    """Read a manifest as a pydantic model, what is volatile with the rest.

    Raises:
        StoreKeyError: there is none.
        InvalidManifest: the object is no manifest of that model.
        DigestMismatch: the content is not what the digest says.
    """
    body = read_manifest(store, key)
    del body[DIGEST_FIELD]
    try:
        return model.model_validate({**body.pop(VOLATILE_FIELD, {}), **body})
    except ValidationError as error:
        raise InvalidManifest(f"{key!r} in {store.uri}: expected a {model.__name__}, got {error}") from error


def check_digest(store: Store, key: str, *, expected: str, got: str) -> None:
    """Compare the digest recorded for an object with the one its bytes have.

    Raises:
        DigestMismatch: they differ.
    """
    if expected != got:
        raise DigestMismatch(f"{key!r} in {store.uri}: expected digest {expected}, got {got}")


def _digest_of_body(body: Mapping[str, Any]) -> str:
    return digest({name: value for name, value in body.items() if name not in (DIGEST_FIELD, VOLATILE_FIELD)})
