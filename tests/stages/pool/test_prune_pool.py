"""Old versions of a pool go with what they alone were made from; what a run keeps to, and every number, stays."""

import json

import pytest
from small_pool import pool_version
from typer.testing import CliRunner

from flows.cli.app import app
from quad_tasks.manifests.pool import ClusteringManifest, EmbedderManifest, InputFile, Part, ShardManifest
from quad_tasks.manifests.run import PinnedPool
from quad_tasks.stages.pool import prune_pool as module
from quad_tasks.stages.pool.prune_pool import prune_pool
from quad_tasks.storage.keys import version_key
from quad_tasks.storage.manifest import write_manifest
from quad_tasks.storage.pool_versions import commit_version, list_versions, read_version
from quad_tasks.storage.store import StorageError, Store, StoreKeyError, open_store

POOL = "pools/p"
EMBEDDER, CLUSTERING = f"{POOL}/embedders/e", f"{POOL}/clusterings/c"


@pytest.fixture
def store(tmp_path) -> Store:
    """A pool of one clustering whose three versions have a shard more each, as refreshes leave it."""
    store = open_store(str(tmp_path))
    write_manifest(store, f"{EMBEDDER}/manifest.json", EmbedderManifest(embedding={}, model="models/m"))
    clustering = ClusteringManifest(embedder=EMBEDDER, clustering={}, shards=("s1",), arms=1, sha256="")
    write_manifest(store, f"{CLUSTERING}/manifest.json", clustering)
    store.put(f"{CLUSTERING}/centroids.npy", b"centroids")
    for number in (1, 2, 3):
        add_version(store, number)
    return store


def add_version(store: Store, number: int) -> str:
    """Commit the version of shards 1 to `number`."""
    shard, tables = f"s{number}", f"{POOL}/tables/t{number}"
    manifest = ShardManifest(
        shard=shard, input=InputFile(uri=shard, sha256="", size_bytes=1), fields={}, tokenizer_sha256="",
        documents_sha256="", set_aside_sha256="", documents=1, tokens=1, bytes=1, set_aside={},
    )  # fmt: skip
    write_manifest(store, f"{POOL}/shards/{shard}.json", manifest)
    for key in (f"documents/{shard}.parquet", f"set_aside/{shard}.parquet", f"embeddings/e/{shard}.npy"):
        store.put(f"{POOL}/{key}", b"12345")
    store.put(f"{tables}/arms/part-00000.parquet", b"1234567")
    store.put(f"{tables}/arms.parquet", b"123")
    shards = tuple(f"s{n}" for n in range(1, number + 1))
    files = {f"{POOL}/embeddings/e/{name}.npy": "" for name in shards} | {f"{tables}/arms.parquet": ""}
    version = pool_version(
        [Part(key=f"{tables}/arms/part-00000.parquet", rows=number, sha256="")],
        tables=tables, shards=shards, clustering=CLUSTERING, embedder=EMBEDDER, files=files,
    )  # fmt: skip
    return commit_version(store, version)


def pin(store: Store, run: str, number: int) -> None:
    pinned = PinnedPool(version=version_key("p", number), digest_of_version="")
    write_manifest(store, f"runs/{run}/pool.json", pinned)


def data(store: Store) -> set[str]:
    return {key for key in store.list(POOL) if "/lease/" not in key and "/numbers/" not in key}


def test_only_the_last_version_and_those_of_runs_stay_with_all_they_were_made_from(store):
    pin(store, "old", 1)
    before = data(store)
    result = prune_pool(store.uri, "p")
    gone = {
        f"{POOL}/v0002/manifest.json",
        f"{POOL}/tables/t2/arms.parquet",
        f"{POOL}/tables/t2/arms/part-00000.parquet",
    }
    assert before - data(store) == gone
    assert result["objects"] == len(gone)
    assert [row["kept_for"] for row in result["versions"]] == ["run old", "pruned", "last"]
    assert [key for key, _ in list_versions(store, "p")] == [version_key("p", 1), version_key("p", 3)]


def test_what_a_pruned_version_alone_was_made_from_goes_too(store):
    pin(store, "early", 1)
    store.delete(f"{POOL}/v0003/manifest.json")  # by hand
    add = add_version(store, 4)
    assert add == version_key("p", 4)
    store.put(f"{POOL}/v0002/states-0123/block-000000.npy", b"states")
    changes = {"shards": ("s1", "s4"), "tables": "x", "files": {}}
    version = read_version(store, version_key("p", 4)).model_copy(update=changes)
    last = commit_version(store, version)
    prune_pool(store.uri, "p")
    assert [key for key, _ in list_versions(store, "p")] == [version_key("p", 1), last]
    assert not any("/s2." in key or "/v0002/" in key for key in data(store))
    assert f"{POOL}/documents/s4.parquet" in data(store)


def test_a_pruned_number_is_never_given_again_and_says_that_it_was_pruned(store):
    prune_pool(store.uri, "p")
    with pytest.raises(StoreKeyError, match=r"v0001/manifest\.json' in .*found that it was pruned"):
        read_version(store, version_key("p", 1))
    assert add_version(store, 1) == version_key("p", 4)


def test_an_interrupted_pruning_hides_the_version_and_is_gone_on_with(store, monkeypatch):
    delete, left = Store.delete, []

    def die(own, key):
        if left:
            raise KeyboardInterrupt
        left.append(key)
        delete(own, key)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete", die)
        with pytest.raises(KeyboardInterrupt):
            prune_pool(store.uri, "p")
    assert [key for key, _ in list_versions(store, "p")] == [version_key("p", 3)]
    prune_pool(store.uri, "p")
    assert not any("/t1/" in key or "/t2/" in key or "/v0001/" in key for key in data(store))
    assert prune_pool(store.uri, "p")["objects"] == 0


def test_nothing_goes_where_it_cannot_be_known_what_a_run_keeps_to(store):
    store.put("runs/old/pool.json", b"half a mani")
    before = data(store)
    with pytest.raises(module.StorageError, match=r"runs/old/pool\.json"):
        prune_pool(store.uri, "p")
    assert data(store) == before


def test_the_command_counts_first_and_names_a_pool_that_is_not_there(store):
    before = data(store)
    asked = ["pool", "prune", "p", "--workspace", store.uri, "--keep", "2", "--dry-run", "--json"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.stderr
    body = json.loads(result.stdout)
    assert body["objects"] == 3
    assert body["size_bytes"] > 10
    assert data(store) == before
    result = CliRunner().invoke(app, ["pool", "prune", "q", "--workspace", store.uri])
    assert result.exit_code == 2
    assert "pool 'q'" in result.stderr


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), TimeoutError("slow")])
def test_nothing_is_pruned_where_the_runs_cannot_be_listed(store, monkeypatch, error):
    monkeypatch.setattr("quad_tasks.storage.errors.sleep", lambda _seconds: None)
    pin(store, "first", 1)
    before = store.list()

    class Refusing:
        def ls(self, path: str, detail: bool) -> list[str]:
            raise error

    monkeypatch.setattr("quad_tasks.runtime.run.connect", lambda uri: (Refusing(), uri))
    with pytest.raises(StorageError, match="/runs: "):
        prune_pool(store.uri, "p")
    assert [key for key in store.list() if "/lease/" not in key] == before
