"""Read the reference tables: the direction's documents, the measured ones, and the held-out domains."""

from collections.abc import Sequence

import pyarrow as pa

from quad_tasks.manifests.influence import ReferenceManifest
from quad_tasks.storage.keys import manifest_key, reference_table_key
from quad_tasks.storage.manifest import read_manifest
from quad_tasks.storage.positions import read_table
from quad_tasks.storage.store import Store


def read_reference(store: Store, key: str) -> ReferenceManifest:
    """Read the manifest of the reference tables."""
    return read_manifest(ReferenceManifest, store, manifest_key(key))


def read_reference_table(store: Store, key: str, part: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one of the reference tables: `reference`, `measured` or `heldout`.

    Raises:
        DigestMismatch: the table is not the one their manifest names.
    """
    manifest = read_reference(store, key)
    named = {"reference": manifest.reference, "measured": manifest.measured, "heldout": manifest.heldout}
    return read_table(store, reference_table_key(key, part), columns, sha256=named[part].sha256)
