"""`quad inspect`: a document's verdict, rank, influence and place are those of the ledger and of its shard."""

import numpy as np
import pytest
from small_pool import stored

from quad_tasks.commands.inspect import UnknownDocument, inspect_document
from quad_tasks.runtime.run import pinned_pool
from quad_tasks.stages.bandit.ledger import read_chosen, read_scores
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
