"""What each manifest names, by hand, and the walk over a run made of a few."""

from small_pool import pool_version, round_info

from quad_tasks.manifests.pool import InputFile, Part, ShardManifest
from quad_tasks.manifests.run import Choice, PinnedPool
from quad_tasks.storage.manifest import read_digest, write_manifest
from quad_tasks.storage.manifest_tree import named_by, walk_run
from quad_tasks.storage.rounds import commit_round
from quad_tasks.storage.store import open_store

DIGEST = "0" * 64


def test_a_shards_manifest_names_both_its_tables():
    shard = ShardManifest(
        shard="s", input=InputFile(uri="s.jsonl", sha256=DIGEST, size_bytes=1), fields={}, tokenizer_sha256=DIGEST,
        documents_sha256="a", set_aside_sha256="b", documents=1, tokens=1, bytes=1, set_aside={},
    )  # fmt: skip
    links, files = named_by("pools/p/shards/s.json", shard)
    assert links == {}
    assert files == {"pools/p/documents/s.parquet": "a", "pools/p/set_aside/s.parquet": "b"}


def test_a_walk_reaches_what_manifests_name_and_reports_what_is_gone_by_its_key(local_backend):
    store = open_store(local_backend.uri)
    version = pool_version([Part(key="tables/part", rows=1, sha256="c")])
    write_manifest(store, "pools/p/v0001/manifest.json", version)
    pinned = PinnedPool(version="pools/p/v0001/manifest.json", digest_of_version=DIGEST)
    write_manifest(store, "runs/r/pool.json", pinned)
    choice = Choice(budget_tokens=1, documents=1, tokens=1, sha256="d", direction="factors/gone")
    write_manifest(store, "runs/r/stage-00/selected.json", choice)
    commit_round(store, "r", 0, 0, {}, round_info())
    tree = walk_run(store, "r")
    assert set(tree.manifests) == {
        "runs/r/pool.json",
        "runs/r/stage-00/selected.json",
        "runs/r/stage-00/round-00000/manifest.json",
        "pools/p/v0001/manifest.json",
    }
    assert tree.manifests["runs/r/pool.json"] == read_digest(store, "runs/r/pool.json")
    assert tree.files == {"runs/r/stage-00/selected.parquet": "d", "tables/part": "c"}
    assert set(tree.problems) == {f"{name}/manifest.json" for name in ("factors/gone", "model", "clustering")}
    assert "not found: 'factors/gone/manifest.json'" in tree.problems["factors/gone/manifest.json"]
    assert tree.foundation("r") == tree.manifests
