"""The ledger under races, kills and damage."""

import multiprocessing
import os
import socket
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
from process_calls import commit_round_of_one
from small_pool import round_info

from quad_tasks.manifests.run import ExperimentRecord
from quad_tasks.storage.lease import LeaseLost, claim_lease, release_lease, this_process
from quad_tasks.storage.manifest import DigestMismatch, InvalidManifest, encode_manifest
from quad_tasks.storage.rounds import (
    LedgerGap,
    RoundAlreadyCommitted,
    commit_round,
    drop_hollow_round,
    list_rounds,
    orphaned_tables,
    read_round,
    read_round_table,
)
from quad_tasks.storage.store import InvalidKey, Store, StoreKeyError, open_store

TABLES = {
    "arms": pa.table({"arm": [0, 1], "cursor": [10, 0]}),
    "pulls": pa.table({"arm": [0], "reward": [0.5]}),
    "scores": pa.table({"id": ["a", "b"], "influence": [0.25, 0.75]}),
}
FOLDER = "runs/r/stage-00/round-00000"


@pytest.fixture
def store(backend) -> Store:
    return open_store(backend.uri)


@pytest.fixture
def local_store(local_backend) -> Store:
    return open_store(local_backend.uri)


def test_a_committed_round_is_listed_and_read_back(store):
    committed = commit_round(store, "r", 0, 0, TABLES, round_info(tokens=12))
    assert list_rounds(store, "r", 0) == [read_round(store, "r", 0, 0)] == [committed]
    assert committed.info == round_info(tokens=12)
    assert committed.owner == this_process()
    for name, table in TABLES.items():
        assert read_round_table(store, committed, name).equals(table)
        assert committed.tables[name].rows == table.num_rows


def test_a_round_that_is_not_committed_is_a_missing_key(store):
    with pytest.raises(StoreKeyError, match=r"not found: 'runs/r/stage-00/round-00007/manifest\.json'"):
        read_round(store, "r", 0, 7)


def test_rounds_are_kept_by_stage_and_in_order_of_number(local_store):
    for number in range(12):
        commit_round(local_store, "r", 1, number, {}, round_info(documents=number))
    commit_round(local_store, "r", 0, 0, {}, round_info())
    assert [manifest.round for manifest in list_rounds(local_store, "r", 1)] == list(range(12))
    assert len(list_rounds(local_store, "r", 0)) == 1
    assert list_rounds(local_store, "r", 2) == list_rounds(local_store, "other", 0) == []


def test_a_run_whose_name_starts_with_anothers_is_another_run(local_store):
    commit_round(local_store, "run-10", 0, 0, {}, round_info())
    assert list_rounds(local_store, "run-1", 0) == []
    assert orphaned_tables(local_store, "run-1") == []


def test_a_second_commit_is_refused_and_names_the_first_committer(store):
    first = commit_round(store, "r", 0, 0, TABLES, round_info())
    with pytest.raises(
        RoundAlreadyCommitted, match=rf"process {os.getpid()} of .* on {socket.gethostname()}, started 20"
    ):
        commit_round(store, "r", 0, 0, {"arms": TABLES["pulls"]}, round_info())
    assert list_rounds(store, "r", 0) == [first]
    assert read_round_table(store, first, "arms").equals(TABLES["arms"])


def test_a_process_that_tries_its_own_commit_again_finds_it_done(store):
    first = commit_round(store, "r", 0, 0, TABLES, round_info(mean_reward=1.5))
    assert commit_round(store, "r", 0, 0, TABLES, round_info(mean_reward=1.5)) == first
    with pytest.raises(RoundAlreadyCommitted, match="expected no manifest"):
        commit_round(store, "r", 0, 0, TABLES, round_info(mean_reward=2.5))


def test_of_racing_threads_one_commits(store):
    def commit(i: int) -> bool:
        try:
            return commit_round(store, "r", 0, 0, {"arms": pa.table({"arm": [i]})}, round_info()) is not None
        except RoundAlreadyCommitted:
            return False

    with ThreadPoolExecutor(8) as committers:
        committed = list(committers.map(commit, range(8)))
    assert sum(committed) == 1
    (manifest,) = list_rounds(store, "r", 0)
    assert read_round_table(store, manifest, "arms")["arm"].to_pylist() == [committed.index(True)]


def test_of_racing_processes_one_commits(local_store):
    with multiprocessing.get_context("spawn").Pool(2) as processes:
        assert sum(processes.map(commit_round_of_one, [local_store] * 2, chunksize=1)) == 1


def test_a_round_whose_writer_died_before_its_manifest_does_not_exist(local_store, monkeypatch):
    def die(store, key, data):
        raise KeyboardInterrupt("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put_if_absent", die)
        with pytest.raises(KeyboardInterrupt, match="killed"):
            commit_round(local_store, "r", 0, 0, TABLES, round_info())
    assert list_rounds(local_store, "r", 0) == []
    assert len(orphaned_tables(local_store, "r")) == 3
    committed = commit_round(local_store, "r", 0, 0, TABLES, round_info())
    assert orphaned_tables(local_store, "r") == []
    assert list_rounds(local_store, "r", 0) == [committed]


def test_a_process_that_lost_the_run_commits_nothing(local_store):
    claim_lease(local_store, "runs/r", ttl_s=-1)
    another = this_process().model_copy(update={"user": "ben", "pid": 1})
    release_lease(local_store, claim_lease(local_store, "runs/r", another))
    with pytest.raises(LeaseLost, match="taken over by process 1 of ben"):
        commit_round(local_store, "r", 0, 0, TABLES, round_info())
    assert list_rounds(local_store, "r", 0) == []


def test_tables_that_were_cleaned_away_right_before_the_commit_are_there_after_it(local_store, monkeypatch):
    create = Store.put_if_absent

    def clean_first(store, key, data):
        for orphan in orphaned_tables(store, "r"):
            store.delete(orphan)
        return create(store, key, data)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put_if_absent", clean_first)
        committed = commit_round(local_store, "r", 0, 0, TABLES, round_info())
    assert read_round_table(local_store, committed, "scores").equals(TABLES["scores"])


def test_a_last_round_whose_tables_are_gone_is_taken_back_and_committed_again(local_store):
    first, last = (commit_round(local_store, "r", 0, n, TABLES, round_info(documents=n)) for n in range(2))
    assert drop_hollow_round(local_store, "r", 0) is None
    assert drop_hollow_round(local_store, "r", 1) is None
    local_store.delete(last.tables["scores"].key)
    assert drop_hollow_round(local_store, "r", 0) == 1
    assert list_rounds(local_store, "r", 0) == [first]
    assert commit_round(local_store, "r", 0, 1, TABLES, round_info(documents=1)) == last


def test_orphans_are_the_tables_that_no_manifest_names(store):
    committed = commit_round(store, "r", 0, 0, TABLES, round_info())
    claim_lease(store, "runs/r")
    with pytest.raises(RoundAlreadyCommitted, match="expected no manifest"):
        commit_round(store, "r", 0, 0, {"arms": TABLES["arms"].slice(1)}, round_info())
    (orphan,) = orphaned_tables(store, "r")
    assert orphan.startswith(FOLDER)
    assert "/arms-" in orphan
    assert orphan not in {entry.key for entry in committed.tables.values()}


def test_a_gap_in_the_ledger_is_refused_by_number(local_store):
    for number in (0, 1, 3):
        commit_round(local_store, "r", 0, number, {}, round_info())
    with pytest.raises(LedgerGap, match=r"'runs/r/stage-00' in .*expected round 2, got round 3 next"):
        list_rounds(local_store, "r", 0)


def test_a_changed_table_is_refused_with_its_key_and_both_digests(local_store, local_backend):
    manifest = commit_round(local_store, "r", 0, 0, TABLES, round_info())
    entry = manifest.tables["scores"]
    local_backend.plant(entry.key, b"other bytes")
    with pytest.raises(
        DigestMismatch,
        match=rf"scores-[0-9a-f]{{16}}\.parquet' in .*expected digest {entry.sha256}, got [0-9a-f]{{64}}",
    ):
        read_round_table(local_store, manifest, "scores")


def test_a_foreign_manifest_is_refused_by_key(local_store, local_backend):
    local_backend.plant(f"{FOLDER}/manifest.json", encode_manifest(ExperimentRecord(rows=3)))
    with pytest.raises(InvalidManifest, match=rf"'{FOLDER}/manifest\.json' in .*expected a RoundManifest"):
        list_rounds(local_store, "r", 0)


@pytest.mark.parametrize("run", ["a/b", "..", ""])
def test_a_runs_name_is_one_part_of_a_key(local_store, run):
    with pytest.raises(InvalidKey, match="expected a"):
        list_rounds(local_store, run, 0)
