"""A file is whole or not there, one creator wins, and an interrupted write leaves nothing behind."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import fsspec
import pytest

from quad_tasks.storage import atomic_write
from quad_tasks.storage.atomic_write import TEMPORARY_PREFIX, create, is_own, temporary_beside

CREATORS = 16
LOCAL = fsspec.filesystem("file")


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


def test_a_created_file_holds_its_bytes_and_has_one_name(tmp_path):
    create(LOCAL, str(tmp_path / "new" / "folder" / "file"), b"bytes", "token")
    assert (tmp_path / "new/folder/file").read_bytes() == b"bytes"
    assert (tmp_path / "new/folder/file").stat().st_nlink == 1
    assert names(tmp_path) == ["file", "folder", "new"]


def test_a_file_that_is_there_is_kept_and_the_creator_told(tmp_path):
    (tmp_path / "file").write_bytes(b"first")
    with pytest.raises(FileExistsError, match="file"):
        create(LOCAL, str(tmp_path / "file"), b"second", "token")
    assert (tmp_path / "file").read_bytes() == b"first"
    assert names(tmp_path) == ["file"]


def test_of_creators_at_once_one_wins_and_readers_see_all_of_its_bytes_or_no_file(tmp_path):
    path, started, seen = tmp_path / "file", threading.Barrier(CREATORS + 1), set()

    def compete(number):
        started.wait()
        try:
            create(LOCAL, str(path), bytes([number]) * 100_000, "token")
        except FileExistsError:
            return None
        return number

    with ThreadPoolExecutor(CREATORS) as pool:
        results = [pool.submit(compete, number) for number in range(CREATORS)]
        started.wait()
        while not all(result.done() for result in results):
            seen.add(path.read_bytes() if path.exists() else None)
    (winner,) = [result.result() for result in results if result.result() is not None]
    assert path.read_bytes() == bytes([winner]) * 100_000
    assert seen <= {None, path.read_bytes()}
    assert names(tmp_path) == ["file"]


def test_a_write_that_fails_before_its_link_leaves_no_file(tmp_path, monkeypatch):
    def full(path):
        raise OSError("no space left")

    monkeypatch.setattr(atomic_write, "sync", full)
    with pytest.raises(OSError, match="no space left"):
        create(LOCAL, str(tmp_path / "file"), b"bytes", "token")
    assert names(tmp_path) == []


def test_bytes_are_on_the_disk_before_their_name_and_new_folders_too(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(atomic_write, "sync", lambda path: done.append(("sync", path)))
    monkeypatch.setattr(os, "link", lambda source, target: done.append(("link", target)))
    create(LOCAL, str(tmp_path / "a" / "b" / "file"), b"bytes", "token")
    (_, temporary) = done[2]
    assert done == [
        ("sync", tmp_path / "a"),
        ("sync", tmp_path),
        ("sync", temporary),
        ("link", tmp_path / "a" / "b" / "file"),
        ("sync", tmp_path / "a" / "b"),
    ]
    assert temporary.name.startswith(TEMPORARY_PREFIX)


def test_a_lent_path_is_new_in_the_same_folder_and_removed_after_a_failure(tmp_path):
    lent = []

    def write_half():
        with temporary_beside(tmp_path / "folder" / "file") as path:
            lent.append(path)
            path.write_bytes(b"half")
            raise RuntimeError("power cut")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="power cut"):
            write_half()
    assert lent[0] != lent[1]
    assert {path.parent for path in lent} == {tmp_path / "folder"}
    assert names(tmp_path) == ["folder"]


def test_memory_creates_once():
    files = fsspec.filesystem("memory")
    create(files, "/atomic-write/file", b"first", "token")
    with pytest.raises(FileExistsError, match="atomic-write"):
        create(files, "/atomic-write/file", b"second", "token")
    assert files.cat("/atomic-write/file") == b"first"
    files.rm("/atomic-write", recursive=True)


@pytest.mark.parametrize(
    ("protocol", "expected"), [(("s3", "s3a"), {"Metadata": {"quad-writer": "token"}}), ("gs", {})]
)
def test_elsewhere_the_store_itself_creates_exclusively_and_s3_keeps_the_writers_token(protocol, expected):
    asked = []
    files = SimpleNamespace(protocol=protocol, pipe_file=lambda path, data, **how: asked.append((path, data, how)))
    create(files, "bucket/key", b"bytes", "token")
    assert asked == [("bucket/key", b"bytes", {"mode": "create", **expected})]


def test_an_object_on_s3_is_ones_own_by_its_token_and_a_local_file_never():
    s3 = SimpleNamespace(protocol=("s3",), metadata={"mine": {"quad-writer": "token"}, "bare": {}}.__getitem__)
    assert is_own(s3, "mine", "token")
    assert not is_own(s3, "mine", "another")
    assert not is_own(s3, "bare", "token")
    assert not is_own(LOCAL, "anything", "token")


def test_an_object_that_is_gone_is_not_ones_own():
    def gone(path):
        raise FileNotFoundError(path)

    assert not is_own(SimpleNamespace(protocol=("s3",), metadata=gone), "gone", "token")
