"""What the report says of arms, rounds and provenance is what the run committed."""

import json

import numpy as np
import pytest

from quad_tasks.arm_summaries import QUANTILES, course_of_pulls
from quad_tasks.publish import read_scores
from quad_tasks.storage import rounds
from quad_tasks.storage.manifest import read_manifest
from quad_tasks.storage.store import open_store


@pytest.fixture
def store(small_run):
    return open_store(small_run.workspace)


@pytest.fixture
def report(small_run, store):
    return json.loads(store.get(f"runs/{small_run.run}/report/report.json"))


def last_scores(config, store):
    scores = read_scores(store, config.run, config.training.stages)
    return scores.filter(np.asarray(scores["stage"].to_numpy() == config.training.stages - 1))


def test_quantiles_are_those_of_what_the_last_stage_scored(small_run, store, report):
    scores = last_scores(small_run, store)
    arm, influence = scores["arm"].to_numpy(), scores["influence"].to_numpy()
    known = [row for row in report["arms"] if row["quantiles"]]
    assert {row["arm"] for row in known} == set(arm.tolist())
    for row in known:
        np.testing.assert_allclose(row["quantiles"], np.quantile(influence[arm == row["arm"]], QUANTILES))


def test_texts_of_an_arm_are_its_best_its_worst_and_the_nearest_to_the_threshold(small_run, store, report):
    scores = last_scores(small_run, store)
    arm, influence = scores["arm"].to_numpy(), scores["influence"].to_numpy()
    carded = [row for row in report["arms"] if row["texts"]]
    assert carded
    for row in carded:
        own = np.sort(influence[arm == row["arm"]])
        texts = row["texts"]
        assert texts["best"]["influence"] == own[-1]
        assert all(text["text"] for text in texts.values())
        if len(own) > 1:
            assert texts["worst"]["influence"] == own[0]
        if len(own) > 2:
            between = own[1:-1]
            nearest = between[np.argmin(np.abs(between - report["threshold"]))]
            assert texts["borderline"]["influence"] == pytest.approx(nearest)


def test_the_picture_of_pulls_holds_every_document_drawn(small_run, store):
    course = course_of_pulls(store, small_run)
    drawn = {}
    for number in range(small_run.training.stages):
        for committed in rounds.list_rounds(store, small_run.run, number):
            if committed.info["kind"] == "pilot":
                continue
            table = rounds.read_round_table(store, committed, "pulls")
            for arm, n in zip(table["arm"].to_pylist(), table["n_documents"].to_pylist(), strict=True):
                drawn[arm] = drawn.get(arm, 0) + n
    shown = {arm: sum(row) for arm, row in zip(course["arms"], course["documents"], strict=True)}
    assert shown == drawn
    assert course["arms_pulled"] == len(drawn)
    assert list(shown.values()) == sorted(shown.values(), reverse=True)
    pulled = [score for score in course["ucb_score"] if score]
    assert all(score["low"] <= score["median"] <= score["high"] for score in pulled)


def test_provenance_names_the_selection_and_every_input(small_run, store, report):
    found = report["provenance"]
    manifest = read_manifest(store, f"runs/{small_run.run}/selection/manifest.json")
    assert found["selection"] == {"uuid": manifest["uuid"], "digest": manifest["digest"]}
    assert found["inputs"]["files"] == 3
    assert sorted(uri.rsplit("/", 1)[-1] for uri in found["inputs"]["sha256"]) == [
        "harbour.jsonl",
        "kitchen.jsonl",
        "weather.jsonl",
    ]
    assert [stage["stage"] for stage in found["stages"]] == [0, 1]
    assert found["packages"]["torch"] != "not installed"
