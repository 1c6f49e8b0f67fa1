"""Drift measured shard by shard is that of all assignments joined, and the process that asks for it holds arms."""

import itertools
import pickle

import numpy as np
import pytest
from assigned_pool import CLUSTERING, PowerCut, in_arm_order, in_turn, write_pool
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quad_tasks.core.clustering import kmeans
from quad_tasks.manifests.pool import Drift
from quad_tasks.stages.pool import find_duplicates
from quad_tasks.stages.pool import measure_drift as module
from quad_tasks.stages.pool.cluster import read_clustering
from quad_tasks.storage.keys import arm_spread_key, dealt_distances_folder, manifest_key
from quad_tasks.storage.manifest import write_manifest
from quad_tasks.storage.positions import read_table
from quad_tasks.storage.store import Store, open_store
from quad_tasks.storage.tensors import load_tensors, save_tensors

NUMBERS = itertools.count()
ARMS = 4


@pytest.fixture
def one_process(monkeypatch):
    for each in (module, find_duplicates):
        monkeypatch.setattr(each, "map_tasks", in_turn)


def train_on(store: Store, names: list[str]) -> None:
    """Say that the centroids were trained on some of the shards."""
    trained = read_clustering(store, CLUSTERING).model_copy(update={"shards": tuple(names)})
    store.delete(manifest_key(CLUSTERING))
    write_manifest(store, manifest_key(CLUSTERING), trained)


def joined(made: list[list[dict]], trained: int) -> tuple[Drift, np.ndarray, np.ndarray]:
    """Measure in one pass over all documents, where the spread was noted after the first `trained` shards alone."""
    then, rows = in_arm_order(made[:trained]), in_arm_order(made)
    arm_then, arm = (np.array([row["arm"] for row in some], np.int32) for some in (then, rows))
    distance_then, distance = (np.array([row["distance"] for row in some], np.float32) for some in (then, rows))
    radius = kmeans.arm_radii(distance_then, arm_then, ARMS, 0.9)
    new = np.array([int(row["shard"].removeprefix("shard")) >= trained for row in rows])
    beyond = int((new & (np.sqrt(distance) > radius[arm])).sum())
    before, now = np.bincount(arm_then, minlength=ARMS), np.bincount(arm, minlength=ARMS)
    shift = float(np.abs(now / now.sum() - before / before.sum()).sum() / 2)
    share = beyond / int(new.sum()) if new.any() else 0.0
    measured = Drift(
        new_documents=int(new.sum()),
        beyond_radius=share,
        occupancy_shift=shift,
        drift=max(shift, beyond / len(rows)),
    )
    return measured, radius, before


documents = st.tuples(
    st.integers(0, 60), st.integers(0, ARMS - 1), st.sampled_from([0.0, 1e-30, 0.5, 0.75, 1.0, 1.0000001, 3e38])
)
shards = st.lists(st.lists(documents, max_size=12), min_size=1, max_size=4).filter(lambda made: bool(made[0]))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shards, st.integers(1, 4), st.sampled_from([1, 5, 2**22]))
def test_drift_is_that_of_all_assignments_joined(one_process, shards, trained, range_documents):
    made = [[{"id": f"d{i}", "text": f"{i}", "arm": arm, "distance": d} for i, arm, d in one] for one in shards]
    store = open_store(f"memory://drift/{next(NUMBERS)}")
    names, trained = write_pool(store, made, ARMS), min(trained, len(made))
    train_on(store, names[:trained])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "RANGE_DOCUMENTS", range_documents)
        at_training = module.measure_drift.fn(store, "p", names[:trained], CLUSTERING)
        later = module.measure_drift.fn(store, "p", names, CLUSTERING)
    expected, radius, before = joined(made, trained)
    assert at_training == Drift(new_documents=0, beyond_radius=0.0, occupancy_shift=0.0, drift=0.0)
    assert later == expected
    joined_key = f"{arm_spread_key(CLUSTERING)}-joined"
    save_tensors(store, joined_key, {"radius": radius, "documents": before}, {})
    assert store.get(arm_spread_key(CLUSTERING)) == store.get(joined_key)


def test_a_spread_that_was_never_noted_is_that_of_now(one_process, tmp_path):
    """A clustering of an older release: its new documents lie beyond the radius as often as any."""
    made = [[{"id": f"{s}-{i}", "text": f"{s} {i}", "arm": 0, "distance": float(i)} for i in range(10)] for s in "ab"]
    store = open_store(str(tmp_path))
    names = write_pool(store, made, 1)
    train_on(store, names[:1])
    found = module.measure_drift.fn(store, "p", names, CLUSTERING)
    assert found == Drift(new_documents=10, beyond_radius=0.1, occupancy_shift=0.0, drift=0.05)
    assert load_tensors(store, arm_spread_key(CLUSTERING))[0]["radius"].tolist() == [np.sqrt(np.float32(8))]


@pytest.mark.parametrize("saved", [False, True])
def test_distances_that_an_interrupted_measurement_dealt_out_go_with_the_next_one(one_process, tmp_path, saved):
    """It ends right before the radii are saved, or right after."""
    store = open_store(str(tmp_path))
    names = write_pool(store, [[{"id": f"{i}", "text": f"{i}", "arm": 0, "distance": 1.0} for i in range(9)]], 1)

    def cut(*arguments):
        if saved:
            save_tensors(*arguments)
        raise PowerCut

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "save_tensors", cut)
        with pytest.raises(PowerCut):
            module.measure_drift.fn(store, "p", names, CLUSTERING)
    assert store.list(dealt_distances_folder(CLUSTERING))
    assert store.exists(arm_spread_key(CLUSTERING)) == saved
    module.measure_drift.fn(store, "p", names, CLUSTERING)
    assert not store.list(dealt_distances_folder(CLUSTERING))


def test_a_process_that_lost_the_pool_overwrites_nothing_that_its_successor_reads(one_process, tmp_path, monkeypatch):
    """Its list of shards has as many documents of each arm, at other distances."""
    made = [
        [{"id": f"{s}-{i}", "text": f"{s} {i}", "arm": 0, "distance": far} for i in range(10)]
        for s, far in ((0, 4.0), (1, 9.0))
    ]
    store = open_store(str(tmp_path))
    names = write_pool(store, made, 1)

    def call(task, items, *_, shared=()):
        if task is module.find_radii:
            with monkeypatch.context() as stale:
                stale.setattr(module, "find_radii", cut)
                stale.setattr(module, "map_tasks", in_turn)
                with pytest.raises(PowerCut):
                    module.measure_drift.fn(store, "p", names[1:], CLUSTERING)
        return in_turn(task, items, shared=shared)

    def cut(*_):
        raise PowerCut

    monkeypatch.setattr(module, "map_tasks", call)
    module.measure_drift.fn(store, "p", names[:1], CLUSTERING)
    assert load_tensors(store, arm_spread_key(CLUSTERING))[0]["radius"].tolist() == [2.0]


@pytest.mark.parametrize("noted", [False, True])
def test_the_process_that_asks_reads_no_assignments_and_is_told_of_arms_alone(monkeypatch, tmp_path, noted):
    """So it holds no array over the documents, whose arms, distances and shards took it 35 bytes each, joined."""
    rows = [[{"id": f"{s}-{i}", "text": f"{s} {i}", "arm": i % 3, "distance": 1.0} for i in range(500)] for s in "abc"]
    store, told = open_store(str(tmp_path)), []
    names = write_pool(store, rows, 3)
    if noted:
        save_tensors(store, arm_spread_key(CLUSTERING), {"radius": np.zeros(3), "documents": np.ones(3)}, {})
        train_on(store, names[:2])

    def on_a_worker(task, items, *_, shared=()):
        with pytest.MonkeyPatch.context() as worker:
            worker.setattr(module, "read_table", read_table)
            results = in_turn(task, items, shared=shared)
        told.extend(len(pickle.dumps(result)) for result in results)
        return results

    for each in (module, find_duplicates):
        monkeypatch.setattr(each, "map_tasks", on_a_worker)
    monkeypatch.setattr(module, "read_table", lambda *_: pytest.fail("the driving process reads documents"))
    assert module.measure_drift.fn(store, "p", names, CLUSTERING).new_documents == (500 if noted else 0)
    assert max(told) < 500
