"""A refresh costs what is new, keeps what fits, starts over past the drift threshold, and publishes whole versions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from small_pool import (
    BAD_LINES,
    DOCUMENTS_PER_TOPIC,
    TOPICS,
    small_config,
    stored,
    topic_records,
    write_corpus,
    write_jsonl,
)

from flows import refresh_pool as flow
from flows.refresh_pool import refresh_pool
from flows.select_data import select_data
from quad_tasks.commands.inspect import inspect_document
from quad_tasks.commands.verify import verify_run
from quad_tasks.config.load import parse_config
from quad_tasks.config.schema import RunConfig
from quad_tasks.core.clustering import kmeans
from quad_tasks.core.lm.model import LlamaSize, fresh_llama
from quad_tasks.core.lm.tokenizer import train_tokenizer
from quad_tasks.runtime.run import pin_pool, pinned_pool
from quad_tasks.stages.pool import ingest, merge_layers
from quad_tasks.storage.input_files import InputError
from quad_tasks.storage.pool_versions import list_versions, read_version
from quad_tasks.storage.positions import column_vectors, read_positions, read_table
from quad_tasks.storage.store import open_store
from quad_tasks.storage.tables import read_array

KINDS = ("documents", "embeddings", "token_features", "assignments")
"""What is stored of each shard."""
NEW = 12
CHANGED = 55
VOLATILE = ("/times/", "/lease/", "/events/")


@dataclass(frozen=True)
class History:
    """A pool refreshed by `refresh_all`."""

    corpus: Path
    config: RunConfig
    versions: list[str]
    objects: list[dict[str, bytes]]

    def manifest(self, number: int) -> dict[str, Any]:
        return stored(open_store(self.config.workspace), self.versions[number])


def pool_config(corpus: Path, workspace: Path, **changes: object) -> RunConfig:
    return parse_config(small_config(corpus, str(workspace), **changes), "refresh")


def objects_of(config: RunConfig) -> dict[str, bytes]:
    store = open_store(config.workspace)
    return {key: store.get(key) for key in store.list() if not any(part in key for part in VOLATILE)}


def refresh_all(corpus: Path, config: RunConfig) -> tuple[list[str], list[dict[str, bytes]]]:
    """Refresh as it is, with a shard more, with one changed, with one deleted; return versions and objects of each."""
    versions, objects = [], []
    for change in (
        lambda: None,
        lambda: write_jsonl(corpus / "pool" / "more.jsonl", topic_records("kitchen", NEW, seed=5)),
        lambda: write_jsonl(corpus / "pool" / "harbour.jsonl", topic_records("harbour", CHANGED, seed=0)),
        lambda: (corpus / "pool" / "more.jsonl").unlink(),
    ):
        change()
        versions.append(refresh_pool(config))
        objects.append(objects_of(config))
    return versions, objects


@pytest.fixture(scope="module")
def history(dask_client, tmp_path_factory):
    directory = tmp_path_factory.mktemp("history")
    corpus = write_corpus(directory / "corpus")
    config = pool_config(corpus, directory / "workspace")
    return History(corpus, config, *refresh_all(corpus, config))


def shards_made(history: History, number: int, kind: str) -> list[str]:
    """Return the shards of which a refresh wrote something of a kind."""
    made = history.objects[number].keys() - history.objects[number - 1].keys()
    return sorted(key.rsplit("/", 1)[-1].split("-")[0] for key in made if f"/{kind}/" in key)


def test_a_new_shard_is_all_that_is_read_embedded_and_assigned(history):
    for kind in KINDS:
        assert shards_made(history, 1, kind) == ["more"]


def test_a_changed_shard_is_all_that_is_read_embedded_and_assigned(history):
    for kind in KINDS:
        assert shards_made(history, 2, kind) == ["harbour"]


def test_a_deleted_shard_costs_a_new_layout_only(history):
    for kind in KINDS:
        assert shards_made(history, 3, kind) == []


def test_a_refresh_keeps_model_embedder_and_centroids(history):
    for kept in ("model", "embedder", "clustering", "recipe"):
        assert len({history.manifest(n)[kept] for n in range(4)}) == 1


def test_each_version_holds_the_documents_of_its_shards_and_no_others(history):
    store = open_store(history.config.workspace)
    topics = 3 * DOCUMENTS_PER_TOPIC
    expected = [
        topics,
        topics + NEW,
        topics + NEW - DOCUMENTS_PER_TOPIC + CHANGED,
        topics - DOCUMENTS_PER_TOPIC + CHANGED,
    ]
    for n, documents in enumerate(expected):
        rows = read_positions(store, history.versions[n], np.arange(documents), ["id", "arm", "order"])
        assert len(set(rows["id"].to_pylist())) == documents == history.manifest(n)["documents"]
        sort = np.lexsort((rows["order"].to_numpy(), rows["arm"].to_numpy()))
        assert sort.tolist() == list(range(documents))


def test_a_refresh_with_a_new_shard_writes_its_documents_alone(history):
    first, second = history.manifest(0), history.manifest(1)
    assert second["parts"][: len(first["parts"])] == first["parts"]
    assert [layer["rows"] for layer in second["layers"]] == [first["documents"], NEW]
    assert len(history.manifest(2)["layers"]) == 1  # documents of the first layer are gone


def test_a_documents_token_features_are_those_of_every_version_that_holds_it(history):
    store = open_store(history.config.workspace)
    by_id = []
    for n in range(4):
        table = pa.concat_tables(
            [read_table(store, part["key"], ["id", "token_features"]) for part in history.manifest(n)["parts"]]
        )
        features = column_vectors(table["token_features"])
        by_id.append({i: row.tobytes() for i, row in zip(table["id"].to_pylist(), features, strict=True)})
    assert len({history.manifest(n)["token_features"] for n in range(4)}) == 1
    for later in by_id[1:]:
        common = by_id[0].keys() & later.keys()
        assert common
        assert {i: by_id[0][i] for i in common} == {i: later[i] for i in common}


def test_another_checkpoint_of_the_same_tokenizer_has_a_version_of_its_own(dask_client, tmp_path):
    corpus, versions = write_corpus(tmp_path / "corpus"), []
    tokenizer = train_tokenizer([" ".join(TOPICS.values())], 320)
    for seed in (1, 2):
        source = tmp_path / f"checkpoint-{seed}"
        fresh_llama(LlamaSize(16, 1, 2, 1, 32), len(tokenizer), 64, seed).save_pretrained(source)
        tokenizer.save_pretrained(source)
        config = pool_config(corpus, tmp_path / "workspace", model__source=str(source))
        versions.append(read_version(open_store(config.workspace), refresh_pool(config)))
    first, second = versions
    assert first.shards == second.shards
    assert first.clustering == second.clustering
    assert first.model != second.model
    assert first.token_features != second.token_features


def test_every_document_is_in_the_arm_of_its_nearest_centroid(history):
    store = open_store(history.config.workspace)
    centroids = read_array(store, f"{history.manifest(1)['clustering']}/centroids.npy")
    for part in history.manifest(1)["parts"]:
        table = read_table(store, part["key"], ["arm", "embedding"])
        vectors = column_vectors(table["embedding"]).astype(np.float64)
        distance = np.square(vectors[:, None] - centroids[None].astype(np.float64)).sum(axis=2)
        own = distance[np.arange(len(vectors)), table["arm"].to_numpy()]
        assert np.allclose(own, distance.min(axis=1), atol=1e-6)


def test_what_is_set_aside_is_counted_in_every_version(history):
    for n in range(4):
        assert sum(history.manifest(n)["set_aside"].values()) == len(BAD_LINES) + 1


def test_older_versions_stay_as_they_were(history):
    for before, after in zip(history.objects, history.objects[1:], strict=False):
        changed = {key for key in before if after.get(key) != before[key]}
        assert changed == set()


def test_drift_is_the_share_of_new_documents_outside_and_of_those_that_moved(history):
    store = open_store(history.config.workspace)
    first, second = (
        {
            column: np.concatenate([read_table(store, p["key"])[column].to_numpy() for p in m["parts"]])
            for column in ("arm", "shard")
        }
        | {"x": np.concatenate([column_vectors(read_table(store, p["key"])["embedding"]) for p in m["parts"]])}
        for m in (history.manifest(0), history.manifest(1))
    )
    centroids = read_array(store, f"{history.manifest(0)['clustering']}/centroids.npy")
    k = len(centroids)
    squared = {id(v): np.square(v["x"] - centroids[v["arm"]]).sum(axis=1) for v in (first, second)}
    radius = kmeans.arm_radii(squared[id(first)], first["arm"], k, 0.9)
    new = np.char.startswith(second["shard"].astype(str), "more-")
    outside = new & (np.sqrt(squared[id(second)]) > radius[second["arm"]])
    then, now = (np.bincount(v["arm"], minlength=k) / len(v["arm"]) for v in (first, second))
    drift = history.manifest(1)["drift"]
    assert drift["new_documents"] == NEW == new.sum()
    assert drift["beyond_radius"] == pytest.approx(outside.sum() / NEW)
    assert drift["occupancy_shift"] == pytest.approx(np.abs(then - now).sum() / 2)
    assert drift["drift"] == pytest.approx(max(drift["occupancy_shift"], outside.sum() / len(new)))
    assert history.manifest(0)["drift"]["drift"] == 0


def test_unchanged_inputs_give_the_same_version_and_write_nothing(history):
    before = objects_of(history.config)
    assert refresh_pool(history.config) == history.versions[3]
    assert objects_of(history.config) == before


def test_a_run_keeps_the_version_it_began_with(history):
    pin_pool(open_store(history.config.workspace), history.config.run, history.versions[0])
    refresh_pool(history.config)
    assert pinned_pool(open_store(history.config.workspace), history.config.run) == history.versions[0]


@pytest.mark.slow
def test_the_same_history_gives_the_same_bytes_in_another_workspace(history, tmp_path):
    config = pool_config(write_corpus(history.corpus), tmp_path / "workspace")
    refresh_all(history.corpus, config)
    again = objects_of(config)
    assert {key for key in again if "/arms/" in key}
    assert again == {key: data for key, data in history.objects[-1].items() if not key.startswith("runs/")}


@pytest.mark.slow
def test_a_run_over_layers_chooses_what_one_over_a_whole_layout_does(dask_client, tmp_path, monkeypatch):
    chosen = []
    for name, most in (("layers", 0.25), ("whole", 0.0)):
        monkeypatch.setattr(merge_layers, "MOST_LAYERED", most)
        corpus = write_corpus(tmp_path / "corpus")
        (corpus / "pool" / "more.jsonl").unlink(missing_ok=True)
        config = pool_config(corpus, tmp_path / name, training__stages=1, training__frontier=[])
        refresh_pool(config)
        write_jsonl(corpus / "pool" / "more.jsonl", topic_records("kitchen", NEW, seed=5))
        select_data(config)
        store = open_store(config.workspace)
        assert len(read_version(store, pinned_pool(store, config.run)).layers) == (2 if most else 1)
        assert verify_run(config)["balanced"]
        assert {inspect_document(config, f"kitchen-5-{i}")["arm"]["arm"] for i in range(2)} <= set(range(6))
        tables = [key for key in store.list() if key.endswith(".parquet") and ("/rounds/" in key or "/part-" in key)]
        chosen.append({key: store.get(key) for key in tables if key.startswith(("runs/", "selections/"))})
    assert any("selection" in key for key in chosen[0])
    assert chosen[0] == chosen[1]


@pytest.mark.slow
def test_an_interrupted_refresh_leaves_the_last_version_current(dask_client, tmp_path, monkeypatch):
    corpus = write_corpus(tmp_path / "corpus")
    config = pool_config(corpus, tmp_path / "workspace")
    first = refresh_pool(config)
    write_jsonl(corpus / "pool" / "more.jsonl", topic_records("kitchen", NEW, seed=5))

    def fail(*arguments: object) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(flow, "lay_out_arms", fail)
        with pytest.raises(RuntimeError, match="power cut"):
            refresh_pool(config)
    store = open_store(config.workspace)
    assert [key for key, _ in list_versions(store, "pool")] == [first]
    second = refresh_pool(config)
    assert [key for key, _ in list_versions(store, "pool")] == [first, second]


@pytest.mark.slow
def test_drift_past_the_threshold_fits_embedder_and_centroids_anew(dask_client, tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    config = pool_config(corpus, tmp_path / "workspace")
    store = open_store(config.workspace)
    first = stored(store, refresh_pool(config))
    numbers = [{"id": f"n{i}", "text": f"{i * 7919} {i * i} {i**3} 0x{i:06x} {i}/{i + 1}"} for i in range(90)]
    write_jsonl(corpus / "pool" / "numbers.jsonl", numbers)
    second = stored(store, refresh_pool(config))
    assert second["model"] == first["model"]
    assert second["embedder"] != first["embedder"]
    assert second["clustering"] != first["clustering"]
    assert second["documents"] == first["documents"] + 90
    assert second["drift"]["drift"] == 0


def test_a_shard_without_a_usable_document_is_refused_by_name(dask_client, tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    config = pool_config(corpus, tmp_path / "workspace")
    write_jsonl(corpus / "pool" / "bad.jsonl", [{"id": "a", "other": "no text"}])
    with pytest.raises(InputError, match=r"bad\.jsonl, found none in 1 records"):
        refresh_pool(config)


@pytest.mark.slow
def test_another_recipe_starts_a_history_of_its_own(dask_client, tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    first, second = (
        stored(open_store(str(tmp_path / "workspace")), refresh_pool(config))
        for config in (
            pool_config(corpus, tmp_path / "workspace"),
            pool_config(corpus, tmp_path / "workspace", clustering__arms=4),
        )
    )
    assert (first["arms"], second["arms"]) == (6, 4)
    assert first["recipe"] != second["recipe"]


def test_a_pool_of_spans_holds_the_documents_of_its_files_whole(dask_client, tmp_path, monkeypatch):
    corpus = write_corpus(tmp_path / "corpus")
    weather = corpus / "pool" / "weather.jsonl"
    weather.write_bytes(weather.read_bytes() + b"{\n" * 3000)  # whole spans without a document
    versions = []
    for span_bytes in (2**28, 4000):
        monkeypatch.setattr(ingest, "SPAN_BYTES", span_bytes)
        config = pool_config(corpus, tmp_path / str(span_bytes))
        store = open_store(config.workspace)
        version = read_version(store, refresh_pool(config))
        rows = [row for part in version.parts for row in read_table(store, part.key, ["id", "text"]).to_pylist()]
        versions.append((version, {row["id"]: row["text"] for row in rows}))
        assert refresh_pool(config) == list_versions(store, config.pool.name)[-1][0]  # nothing is new
    (whole, its), (cut, theirs) = versions
    assert (len(whole.shards), len(cut.shards) > 12) == (3, True)
    assert its == theirs
    assert cut.set_aside == whole.set_aside
