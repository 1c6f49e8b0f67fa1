"""`quad inspect`: a document's verdict, rank, influence and place are those of the ledger and of its shard."""

import numpy as np
import pyarrow as pa
import pytest
from small_pool import stored

from quad_tasks.commands.inspect import UnknownDocument, _why_left, _why_taken, inspect_document
from quad_tasks.config.schema import SelectionConfig
from quad_tasks.manifests.run import Choice
from quad_tasks.runtime.run import pinned_pool
from quad_tasks.stages.bandit.ledger import read_choice_table, read_chosen, read_ranking, read_scores
from quad_tasks.storage.keys import choice_key
from quad_tasks.storage.positions import column_vectors, read_positions
from quad_tasks.storage.rounds import list_rounds
from quad_tasks.storage.store import open_store


@pytest.fixture
def store(small_run):
    return open_store(small_run.workspace)


def test_a_selected_document_has_its_rank_and_the_influence_it_was_chosen_for(small_run, store):
    chosen = read_chosen(store, small_run.run, 1).to_pylist()
    for rank in (1, len(chosen)):
        row = chosen[rank - 1]
        story = inspect_document(small_run, row["id"])
        assert (story["verdict"], story["rank"], story["stage"]) == ("selected", rank, 0)
        assert story["arm"]["arm"] == row["arm"]
        if row["influence"] is None:
            assert "general share" in story["reason"]
        elif not row["scored"]:
            assert story["predicted_influence"] == pytest.approx(row["influence"], rel=1e-9)


def test_a_scored_document_tells_its_score_and_the_rounds_of_its_arm(small_run, store):
    scores = read_scores(store, small_run.run, small_run.training.stages)
    chosen = set(read_chosen(store, small_run.run, small_run.training.stages)["id"].to_pylist())
    left = [row for row in scores.to_pylist()[::-1] if row["id"] not in chosen]
    assert {inspect_document(small_run, row["id"])["verdict"] for row in (left[0], left[-1])} == {"rejected"}
    used = stored(store, f"runs/{small_run.run}/stage-01/selected.json")["direction"]
    stages = [n for n in (0, 1) if list_rounds(store, small_run.run, n)[0].info.direction == used]
    row = next(row for row in left if row["stage"] in stages)  # scored along the direction that ranked it
    story = inspect_document(small_run, row["id"])
    assert story["verdict"] == "rejected"
    score = story["scores"][-1]
    assert (score["stage"], score["round"], score["influence"]) == (row["stage"], row["round"], row["influence"])
    assert {pull["arm"] for pull in story["rounds"]} <= {row["arm"]}
    assert ("not above τ" in story["reason"]) == (row["influence"] <= score["threshold"]) or "near-dup" in story[
        "reason"
    ]


def test_after_a_gate_that_kept_the_earlier_ranking_that_one_is_told_of(small_run, store):
    """What a document was predicted at, and the τ it had to pass, are those of the direction that ranked it."""
    fitted, used = list_rounds(store, small_run.run, 1)[0].info, read_ranking(store, small_run.run, 1)
    assert fitted.direction != used.direction, "the small run's gate keeps the earlier ranking"
    assert used.threshold == list_rounds(store, small_run.run, 0)[0].info.threshold != fitted.threshold
    taken = read_choice_table(store, choice_key(small_run.run, 1, "selected")).to_pylist()
    predicted = next(row for row in taken if row["influence"] is not None and not row["scored"])
    story = inspect_document(small_run, predicted["id"])
    assert story["predicted_influence"] == pytest.approx(predicted["influence"], rel=1e-9)
    chosen = set(read_chosen(store, small_run.run, 2)["id"].to_pylist())
    scores = read_scores(store, small_run.run, 1).to_pylist()
    between = sorted((fitted.threshold, used.threshold))
    row = next(row for row in scores if row["id"] not in chosen and not between[0] < row["influence"] <= between[1])
    story = inspect_document(small_run, row["id"])
    assert f"τ = {used.threshold:.4g}" in story["reason"] or "near-duplicate" in story["reason"]


CHOSEN = pa.table(
    {"n_tokens": [40, 30, 20, 10], "influence": [3.0, None, 9.0, None], "scored": [True, False, True, False]}
)


@pytest.mark.parametrize(
    ("mode", "rank", "reason"),
    [
        ("cluster", 0, "measured influence 3 above τ = 2, within the budget"),
        ("cluster", 1, "not scored: the mean of its arm is above τ = 2, within the budget"),
        ("instance", 1, "drawn for the general share"),
        ("predicted", 2, "drawn for the general share"),
        ("cluster", 3, "drawn for the general share"),
    ],
)
def test_what_was_taken_tells_whether_influence_or_the_general_share_took_it(mode, rank, reason):
    """Of 100 tokens 75 are taken by influence: the third and fourth document, however good, were drawn at random."""
    choice = Choice(budget_tokens=100, documents=4, tokens=100, sha256="", general_share=0.25)
    assert _why_taken(mode, choice, CHOSEN, rank, 2.0).startswith(reason)


@pytest.mark.parametrize(
    ("settings", "measured", "reason"),
    [
        ({}, 2.5, "influence 2.5 above τ = 2, but the budget was full (least taken: 3)"),
        ({"per_arm_share": 0.1}, 4.0, "its arm's share of it was full (selection.per_arm_share)"),
        ({"redundancy": 1.0}, 4.0, "too like better ones (selection.redundancy)"),
        ({"mode": "cluster"}, None, "not scored: the mean of its arm is not above τ"),
        ({"mode": "instance"}, None, "never drawn; mode 'instance' ranks what was scored"),
        ({}, None, "not scored, and not predicted"),
        ({}, 1.0, "influence 1 not above τ = 2"),
    ],
)
def test_what_was_left_names_the_cap_that_left_it(settings, measured, reason):
    selection = SelectionConfig.model_validate({"budget_tokens": 100, **settings})
    assert reason in _why_left(selection, measured, None, 2.0, CHOSEN)


def test_a_place_is_the_line_of_the_users_file(small_run, store, corpus):
    story = inspect_document(small_run, "harbour-0-7")
    assert story["where"]["input"] == f"{corpus}/pool/harbour.jsonl"
    assert story["where"]["line"] == 8
    assert story["source"] == "harbour"


def test_the_nearest_documents_are_those_of_highest_cosine_in_the_arm(small_run, store):
    story = inspect_document(small_run, "weather-0-5")
    version = pinned_pool(open_store(small_run.workspace), small_run.run)
    arm = story["arm"]
    start = story["position"] - arm["row"]
    rows = read_positions(store, version, np.arange(start, start + arm["documents"]), ["id", "embedding"])
    cosines = column_vectors(rows["embedding"]) @ column_vectors(rows["embedding"])[arm["row"]]
    cosines[arm["row"]] = -2
    if len(cosines) > 1:
        assert story["nearest_documents"][0]["cosine"] == pytest.approx(float(cosines.max()), abs=1e-4)


@pytest.mark.parametrize(
    ("document", "reason"),
    [("kitchen-copy", "duplicate_text: of 'kitchen-0-3'"), ("short", "too_short"), ("no-text", "missing_text")],
)
def test_what_was_set_aside_tells_why(small_run, document, reason):
    story = inspect_document(small_run, document)
    assert story["verdict"] == "set aside"
    assert story["reason"].startswith(reason)


def test_an_unknown_document_is_named(small_run):
    with pytest.raises(UnknownDocument, match="'nobody': expected an id of the pool"):
        inspect_document(small_run, "nobody")
