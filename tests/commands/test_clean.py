"""`quad clean`: what interrupted attempts left goes, what a manifest names stays, and only one process works."""

import json
import os
import time

import pytest
from small_pool import stored
from typer.testing import CliRunner

from flows.cli.app import app
from quad_tasks.commands.clean import ABANDONED_AFTER_S, _old, _unfinished_files, clean_run
from quad_tasks.commands.verify import verify_run
from quad_tasks.runtime.run import pinned_pool
from quad_tasks.storage.keys import (
    dealt_distances_folder,
    dealt_hashes_folder,
    pool_folder,
    prediction_folder,
    rankings_folder,
    steps_key,
    trained_key,
)
from quad_tasks.storage.lease import LeaseHeld, claim_lease, release_lease
from quad_tasks.storage.store import open_store

LEASES_AND_TIMES = ("/lease/", "/times/")


@pytest.fixture
def leftovers(small_run):
    """Plant one leftover of every kind in a finished run, and return their keys by kind."""
    store = open_store(small_run.workspace)
    version = stored(store, pinned_pool(open_store(small_run.workspace), small_run.run))
    direction = next(key for key in store.list("factors") if key.endswith("direction.safetensors")).rpartition("/")[0]
    planted = {
        "round_tables": ["runs/small/stage-00/round-00001/scores-0123456789abcdef.parquet"],
        "stage_tables": [
            f"{rankings_folder('small', 0, 'random-7')}/block-00000.npy",
            f"{rankings_folder('small', 1, 'selected')}/ranked-00000.npy",
            f"{prediction_folder('small', 1, 3)}/block-00000.npy",
        ],
        "training_states": [steps_key(trained_key("small", 1, "selected-0"))],
        "selection_parts": ["runs/small/selection/part-99999.parquet"],
        "factor_chunks": [f"{direction}/chunks/gradient-0000000.safetensors", f"{direction}/basis.safetensors"],
        "build_tables": [f"{version['tables']}/shuffle/a-00000.parquet", f"{version['tables']}/shuffle/a-00000.npy"],
        "dealt_rows": [
            f"{dealt_hashes_folder(small_run.pool.name)}/0123456789ab-00000.bin",
            f"{dealt_distances_folder(version['clustering'])}/0123456789ab-00001.bin",
        ],
        "probes": ["probes/1700000000-00ff"],
    }
    for key in (key for keys in planted.values() for key in keys):
        store.put(key, b"12345")
        age(store.local_path(key))
    yield planted
    for key in (key for keys in planted.values() for key in keys):
        store.delete(key)


def age(path):
    """Make a file as old as what an ended process left."""
    past = time.time() - ABANDONED_AFTER_S - 1
    os.utime(path, (past, past))


def contents(config) -> dict[str, bytes]:
    store = open_store(config.workspace)
    return {key: store.get(key) for key in store.list() if not any(part in key for part in LEASES_AND_TIMES)}


def test_a_run_without_interruptions_has_nothing_to_clean(small_run):
    before = contents(small_run)
    assert clean_run(small_run)["objects"] == 0
    assert contents(small_run) == before


def test_every_kind_of_leftover_is_removed_and_counted_and_nothing_else(small_run, leftovers):
    planted = {key for keys in leftovers.values() for key in keys}
    before = contents(small_run)
    result = clean_run(small_run)
    assert {kind: n["objects"] for kind, n in result["leftovers"].items() if n["objects"]} == {
        kind: len(keys) for kind, keys in leftovers.items()
    }
    assert result["size_bytes"] == 5 * len(planted)
    assert contents(small_run) == {key: data for key, data in before.items() if key not in planted}
    assert verify_run(small_run)["orphans"] == []


def test_verify_lists_every_leftover_by_its_key(small_run, leftovers):
    planted = {key for keys in leftovers.values() for key in keys}
    assert set(verify_run(small_run)["orphans"]) == planted
    result = CliRunner().invoke(app, ["verify", "small", "--workspace", small_run.workspace])
    assert result.exit_code == 0, result.stderr
    assert planted <= set(result.stdout.splitlines())
    assert "`quad clean small` removes it once it is an hour old" in result.stdout


def test_a_dry_run_counts_and_removes_nothing(small_run, leftovers):
    before = contents(small_run)
    result = CliRunner().invoke(app, ["clean", "small", "--workspace", small_run.workspace, "--dry-run", "--json"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["objects"] == sum(map(len, leftovers.values()))
    assert contents(small_run) == before


def test_a_fit_that_is_not_committed_keeps_its_chunks(small_run):
    store = open_store(small_run.workspace)
    store.put("factors/unfinished/chunks/covariance-00000.safetensors", b"sums")
    assert clean_run(small_run)["objects"] == 0
    store.delete("factors/unfinished/chunks/covariance-00000.safetensors")


def test_a_training_that_is_not_measured_keeps_its_state(small_run):
    store, key = open_store(small_run.workspace), steps_key(trained_key("small", 9, "selected-0"))
    store.put(key, b"state")
    age(store.local_path(key))
    assert clean_run(small_run)["objects"] == 0
    store.delete(key)


def test_what_a_process_that_sleeps_may_still_commit_stays(small_run, leftovers):
    store = open_store(small_run.workspace)
    (young,) = leftovers["round_tables"]
    os.utime(store.local_path(young))
    result = clean_run(small_run)
    assert result["too_young"] == 1
    assert store.exists(young)
    assert not any(store.exists(key) for kind, keys in leftovers.items() if kind != "round_tables" for key in keys)


def test_unfinished_files_go_once_nobody_can_be_writing_them(small_run):
    root = open_store(small_run.workspace).local_path("runs").parent
    own, young, old = (root / folder / ".tmp-0" for folder in ("runs/small", "pools", "factors"))
    for path in (own, young, old):
        path.write_bytes(b"half")
    age(own)
    age(old)
    assert clean_run(small_run)["leftovers"]["unfinished_files"] == {"objects": 2, "size_bytes": 8}
    assert [path.exists() for path in (own, young, old)] == [False, True, False]
    young.unlink()


def test_a_run_that_is_driven_is_left_alone(small_run, leftovers):
    store = open_store(small_run.workspace)
    lease = claim_lease(store, "runs/small")
    try:
        with pytest.raises(LeaseHeld, match=r"process \d+ of .* on .*, started"):
            clean_run(small_run)
    finally:
        release_lease(store, lease)
    assert all(store.exists(key) for keys in leftovers.values() for key in keys)


def test_what_is_dealt_out_for_a_pool_that_somebody_works_at_stays(small_run, leftovers):
    store = open_store(small_run.workspace)
    lease = claim_lease(store, pool_folder(small_run.pool.name))
    try:
        clean_run(small_run)
    finally:
        release_lease(store, lease)
    assert {kind for kind, keys in leftovers.items() if any(map(store.exists, keys))} == {"dealt_rows"}


def test_what_would_be_removed_is_said_by_kind(small_run, leftovers):
    result = CliRunner().invoke(app, ["clean", "small", "--workspace", small_run.workspace, "--dry-run"])
    assert "factor chunks" in result.stdout
    assert "2 (10 bytes)" in result.stdout
    assert "would be removed" in result.stdout


def test_what_another_process_removes_meanwhile_is_passed_over(tmp_path):
    store = open_store(str(tmp_path))
    for key in ("probes/old", "probes/young"):
        store.put(key, b"12345")
    age(store.local_path("probes/old"))
    assert _old(store, ["probes/gone", "probes/old", "probes/young"]) == ({"probes/old": 5}, 1)


def test_of_names_of_unfinished_files_only_files_and_links_are_taken(tmp_path):
    store = open_store(str(tmp_path))
    folder = tmp_path / "factors" / ".tmp-folder"
    folder.mkdir(parents=True)
    (folder / "theirs").write_bytes(b"theirs")
    (folder.parent / ".tmp-file").write_bytes(b"half")
    (folder.parent / ".tmp-link").symlink_to(tmp_path / "nowhere")
    for path in (folder, folder.parent / ".tmp-file", folder.parent / ".tmp-link"):
        past = time.time() - ABANDONED_AFTER_S - 1
        os.utime(path, (past, past), follow_symlinks=False)
    assert [path.name for path in _unfinished_files(store, "factors")] == [".tmp-file", ".tmp-link"]
