"""Keys are part of what an older workspace means: each is written out here as it has always been stored."""

import pytest

from quad_tasks.storage.keys import (
    assignments_key,
    documents_key,
    embeddings_key,
    set_aside_key,
    shard_manifest_key,
    shard_token_features_key,
    token_features_folder,
)
from quad_tasks.storage.store import check_key

STORED = {
    documents_key("novels", "sea-0a1b"): "pools/novels/documents/sea-0a1b.parquet",
    set_aside_key("novels", "sea-0a1b"): "pools/novels/set_aside/sea-0a1b.parquet",
    shard_manifest_key("novels", "sea-0a1b"): "pools/novels/shards/sea-0a1b.json",
    token_features_folder("novels", "0123456789abcdef"): "pools/novels/token_features/0123456789ab",
    shard_token_features_key("pools/novels/token_features/0123", "sea-0a1b"): (
        "pools/novels/token_features/0123/shards/sea-0a1b.npy"
    ),
    embeddings_key("novels", "embedders/9f8e", "sea-0a1b"): "pools/novels/embeddings/9f8e/sea-0a1b.npy",
    assignments_key("pools/novels/clusterings/77", "sea-0a1b"): (
        "pools/novels/clusterings/77/assignments/sea-0a1b.parquet"
    ),
}


@pytest.mark.parametrize(("made", "stored"), STORED.items())
def test_a_key_is_the_one_that_older_workspaces_hold(made, stored):
    assert made == stored
    check_key(made)


def test_no_two_kinds_of_objects_share_a_key():
    assert len(STORED) == 7


def test_embeddings_of_two_embedders_stand_apart():
    first, second = (embeddings_key("p", f"embedders/{name}", "s") for name in ("one", "two"))
    assert first != second
