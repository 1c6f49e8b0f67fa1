"""What a stage chooses: mixtures for the frontier, variety when it is asked for."""

import json

import numpy as np
from small_pool import small_config, stored

from quad_tasks.config.load import parse_config
from quad_tasks.records import Stage
from quad_tasks.runtime.run import pinned_pool
from quad_tasks.stages.selection.select_documents import select_documents, stage_selection
from quad_tasks.storage import rounds
from quad_tasks.storage.positions import column_vectors, read_positions, read_table
from quad_tasks.storage.store import open_store


def test_the_frontier_holds_every_share_that_was_trained(small_run):
    store = open_store(small_run.workspace)
    stage = json.loads(store.get(f"runs/{small_run.run}/report/report.json"))["stages"][0]
    assert [point["general_share"] for point in stage["frontier"]] == [0.05, 0.5, 1.0]
    assert stage["frontier"][0]["reference_loss"] == stage["selected"]["reference_loss"]
    assert stage["frontier"][2]["reference_loss"] == stage["random"]["reference_loss"]
    others = [bits for name, bits in stage["random"]["domains"].items() if name != "harbour"]
    assert stage["frontier"][2]["other_domains"] == np.mean(others)
    prefix = f"runs/{small_run.run}/stage-00"
    targeted, mixed = (
        set(read_table(store, f"{prefix}/{n}.parquet")["id"].to_pylist()) for n in ("selected", "general-0.5")
    )
    assert targeted & mixed
    assert mixed - targeted
    assert stored(store, f"{prefix}/general-0.5.json")["tokens"] <= small_run.selection.budget_tokens // 2


def test_variety_is_paid_for_in_influence(small_run, corpus):
    """The likest pair chosen is less alike, the mean influence no higher."""
    store, version = open_store(small_run.workspace), pinned_pool(open_store(small_run.workspace), small_run.run)
    last = rounds.list_rounds(store, small_run.run, 0)[-1]
    likeness, influence = [], []
    for number, redundancy in enumerate((0.0, 50.0)):
        selection = {"budget_tokens": 1500, "near_duplicate_cosine": None, "redundancy": redundancy, "general_share": 0}
        body = small_config(corpus, small_run.workspace, selection=selection)
        config = parse_config({**body, "run": f"varied-{number}"}, "varied")
        stage = Stage(config.run, 0, version, "", last.info.direction)
        for manifest in rounds.list_rounds(store, small_run.run, 0):
            tables = {name: rounds.read_round_table(store, manifest, name) for name in manifest.tables}
            rounds.commit_round(store, config.run, 0, manifest.round, tables, manifest.info)
        chosen = read_table(store, f"{select_documents.fn(store, stage, stage_selection(config, 0))}.parquet")
        rows = read_positions(store, version, chosen["position"].to_numpy(), ["embedding", "arm"])
        vectors, arm = column_vectors(rows["embedding"]), rows["arm"].to_numpy()
        cosine = np.where((arm[:, None] == arm) & ~np.eye(len(arm), dtype=bool), vectors @ vectors.T, -1)
        likest = cosine.max(axis=1)
        likeness.append(likest[likest > -1].mean())  # a document alone in its arm resembles none
        influence.append(np.nanmean(chosen["influence"].to_numpy()))
    assert likeness[1] < likeness[0]
    assert influence[1] <= influence[0]
