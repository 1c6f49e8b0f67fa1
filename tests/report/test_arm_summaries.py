"""What the report says of arms and of their pulls is what the run committed."""

import json

import numpy as np
import pytest
from small_pool import stored

from quad_tasks.report.arm_summaries import QUANTILES, history_of_pulls
from quad_tasks.report.finished_run import read_random_draws, read_run
from quad_tasks.runtime.run import pinned_pool, pinned_reference
from quad_tasks.stages.bandit.ledger import read_scores
from quad_tasks.storage import rounds
from quad_tasks.storage.store import open_store


@pytest.fixture
def store(small_run):
    return open_store(small_run.workspace)


@pytest.fixture
def report(small_run, store):
    return json.loads(store.get(f"runs/{small_run.run}/report/report.json"))


def ranked_scores(config, store):
    """Scores of the stages that scored along the direction that ranked the last stage's documents."""
    used = stored(store, f"runs/{config.run}/stage-{config.training.stages - 1:02d}/selected.json")["direction"]
    opened = [rounds.list_rounds(store, config.run, n)[0].info.direction for n in range(config.training.stages)]
    scores = read_scores(store, config.run, config.training.stages)
    return scores.filter(np.asarray([opened[stage] == used for stage in scores["stage"].to_pylist()]))


def test_quantiles_are_those_of_the_ranked_random_draws(small_run, store, report):
    version, reference = pinned_pool(store, small_run.run), pinned_reference(store, small_run.run)
    scores = read_random_draws(read_run(store, small_run, version, reference))
    assert scores.num_rows < ranked_scores(small_run, store).num_rows
    arm, influence = scores["arm"].to_numpy(), scores["influence"].to_numpy()
    known = [row for row in report["arms"] if row["quantiles"]]
    assert {row["arm"] for row in known} == set(arm.tolist())
    for row in known:
        np.testing.assert_allclose(row["quantiles"], np.quantile(influence[arm == row["arm"]], QUANTILES))


def test_texts_of_an_arm_are_its_best_its_worst_and_the_nearest_to_the_threshold(small_run, store, report):
    scores = ranked_scores(small_run, store)
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
    history = history_of_pulls(store, small_run.run, small_run.training.stages)
    drawn = {}
    for number in range(small_run.training.stages):
        for committed in rounds.list_rounds(store, small_run.run, number):
            if committed.info.kind == "pilot":
                continue
            table = rounds.read_round_table(store, committed, "pulls")
            for arm, n in zip(table["arm"].to_pylist(), table["n_documents"].to_pylist(), strict=True):
                drawn[arm] = drawn.get(arm, 0) + n
    shown = {arm: sum(row) for arm, row in zip(history.arms, history.documents, strict=True)}
    assert shown == drawn
    assert history.arms_pulled == len(drawn)
    assert list(shown.values()) == sorted(shown.values(), reverse=True)
    pulled = [score for score in history.ucb_score if score]
    assert all(score.low <= score.median <= score.high for score in pulled)
