"""A pool version comes back from storage as it was written."""

from small_pool import pool_version

from quad_tasks.manifests.pool import Part
from quad_tasks.storage.pool_versions import commit_version, find_version, read_version
from quad_tasks.storage.store import open_store


def test_a_version_comes_back_as_it_was_committed_and_is_found_by_its_tables(tmp_path):
    store = open_store(str(tmp_path))
    version = pool_version([Part(key="part", rows=3, sha256="s")], set_aside={"too_short": 1})
    key = commit_version(store, version)
    assert read_version(store, key) == version
    assert find_version(store, "p", "tables") == key == commit_version(store, version)
