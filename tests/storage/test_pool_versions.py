"""A pool's versions are numbered from 1, whoever commits them; the same tables make one version, a number never two."""

import pytest
from small_pool import pool_version

from quad_tasks.storage import pool_versions
from quad_tasks.storage.manifest import encode_manifest
from quad_tasks.storage.pool_versions import commit_version, find_version, list_versions, version_key
from quad_tasks.storage.store import open_store

FIRST, SECOND, THIRD = (f"pools/novels/v000{number}/manifest.json" for number in (1, 2, 3))


def version(pool, tables, **changes):
    return pool_version([], pool=pool, tables=tables, **changes)


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


def test_a_version_key_has_four_digits_and_more_when_they_run_out():
    assert version_key("novels", 1) == FIRST
    assert version_key("novels", 12345) == "pools/novels/v12345/manifest.json"


def test_versions_are_numbered_from_one_in_the_order_they_are_committed(store):
    assert [commit_version(store, version("novels", name)) for name in ("a", "b")] == [FIRST, SECOND]
    assert [(key, body.tables) for key, body in list_versions(store, "novels")] == [(FIRST, "a"), (SECOND, "b")]


def test_the_same_tables_are_one_version(store):
    assert commit_version(store, version("novels", "a")) == FIRST
    assert commit_version(store, version("novels", "b")) == SECOND
    assert commit_version(store, version("novels", "a")) == FIRST
    assert not store.exists(THIRD)


def test_each_pool_counts_its_own_versions(store):
    commit_version(store, version("novels", "a"))
    assert commit_version(store, version("poems", "a")) == "pools/poems/v0001/manifest.json"


def test_a_version_is_found_by_its_tables_and_only_in_its_pool(store):
    commit_version(store, version("novels", "a"))
    assert find_version(store, "novels", "a") == FIRST
    assert find_version(store, "novels", "b") is None
    assert find_version(store, "poems", "a") is None


def test_a_pool_without_a_version_has_an_empty_history(store):
    assert list_versions(store, "novels") == []


def test_a_version_deleted_by_hand_hides_no_later_one_and_its_number_is_not_given_again(store):
    for name in ("a", "b", "c"):
        commit_version(store, version("novels", name))
    store.delete(FIRST)
    assert [key for key, _ in list_versions(store, "novels")] == [SECOND, THIRD]
    store.delete(THIRD)
    assert commit_version(store, version("novels", "d")) == "pools/novels/v0004/manifest.json"


def test_a_commit_killed_before_its_manifest_gets_the_same_number_again(store, monkeypatch):
    def die(own_store, key, body):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pool_versions, "write_manifest", die)
        with pytest.raises(KeyboardInterrupt):
            commit_version(store, version("novels", "a"))
    assert commit_version(store, version("novels", "a")) == FIRST


@pytest.mark.parametrize(("theirs", "expected"), [("b", SECOND), ("a", FIRST)])
def test_who_loses_the_race_for_a_number_takes_the_next_or_the_winners(store, monkeypatch, theirs, expected):
    """Another refresh commits version 1 between this one's look and its own commit."""
    write = pool_versions.write_manifest

    def beaten(own_store, key, body):
        monkeypatch.setattr(pool_versions, "write_manifest", write)
        store.put(FIRST, encode_manifest(version("novels", theirs, documents=7)))
        return write(own_store, key, body)

    monkeypatch.setattr(pool_versions, "write_manifest", beaten)
    assert commit_version(store, version("novels", "a")) == expected
    assert [body.tables for _, body in list_versions(store, "novels")] == ([theirs, "a"] if theirs == "b" else ["a"])
