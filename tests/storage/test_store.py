"""One contract, run on every kind of store; what is planted and looked at bypasses the store."""

import errno
import multiprocessing
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quad_tasks.storage.store import (
    InvalidKey,
    Store,
    StoreFault,
    StoreForbidden,
    StoreKeyError,
    UnsupportedStore,
    check_conditional_create,
    check_key,
    open_store,
)

RACING_WRITERS = 24
CLOCK_TOLERANCE_S = 2  # S3 gives whole seconds
BAD_KEYS = ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a/.", "a\\b", "a\nb", "a\x00b", "a\u2028b", "\ud800"]


def test_get_returns_the_planted_bytes(backend):
    backend.plant("folder/name.bin", b"\x00bytes\xff")
    assert open_store(backend.uri).get("folder/name.bin") == b"\x00bytes\xff"


def test_put_stores_exactly_the_bytes_and_replaces_older_ones(backend):
    backend.plant("a/b.txt", b"a longer old content")
    open_store(backend.uri).put("a/b.txt", b"new")
    assert backend.peek("a/b.txt") == b"new"


def test_a_missing_object_is_named_with_its_store(backend):
    with pytest.raises(StoreKeyError, match=rf"not found: 'a/none' in {backend.uri}"):
        open_store(backend.uri).get("a/none")


def test_put_if_absent_creates_once_and_keeps_the_first(backend):
    store = open_store(backend.uri)
    assert store.put_if_absent("a/marker", b"first")
    assert not store.put_if_absent("a/marker", b"second")
    assert not store.put_if_absent("a/marker", b"first")
    assert backend.peek("a/marker") == b"first"


def test_of_24_racing_writers_one_wins_and_its_bytes_stay(backend):
    store = open_store(backend.uri)
    with ThreadPoolExecutor(RACING_WRITERS) as writers:
        created = list(writers.map(lambda i: store.put_if_absent("race", b"%d" % i), range(RACING_WRITERS)))
    assert sum(created) == 1
    assert backend.peek("race") == b"%d" % created.index(True)


def test_an_honest_store_passes_the_check_and_keeps_no_probe(backend):
    store = open_store(backend.uri)
    check_conditional_create(store)
    assert store.list() == []


def test_exists_and_size_are_of_objects_not_of_folders(backend):
    backend.plant("a/b", b"four")
    store = open_store(backend.uri)
    assert store.exists("a/b")
    assert store.size("a/b") == 4
    assert not store.exists("a")
    assert not store.exists("a/b/c")
    assert not store.exists("none")


def test_an_object_knows_when_it_was_written(backend):
    before = time.time()
    backend.plant("a/b", b"12")
    store = open_store(backend.uri)
    assert before - CLOCK_TOLERANCE_S <= store.modified_s("a/b") <= time.time() + CLOCK_TOLERANCE_S
    with pytest.raises(StoreKeyError, match="not found: 'a/c'"):
        store.modified_s("a/c")


def test_list_is_recursive_sorted_and_stays_inside_its_folder(backend):
    for key in ("a/z", "a/b/c", "ab", "a/b.txt", "top"):
        backend.plant(key, b"")
    store = open_store(backend.uri)
    assert store.list("a") == store.list("a/") == ["a/b.txt", "a/b/c", "a/z"]
    assert store.list() == ["a/b.txt", "a/b/c", "a/z", "ab", "top"]
    assert store.list("top") == store.list("none") == []


def test_a_listing_sees_what_another_writer_just_added(backend):
    store = open_store(backend.uri)
    assert store.list("a") == []
    backend.plant("a/b", b"")
    assert store.list("a") == ["a/b"]


def test_delete_removes_an_object_and_forgives_a_missing_one(backend):
    backend.plant("a/b", b"")
    store = open_store(backend.uri)
    store.delete("a/b")
    store.delete("a/b")
    assert backend.peek("a/b") is None


def test_open_input_reads_and_seeks_as_a_file(backend):
    backend.plant("a", bytes(range(100)))
    with open_store(backend.uri).open_input("a") as file:
        assert file.read(3) == bytes([0, 1, 2])
        assert file.seek(-2, 2) == 98
        assert file.read() == bytes([98, 99])
        assert file.read() == b""
        assert file.seek(10) == file.tell() == 10
        assert file.seek(5, 1) == 15
        assert file.read(1) == bytes([15])


def test_open_input_names_a_missing_object(backend):
    with pytest.raises(StoreKeyError, match="not found: 'none'"):
        open_store(backend.uri).open_input("none")


def test_read_range_is_half_open(backend):
    backend.plant("a", b"0123456789")
    assert open_store(backend.uri).read_range("a", 2, 5) == b"234"


def test_a_spooled_file_becomes_the_object_when_the_block_ends(backend):
    store = open_store(backend.uri)
    with store.spool("a/spooled") as path:
        path.write_bytes(b"spooled")
        assert backend.peek("a/spooled") is None
        assert store.list() == []
    assert backend.peek("a/spooled") == b"spooled"
    assert not path.exists()


def test_a_spooled_file_is_dropped_when_the_block_fails(backend):
    store = open_store(backend.uri)

    def fail() -> None:
        with store.spool("a/spooled") as path:
            path.write_bytes(b"half")
            raise KeyboardInterrupt("stopped")

    with pytest.raises(KeyboardInterrupt, match="stopped"):
        fail()
    assert store.list() == []
    assert not store.exists("a/spooled")


def test_local_copy_lends_the_objects_bytes(backend):
    backend.plant("a", b"bytes")
    with open_store(backend.uri).local_copy("a") as path:
        assert path.read_bytes() == b"bytes"


def test_local_copy_names_a_missing_object(backend):
    with pytest.raises(StoreKeyError, match="not found: 'none'"), open_store(backend.uri).local_copy("none"):
        pass


def test_a_pickled_store_reads_the_same_objects(backend):
    backend.plant("a", b"bytes")
    copied = pickle.loads(pickle.dumps(open_store(backend.uri)))
    assert copied.get("a") == b"bytes"


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_key_that_could_leave_the_root_is_refused(backend, key):
    store = open_store(backend.uri)
    for operation in (store.get, store.exists, store.size, store.delete, store.open_input, store.local_path):
        with pytest.raises(InvalidKey, match="expected a relative path"):
            operation(key)
    for write in (store.put, store.put_if_absent):
        with pytest.raises(InvalidKey, match="expected a relative path"):
            write(key, b"")


@given(st.text())
def test_an_accepted_key_stays_under_a_local_root(key):
    try:
        check_key(key)
    except InvalidKey:
        return
    root = Path("/root/of/store")
    assert Path("/root/of/store", key).is_relative_to(root)
    assert ".." not in Path(key).parts


def test_a_key_longer_than_s3_takes_is_refused():
    check_key("é" * 512)
    with pytest.raises(InvalidKey, match="at most 1024 bytes"):
        check_key("é" * 513)


def test_a_size_is_todays_also_after_a_listing(backend):
    backend.plant("a/b", b"12")
    store = open_store(backend.uri)
    assert store.list() == ["a/b"]
    backend.plant("a/b", b"1234")
    assert store.size("a/b") == 4


def test_unfinished_local_files_are_not_listed(local_backend):
    local_backend.plant("a/.tmp-0123", b"half")
    store = open_store(local_backend.uri)
    assert store.list() == []
    with pytest.raises(InvalidKey, match="expected a relative path"):
        store.get("a/.tmp-0123")


def test_local_writes_leave_no_temporary_files(local_backend):
    store = open_store(local_backend.uri)
    store.put("a/b", b"")
    store.put_if_absent("a/c", b"")
    store.put_if_absent("a/c", b"")
    assert sorted(path.name for path in Path(local_backend.uri, "a").iterdir()) == ["b", "c"]


def test_a_link_whose_answer_nfs_lost_counts_as_made(local_backend, monkeypatch):
    link = os.link

    def made_but_denied(source, target):
        link(source, target)
        raise FileExistsError(target)

    monkeypatch.setattr(os, "link", made_but_denied)
    assert open_store(local_backend.uri).put_if_absent("a", b"mine")


def test_plain_paths_and_file_uris_name_the_same_store(tmp_path, monkeypatch):
    (tmp_path / "workspace").mkdir()
    monkeypatch.chdir(tmp_path)
    open_store("workspace").put("a", b"bytes")
    assert open_store(f"file://{tmp_path}/workspace/").get("a") == b"bytes"
    assert open_store(str(tmp_path)).get("workspace/a") == b"bytes"


def test_a_store_works_in_a_child_process(s3_backend):
    s3_backend.plant("a", b"bytes")
    store = open_store(s3_backend.uri)
    assert store.get("a") == b"bytes"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(store.get, ("a",)) == b"bytes"


def test_a_forked_store_builds_a_client_of_its_own(s3_backend, monkeypatch):
    s3_backend.plant("a", b"bytes")
    store = open_store(s3_backend.uri)
    parents = store._filesystem
    monkeypatch.setattr(store, "_process_id", os.getpid() + 1)  # not os.getpid: a Dask worker in this process asks it
    assert store.get("a") == b"bytes"
    assert store._filesystem is not parents


def test_large_s3_objects_arrive_whole_through_a_spool(s3_backend):
    data = bytes(range(256)) * 4096 * 12
    store = open_store(s3_backend.uri)
    with store.spool("large") as path:
        path.write_bytes(data)
    assert s3_backend.peek("large") == data
    assert store.get("large") == data


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("nosuch://place", "expected a local path, s3://bucket/prefix or another fsspec URI, got 'nosuch://place'"),
        ("s3://", "expected a bucket's name"),
        ("", "got an empty one"),
    ],
)
def test_a_uri_that_names_no_store_is_refused(uri, message):
    with pytest.raises(UnsupportedStore, match=message):
        open_store(uri)


def test_a_store_that_ignores_the_condition_is_refused_and_cleaned_up(faulty_s3):
    faulty_s3.ignores_conditions = True
    with pytest.raises(UnsupportedStore, match=r"s3://bucket/x ignores conditional creation .*a late one"):
        check_conditional_create(open_store("s3://bucket/x"))
    assert faulty_s3.objects == {}


@pytest.mark.parametrize(
    ("answers", "got"),
    [
        ([True, True, False], "2 winners of 2 racing writers;"),
        ([False, False, False], "0 winners of 2 racing writers;"),
        ([True, False, True], "1 winners of 2 racing writers, and a late one;"),
    ],
)
def test_a_store_with_other_than_one_winner_is_refused(local_backend, monkeypatch, answers, got):
    """One that looks first and creates then has two of a race, though it refuses who comes late."""
    left = list(answers)
    monkeypatch.setattr(Store, "put_if_absent", lambda *_: left.pop(0))
    with pytest.raises(UnsupportedStore, match=f"expected one winner, got {got}"):
        check_conditional_create(open_store(local_backend.uri))


def test_a_filesystem_without_hard_links_is_refused(local_backend, monkeypatch):
    def no_links(source, target):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(UnsupportedStore, match=r"cannot create an object only if absent.*not supported"):
        check_conditional_create(open_store(local_backend.uri))


def test_a_lost_connection_and_a_busy_store_are_asked_again(faulty_s3, delays):
    faulty_s3.objects["/bucket/a"] = b"bytes"
    faulty_s3.faults = ["reset", "reset", 503, 500, 429]
    assert open_store("s3://bucket").read_range("a", 0, 5) == b"bytes"
    assert len(faulty_s3.requests) == 6
    assert len(delays) >= 4


@pytest.mark.parametrize("fault", [429, 500, 502, 503, 504, "reset", "slow"])
def test_each_passing_fault_is_asked_again_whatever_is_done(faulty_s3, delays, monkeypatch, fault):
    monkeypatch.setattr("quad_tasks.storage.store.READ_TIMEOUT_S", 0.2)
    store = open_store("s3://bucket")
    for operation in (
        lambda: store.put("a", b"bytes"),
        lambda: store.get("a"),
        lambda: store.size("a"),
        lambda: store.read_range("a", 0, 5),
        lambda: store.delete("a"),
    ):
        faulty_s3.faults = [fault]
        before = len(faulty_s3.requests)
        operation()
        assert faulty_s3.faults == []
        assert len(faulty_s3.requests) >= before + 2


@pytest.mark.parametrize(
    ("status", "error"),
    [(403, StoreForbidden), (404, StoreKeyError), (400, StoreFault), (409, StoreFault), (412, StoreFault)],
)
def test_a_refusal_is_asked_once(faulty_s3, delays, status, error):
    faulty_s3.faults = [status]
    with pytest.raises(error, match=r"'a' in s3://bucket"):
        open_store("s3://bucket").read_range("a", 0, 5)
    assert delays == []
    assert faulty_s3.requests == ["GET"]


def test_an_object_in_the_way_means_that_another_writer_won(faulty_s3, delays):
    faulty_s3.faults = [412]
    assert not open_store("s3://bucket").put_if_absent("a", b"mine")
    assert delays == []


def test_a_create_that_met_another_under_way_is_tried_again(faulty_s3, delays):
    faulty_s3.faults = [409]
    assert open_store("s3://bucket").put_if_absent("a", b"mine")
    assert len(delays) == 1


@pytest.mark.parametrize("fault", ["lost 500", "lost reset"])
def test_a_create_whose_answer_was_lost_counts_as_made(faulty_s3, delays, fault):
    faulty_s3.faults = [fault]
    assert open_store("s3://bucket").put_if_absent("a", b"mine")
    assert faulty_s3.requests == ["PUT", "PUT", "HEAD"]


def test_equal_bytes_of_another_writer_are_not_taken_for_ones_own(faulty_s3, delays):
    store = open_store("s3://bucket")
    assert store.put_if_absent("a", b"same")
    faulty_s3.faults = [503]
    assert not store.put_if_absent("a", b"same")


def test_no_error_shows_the_password_of_its_uri():
    secret = "hunter2"
    with pytest.raises(UnsupportedStore, match=r"nosuch://\*\*\*@host/data") as caught:
        open_store(f"nosuch://user:{secret}@host/data")
    assert secret not in str(caught.value)


def test_a_store_shows_its_uri_without_secrets_and_pickles_with_them():
    store = open_store("memory://user:hunter2@host/data")
    assert "hunter2" not in f"{store.uri} {store!r}"
    with pytest.raises(StoreKeyError, match=r"not found: 'a' in memory://\*\*\*@host/data"):
        store.get("a")
    assert pickle.loads(pickle.dumps(store)).local_path("a") is None


def test_a_full_disk_names_the_object_and_what_to_do(tmp_path):
    store = open_store(str(tmp_path))

    def fail() -> None:
        with store.spool("a/large"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StoreFault, match=r"'a/large' in .*: the disk is full: make room, then `quad resume` goes on"):
        fail()
    assert store.list() == []
