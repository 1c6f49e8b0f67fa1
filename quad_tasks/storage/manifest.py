"""Write and read manifests: small JSON objects that make data visible, each written once, after its data.

Owns canonical JSON, digests, formats, and the rule that a manifest is created only if absent. Refuses a manifest whose
content is not what its digest says, one of a format it does not know, and a second one of different content under the
same key. What may differ between two runs of the same work (who, when) stands under ``volatile`` and is outside the
digest. The models are those of `quad_tasks.manifests`.
"""

import hashlib
import json
from typing import Any, TypeVar

from pydantic import ValidationError

from quad_tasks.manifests.base import Manifest
from quad_tasks.storage.errors import StorageError
from quad_tasks.storage.store import Store

DIGEST_FIELD = "digest"
VOLATILE_FIELD = "volatile"
VOLATILE_DIGEST_FIELD = "digest_of_volatile"
FORMAT_FIELD = "format"
SEALS = (DIGEST_FIELD, VOLATILE_FIELD, VOLATILE_DIGEST_FIELD)
"""What the digest of a manifest's content leaves out."""

Model = TypeVar("Model", bound=Manifest)


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


def write_manifest(store: Store, key: str, manifest: Manifest) -> None:
    """Create a manifest, or find that an equal one is there already.

    Raises:
        ManifestMismatch: a manifest of different content stands there.
        InvalidManifest: something that is no manifest of this model stands there.
    """
    if store.put_if_absent(key, encode_manifest(manifest)):
        return
    theirs, ours = (digest(_content(m)) for m in (read_manifest(type(manifest), store, key), manifest))
    if theirs != ours:
        raise ManifestMismatch(
            f"{key!r} in {store.uri}: expected digest {ours}, got {theirs}: other content is committed"
        )


def read_manifest(model: type[Model], store: Store, key: str) -> Model:
    """Read a manifest and check its digest and its format.

    Args:
        model: what it should be.
        store: where it is.
        key: the manifest's key.

    Raises:
        StoreKeyError: there is none.
        InvalidManifest: the object is no manifest of that model, or of a format that cannot be read.
        DigestMismatch: the content is not what the digest says.
    """
    body = _read_body(store, key)
    del body[DIGEST_FIELD]
    body.pop(VOLATILE_DIGEST_FIELD, None)
    body = {**body.pop(VOLATILE_FIELD, {}), **body}
    found = body.pop(FORMAT_FIELD, 1)
    if found != model.FORMAT:
        upgraded = model.upgrade(body, found) if isinstance(found, int) and found < model.FORMAT else None
        if upgraded is None:
            raise InvalidManifest(
                f"{key!r} in {store.uri}: expected a {model.__name__} of format {model.FORMAT}, got format {found}: "
                "it was written by another version of Quad"
            )
        body = upgraded
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise InvalidManifest(f"{key!r} in {store.uri}: expected a {model.__name__}, got {error}") from error


def read_digest(store: Store, key: str) -> str:
    """Return the digest a manifest carries, checked.

    Raises:
        StoreKeyError: there is none.
        InvalidManifest: the object is no manifest.
        DigestMismatch: the content is not what the digest says.
    """
    found: str = _read_body(store, key)[DIGEST_FIELD]
    return found


def encode_manifest(manifest: Manifest) -> bytes:
    """Return a manifest's bytes: JSON with sorted keys, its format, and its digest, which leaves ``volatile`` out.

    What is volatile has a digest of its own, so that damage to it is found too.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    body = _content(manifest)
    volatile = manifest.model_dump(mode="json", include=set(manifest.VOLATILE))
    sealed = {VOLATILE_FIELD: volatile, VOLATILE_DIGEST_FIELD: digest(volatile)} if volatile else {}
    whole = {**body, **sealed, DIGEST_FIELD: digest(body)}
    return (json.dumps(whole, sort_keys=True, indent=2, allow_nan=False) + "\n").encode()


def _content(manifest: Manifest) -> dict[str, Any]:
    """Return what the digest is of: all but what is volatile, and the format."""
    return manifest.model_dump(mode="json", exclude=set(manifest.VOLATILE)) | {FORMAT_FIELD: manifest.FORMAT}


def _read_body(store: Store, key: str) -> dict[str, Any]:
    """Read a manifest as it is stored, its digest checked."""
    try:
        body = json.loads(store.get(key))
    except ValueError as error:
        raise InvalidManifest(f"{key!r} in {store.uri}: expected a JSON object, got {error}") from error
    if not isinstance(body, dict) or not isinstance(body.get(DIGEST_FIELD), str):
        raise InvalidManifest(
            f"{key!r} in {store.uri}: expected a JSON object with a digest, got {type(body).__name__}"
        )
    content = {name: value for name, value in body.items() if name not in SEALS}
    check_digest(store, key, expected=body[DIGEST_FIELD], got=digest(content))
    if VOLATILE_DIGEST_FIELD in body:  # earlier versions wrote none
        check_digest(store, key, expected=body[VOLATILE_DIGEST_FIELD], got=digest(body.get(VOLATILE_FIELD)))
    return body


def file_sha256(store: Store, key: str) -> str:
    """Return the SHA-256 of an object's bytes, in hex, holding little of them in memory.

    Raises:
        StoreKeyError: there is none.
    """
    with store.local_copy(key) as path, path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(store: Store, key: str, sha256: str) -> None:
    """Hold an object's bytes against the digest a manifest has of them.

    Raises:
        StoreKeyError: there is none.
        DigestMismatch: they differ.
    """
    check_digest(store, key, expected=sha256, got=file_sha256(store, key))


def check_digest(store: Store, key: str, *, expected: str, got: str) -> None:
    """Compare the digest recorded for an object with the one its bytes have.

    Raises:
        DigestMismatch: they differ.
    """
    if expected != got:
        raise DigestMismatch(f"{key!r} in {store.uri}: expected digest {expected}, got {got}")
