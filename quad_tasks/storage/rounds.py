"""The round ledger: what every round did, committed by one manifest.

Owns ``runs/<run>/stage-<NN>/round-<NNNNN>/``. A round's tables are written first, under names that hold their own
digests, then ``manifest.json`` is created only if absent: the round exists from that moment on, whole. Equal work thus
gives equal keys and an equal manifest, and unequal work never meets. Refuses a second commit of a round, a ledger with
a gap, a table whose bytes are not those committed. A killed attempt may leave tables that no manifest names;
`orphaned_tables` lists them.
"""

import functools
import hashlib
import io
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from quad_tasks.manifests.base import Manifest
from quad_tasks.manifests.run import RoundInfo
from quad_tasks.storage.errors import InvalidKey, StorageError
from quad_tasks.storage.keys import manifest_key, round_folder, run_folder, stage_folder
from quad_tasks.storage.lease import Owner, check_lease, this_process
from quad_tasks.storage.manifest import check_digest, encode_manifest, read_manifest
from quad_tasks.storage.store import Store
from quad_tasks.storage.tables import COMPRESSION, COMPRESSION_LEVEL

ROW_GROUP_ROWS = 65_536
LISTING_THREADS = 8
DIGEST_CHARACTERS = 16


class RoundAlreadyCommitted(StorageError, FileExistsError):
    """The round stands in the ledger already."""


class LedgerGap(StorageError, ValueError):
    """A round is missing between committed ones."""


class TableEntry(BaseModel):
    """One table of a round: its key, number of rows, and the SHA-256 of its bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    rows: int
    sha256: str


class RoundManifest(Manifest):
    """A committed round: its place, its tables by name (arms, pulls, scores), and what its stage noted in ``info``."""

    VOLATILE: ClassVar[frozenset[str]] = frozenset({"owner"})

    run: str
    stage: int
    round: int
    owner: Owner
    tables: dict[str, TableEntry]
    info: RoundInfo


def commit_round(
    store: Store, run: str, stage: int, round: int, tables: Mapping[str, pa.Table], info: RoundInfo
) -> RoundManifest:
    """Write a round's tables, then commit them by creating its manifest.

    Args:
        store: the workspace.
        run: the run's name, one part of a key.
        stage: number of the stage, from 0.
        round: number of the round in its stage, from 0.
        tables: name -> rows; ``arms``, ``pulls`` and ``scores``.
        info: what the round cost and found.

    Returns:
        The manifest as committed, by this call or by an earlier one of this process.

    Raises:
        RoundAlreadyCommitted: another process, or other work, committed the round; nothing of it has changed.
        LeaseLost: another process has driven the run since this one did.
    """
    folder = round_folder(_checked(run), stage, round)
    entries = {name: _write_table(store, folder, name, table) for name, table in tables.items()}
    manifest = RoundManifest(run=run, stage=stage, round=round, owner=this_process(), tables=entries, info=info)
    key, data = manifest_key(folder), encode_manifest(manifest)
    check_lease(store, run_folder(run))
    if not store.put_if_absent(key, data) and store.get(key) != data:
        owner = _read_round(store, key).owner
        raise RoundAlreadyCommitted(f"{key!r} in {store.uri}: expected no manifest, got one committed by {owner}")
    for name, entry in entries.items():  # one that slept before its commit may have had them cleaned away
        if not store.exists(entry.key):
            _write_table(store, folder, name, tables[name])
    return manifest


def drop_hollow_round(store: Store, run: str, stage: int) -> int | None:
    """Take back a stage's last round where a table of it is gone, so that it is done again; ask under the run's lease.

    A process that was killed right after its commit, having slept before it, may leave such a one. Its tables have its
    digests in their names: done again, it is the same.

    Returns:
        The round's number; None where the last round is whole, or there is none.
    """
    number = count_rounds(store, run, stage) - 1
    if number < 0:
        return None
    manifest = read_round(store, run, stage, number)
    if all(store.exists(entry.key) for entry in manifest.tables.values()):
        return None
    store.delete(manifest_key(round_folder(run, stage, number)))
    return number


def _write_table(store: Store, folder: str, name: str, table: pa.Table) -> TableEntry:
    file = io.BytesIO()
    pq.write_table(table, file, compression=COMPRESSION, compression_level=COMPRESSION_LEVEL)
    data = file.getvalue()
    sha256 = hashlib.sha256(data).hexdigest()
    key = f"{folder}/{name}-{sha256[:DIGEST_CHARACTERS]}.parquet"
    store.put(key, data)
    return TableEntry(key=key, rows=table.num_rows, sha256=sha256)


def list_rounds(store: Store, run: str, stage: int) -> list[RoundManifest]:
    """Return a stage's committed rounds in order, from round 0.

    Raises:
        LedgerGap: a round is missing below a committed one.
        InvalidManifest: a manifest cannot be read as one.
        DigestMismatch: a manifest's content is not what its digest says.
    """
    keys = [manifest_key(round_folder(run, stage, number)) for number in range(count_rounds(store, run, stage))]
    with ThreadPoolExecutor(LISTING_THREADS) as readers:
        return list(readers.map(functools.partial(_read_round, store), keys))


def count_rounds(store: Store, run: str, stage: int) -> int:
    """Return how many rounds of a stage are committed: the next one's number.

    Raises:
        LedgerGap: a round is missing below a committed one.
    """
    folder = stage_folder(_checked(run), stage)
    found = (re.fullmatch(r"round-(\d+)/manifest\.json", key[len(folder) + 1 :]) for key in store.list(folder))
    numbers = sorted(int(match[1]) for match in found if match)
    for expected, number in enumerate(numbers):
        if expected != number:
            raise LedgerGap(f"{folder!r} in {store.uri}: expected round {expected}, got round {number} next")
    return len(numbers)


def read_round(store: Store, run: str, stage: int, round: int) -> RoundManifest:
    """Return one committed round.

    Raises:
        StoreKeyError: it is not committed.
        InvalidManifest: its manifest cannot be read as one.
        DigestMismatch: its manifest's content is not what its digest says.
    """
    return _read_round(store, manifest_key(round_folder(_checked(run), stage, round)))


def read_round_table(store: Store, manifest: RoundManifest, name: str) -> pa.Table:
    """Read one table of a committed round.

    Raises:
        StoreKeyError: the table is gone.
        DigestMismatch: its bytes are not those committed.
    """
    entry = manifest.tables[name]
    data = store.get(entry.key)
    check_digest(store, entry.key, expected=entry.sha256, got=hashlib.sha256(data).hexdigest())
    return pq.read_table(io.BytesIO(data))


def orphaned_tables(store: Store, run: str) -> list[str]:
    """Return the keys of round tables that no manifest names.

    Those still being written are among them: ask only while holding the run's lease.
    """
    keys = store.list(run_folder(_checked(run)))
    committed: set[str] = set()
    for key in keys:
        if re.search(r"/stage-\d+/round-\d+/manifest\.json$", key):
            committed.update(entry.key for entry in _read_round(store, key).tables.values())
    return [key for key in keys if re.search(r"/stage-\d+/round-\d+/.+\.parquet$", key) and key not in committed]


def _checked(run: str) -> str:
    if "/" in run:
        raise InvalidKey(f"expected a run's name without '/', got {run!r}")
    return run


def _read_round(store: Store, key: str) -> RoundManifest:
    return read_manifest(RoundManifest, store, key)
