"""What a stage chooses: mixtures for the frontier, variety when it is asked for."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from small_pool import read_column, small_config, stored

from quad_tasks.config.load import parse_config
from quad_tasks.config.schema import ConfigError
from quad_tasks.core.seeds import Stream, make_generator
from quad_tasks.core.selection import in_memory_selection
from quad_tasks.core.selection.prediction import fit_predictor, predict
from quad_tasks.records import Stage
from quad_tasks.runtime.run import pinned_pool
from quad_tasks.stages.bandit import pool_prediction
from quad_tasks.stages.bandit.ledger import mark_at_random, read_chosen, read_cursors
from quad_tasks.stages.bandit.predict import FeatureSource, _read_features
from quad_tasks.stages.influence.find_overlap import overlap_positions
from quad_tasks.stages.selection import fill_pool_budget
from quad_tasks.stages.selection.drop_near_duplicates import NearDuplicateSearch
from quad_tasks.stages.selection.random_control import draw_random_control
from quad_tasks.stages.selection.select_documents import select_documents, select_mixture, stage_selection
from quad_tasks.storage import rounds
from quad_tasks.storage.keys import choice_key, choice_manifest_key, choice_table_key, rankings_folder
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


def scores_of(config, stage):
    """What was scored along a stage's direction, whether at random, and its threshold."""
    store, tables = open_store(config.workspace), []
    for number in range(stage.number + 1):
        for one in rounds.list_rounds(store, config.run, number):
            if one.info.direction == stage.direction:
                tables.append(rounds.read_round_table(store, one, "scores"))
                threshold = one.info.threshold
    cursor = read_cursors(store, config.run, stage.version, stage.number + 1, stage.direction)
    return mark_at_random(store, stage.version, pa.concat_tables(tables), cursor), threshold


def chosen_in_memory(config, stage, how, general_share):
    """Choose from arrays over the whole pool: positions, their influence, and near-duplicates left out."""
    store, version = open_store(config.workspace), stage.version
    scores, threshold = scores_of(config, stage)
    position, measured, scored_arm = (scores[name].to_numpy() for name in ("position", "influence", "arm"))
    arm, n_tokens = (read_column(store, version, name) for name in ("arm", "n_tokens"))
    n, n_arms = len(arm), int(max(arm.max(), scored_arm.max())) + 1
    taken = read_chosen(store, config.run, stage.number)["position"].to_numpy()
    rows = np.setdiff1d(np.arange(n), np.union1d(taken, overlap_positions(store, config.run)))
    influence, scored = np.full(n, np.nan), np.isin(np.arange(n), position)
    influence[position] = measured
    at_random = scores["at_random"].to_numpy(zero_copy_only=False)
    if how.settings.mode == "predicted":
        known, arms = _read_features(store, version, position, FeatureSource(tokens=how.features != "embedding"))
        generator = make_generator(how.seed, Stream.SELECTION_REGRESSION, stage.number)
        predictor = fit_predictor(
            known.values_NC, measured, arms, config.clustering.arms, generator, known.groups, at_random
        )
        best = np.full(n_arms, np.inf)
        best[np.unique(scored_arm)] = -np.inf
        np.maximum.at(best, scored_arm, measured)
        asked = rows[~scored[rows] & (best[arm[rows]] > threshold)]
        known, arms = _read_features(store, version, asked, FeatureSource(tokens=how.features != "embedding"))
        influence[asked] = predict(predictor, known.values_NC, arms)
    means = np.full(n_arms, np.nan)
    for k in np.unique(scored_arm[at_random]):
        means[k] = (
            np.bincount(scored_arm[at_random], weights=measured[at_random])[k] / (scored_arm[at_random] == k).sum()
        )
    search = NearDuplicateSearch(store, version, how.settings, taken)
    chosen = rows[
        in_memory_selection.select(
            in_memory_selection.Candidates(
                rows, arm[rows], n_tokens[rows].astype(np.int64), influence[rows], scored[rows]
            ),
            how.budget_tokens - int(n_tokens[taken].sum()),
            in_memory_selection.SelectionSettings(
                threshold, how.settings.mode, how.settings.per_arm_share, general_share, how.settings.redundancy
            ),
            arm_mean_K=means,
            generator=make_generator(how.seed, Stream.GENERAL_SHARE, stage.number),
            find_near_duplicates=search.find,
            read_embeddings=lambda p: column_vectors(read_positions(store, version, p, ["embedding"])["embedding"]),
        )
    ]
    return chosen, influence[chosen], sorted(search.dropped)


def stage_of(config, number):
    store = open_store(config.workspace)
    direction = rounds.list_rounds(store, config.run, number)[-1].info.direction
    return Stage(config.run, number, pinned_pool(store, config.run), "", direction)


def objects_of(choice):
    return [choice_table_key(choice), choice_manifest_key(choice)]


SETTINGS = [
    ("predicted", {}, 0.3),
    ("predicted", {"per_arm_share": 0.4, "near_duplicate_cosine": 0.9}, 0.0),
    ("predicted", {"redundancy": 2.0, "near_duplicate_cosine": 0.95}, 0.2),
    ("instance", {"per_arm_share": 0.6}, 0.5),
    ("cluster", {"near_duplicate_cosine": 0.97}, 0.05),
    ("cluster", {"redundancy": 1.0}, 0.0),
]


@pytest.mark.parametrize(("size", "offered"), [(2**17, 2**16), (50, 2**16), (7, -1)])
def test_a_choice_is_that_of_the_pool_in_memory_whatever_the_blocks(leaking_run, monkeypatch, size, offered):
    monkeypatch.setattr(pool_prediction, "BLOCK_DOCUMENTS", size)
    monkeypatch.setattr(fill_pool_budget, "OFFERED_TOKENS", offered)
    store, used = open_store(leaking_run.workspace), 0
    for number, (mode, changes, share) in enumerate(SETTINGS):
        stage, how = stage_of(leaking_run, number % 2), stage_selection(leaking_run, number % 2)
        how = replace(how, settings=how.settings.model_copy(update={"mode": mode, **changes}))
        name = f"general-{share:g}"
        key = select_mixture.fn(store, stage, how, share)
        assert key == choice_key(leaking_run.run, stage.number, name)
        chosen, influence, dropped = chosen_in_memory(leaking_run, stage, how, share)
        table = read_table(store, f"{key}.parquet")
        assert table["position"].to_numpy().tolist() == chosen.tolist()
        found = table["influence"].to_numpy(zero_copy_only=False)
        np.testing.assert_allclose(found.astype(float), influence, rtol=1e-9)
        assert stored(store, f"{key}.json")["near_duplicates"] == dropped
        assert store.list(rankings_folder(leaking_run.run, stage.number, name)) == []
        for name in objects_of(key):
            store.delete(name)
        used += len(chosen)
    assert used > 100


def test_a_control_is_that_of_the_pool_in_memory(leaking_run, monkeypatch):
    monkeypatch.setattr(pool_prediction, "BLOCK_DOCUMENTS", 23)
    store, stage, how = open_store(leaking_run.workspace), stage_of(leaking_run, 1), stage_selection(leaking_run, 1)
    taken = read_chosen(store, leaking_run.run, 1)["position"].to_numpy()
    n_tokens = read_column(store, stage.version, "n_tokens").astype(np.int64)
    rows = np.setdiff1d(np.arange(len(n_tokens)), np.union1d(taken, overlap_positions(store, leaking_run.run)))
    search = NearDuplicateSearch(store, stage.version, how.settings, taken)
    budget = stored(store, f"{choice_key(leaking_run.run, 1, 'selected')}.json")["tokens"]
    for seed in (0, 7):
        key = draw_random_control.fn(store, stage, how, seed)
        generator = make_generator(how.seed, Stream.RANDOM_CONTROL, 1, seed)
        expected = in_memory_selection.random_control(n_tokens, budget, generator, rows, search.find)
        assert read_table(store, f"{key}.parquet")["position"].to_pylist() == expected.tolist()


def test_a_choice_that_was_interrupted_goes_on_with_the_same_bytes(leaking_run, monkeypatch):
    """Killed after its rankings were written, and after its table was."""
    store, stage, how = open_store(leaking_run.workspace), stage_of(leaking_run, 1), stage_selection(leaking_run, 1)
    monkeypatch.setattr(pool_prediction, "BLOCK_DOCUMENTS", 50)
    key, folder = choice_key(leaking_run.run, 1, "general-0.25"), rankings_folder(leaking_run.run, 1, "general-0.25")
    once = {}
    module = "quad_tasks.stages.selection.select_documents"
    for stopped in ("read_leading", "write_chosen", "write_manifest", None):
        with pytest.MonkeyPatch.context() as patch:
            if stopped == "read_leading":
                patch.setattr(f"{module}.fill_rankings", lambda *_: 1 / 0)
            elif stopped:
                patch.setattr(f"{module}.{stopped}", lambda *_: 1 / 0)
            if stopped:
                with pytest.raises(ZeroDivisionError):
                    select_mixture.fn(store, stage, how, 0.25)
                assert not store.exists(f"{key}.json")
                continue
        select_mixture.fn(store, stage, how, 0.25)
        once = {name: store.get(name) for name in objects_of(key)}
    for name in once:
        store.delete(name)
    select_mixture.fn(store, stage, how, 0.25)
    assert {name: store.get(name) for name in objects_of(key)} == once
    store.put(f"{folder}/block-000000.npy", b"left by a driver that was killed")
    select_mixture.fn(store, stage, how, 0.25)
    assert store.list(folder) == []
    for name in once:
        store.delete(name)


def test_a_stage_that_selects_nothing_is_refused_before_it_trains_and_so_is_its_resume(small_run, corpus):
    """Every score lies below the threshold, and no share is drawn whatever its influence."""
    store, version = open_store(small_run.workspace), pinned_pool(open_store(small_run.workspace), small_run.run)
    changes = {"selection__general_share": 0, "bandit__threshold": 1e9}
    config = parse_config(small_config(corpus, small_run.workspace, run="nothing", **changes), "nothing")
    first = rounds.list_rounds(store, small_run.run, 0)[0]
    tables = {name: rounds.read_round_table(store, first, name) for name in first.tables}
    rounds.commit_round(store, config.run, 0, 0, tables, first.info.model_copy(update={"threshold": 1e9}))
    stage = Stage(config.run, 0, version, "", first.info.direction)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"bandit\.threshold: .* τ = 1e\+09 .* 750 tokens of stage 0, found none"):
            select_documents.fn(store, stage, stage_selection(config, 0))
