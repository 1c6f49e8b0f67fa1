"""A pool that holds held-out text: none is scored, selected or drawn as control; it is counted, listed, a finding."""

import dataclasses
import json
import re

import numpy as np
import pytest
from small_pool import stored

from flows.select_data import select_data
from quad_tasks.commands.inspect import inspect_document
from quad_tasks.commands.verify import verify_run
from quad_tasks.core.evaluation.diagnosis import OverlapCounts
from quad_tasks.records import Stage
from quad_tasks.report.collect import read_findings
from quad_tasks.runtime.findings import UnwantedFinding
from quad_tasks.runtime.run import pinned_pool, pinned_reference
from quad_tasks.stages.bandit.ledger import load_arms, read_scores
from quad_tasks.stages.bandit.plan_round import plan_round
from quad_tasks.stages.bandit.round_settings import round_settings
from quad_tasks.stages.influence import find_overlap
from quad_tasks.storage.manifest import DigestMismatch
from quad_tasks.storage.positions import read_positions, read_table
from quad_tasks.storage.store import open_store

STAGES = 2


def normalised(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def texts_of(store, key) -> dict[str, list[str]]:
    return read_table(store, key).to_pydict()


@pytest.fixture
def store(leaking_run):
    return open_store(leaking_run.workspace)


@pytest.fixture
def measured(leaking_run, store):
    """Every text that the run measures itself on, normalised, with its domain and its id."""
    reference = pinned_reference(store, leaking_run.run)
    found = {}
    for part in ("measured", "heldout"):
        rows = read_table(store, f"{reference}/{part}.parquet").to_pylist()
        found |= {normalised(row["text"]): (row["domain"], row["id"]) for row in rows}
    return found


@pytest.fixture
def leaks(leaking_run, store, measured):
    """Ids of the pool's documents that hold a measured text as a whole, by exact search, with what they hold."""
    version = pinned_pool(store, leaking_run.run)
    n = stored(store, version)["documents"]
    rows = read_positions(store, version, np.arange(n), ["id", "text"])
    texts = zip(rows["id"].to_pylist(), (normalised(t) for t in rows["text"].to_pylist()), strict=True)
    return {name: named for name, text in texts for held, named in measured.items() if f" {held} " in f" {text} "}


def used_ids(config, store, name: str) -> set[str]:
    keys = [f"runs/{config.run}/stage-{number:02d}/{name}.parquet" for number in range(STAGES)]
    return {one for key in keys for one in read_table(store, key)["id"].to_pylist()}


def test_the_planted_pool_leaks_in_each_way(leaks):
    kinds = {name.split("-")[0] for name in leaks}
    assert kinds == {"leak", "hidden", "shouted"}
    assert len(leaks) >= 20


@pytest.mark.parametrize("name", ["selected", "random-0", "random-1"])
def test_nothing_is_trained_on_that_holds_measured_text(leaking_run, store, leaks, name):
    assert used_ids(leaking_run, store, name) & set(leaks) == set()


def test_nothing_is_scored_that_holds_measured_text(leaking_run, store, leaks):
    assert set(read_scores(store, leaking_run.run, STAGES)["id"].to_pylist()) & set(leaks) == set()


def test_what_is_set_aside_is_what_an_exact_search_finds_with_what_it_holds(leaking_run, store, leaks):
    rows = read_table(store, f"runs/{leaking_run.run}/overlap.parquet").to_pylist()
    assert {row["id"]: (row["domain"], row["heldout_id"]) for row in rows} == leaks
    assert all(row["share"] == 1 for row in rows)
    version = pinned_pool(store, leaking_run.run)
    positions = np.array([row["position"] for row in rows])
    assert read_positions(store, version, positions, ["id"])["id"].to_pylist() == [row["id"] for row in rows]
    manifest = stored(store, f"runs/{leaking_run.run}/overlap.json")
    assert (manifest["documents"], manifest["verbatim"]) == (len(leaks), len(leaks))


def test_documents_set_aside_are_counted_and_the_counts_balance(leaking_run, store, leaks):
    result = verify_run(leaking_run)
    assert result["set_aside"]["held_out_overlap"] == len(leaks)
    assert result["balanced"]
    report = json.loads(store.get(f"runs/{leaking_run.run}/report/report.json"))
    assert report["pool"]["set_aside"] == result["set_aside"]
    page = store.get(f"runs/{leaking_run.run}/report/index.html").decode()
    assert "held_out_overlap" in page
    assert "unaccounted for" not in page
    assert f"{result['documents_in']:,} documents in" in page


def test_inspect_names_the_held_out_document(leaking_run, leaks):
    for name in ("hidden-3", "shouted-0"):
        story, (domain, held) = inspect_document(leaking_run, name), leaks[name]
        assert story["verdict"] == "set aside"
        assert story["reason"].startswith(f"held_out_overlap: of '{held}' in '{domain}'")
        assert story["scores"] == []


def test_the_report_has_the_finding_and_how_much_it_is_about(leaking_run, store, leaks):
    (found,) = [f for f in read_findings(store, leaking_run.run) if f.signature == "held_out_overlap"]
    reference = stored(store, f"{pinned_reference(store, leaking_run.run)}/manifest.json")
    assert found.severity == "warning"
    assert found.evidence["documents"] == found.evidence["verbatim"] == len(leaks)
    assert found.evidence["share"] == pytest.approx(
        len(leaks) / stored(store, pinned_pool(store, leaking_run.run))["documents"]
    )
    assert found.evidence["reference_documents"] == reference["overlapping"] > 0


def test_the_direction_is_made_from_nothing_that_is_measured(leaking_run, store):
    reference = pinned_reference(store, leaking_run.run)
    own, kept_out = (
        {normalised(text) for text in texts_of(store, f"{reference}/{part}.parquet")["text"]}
        for part in ("reference", "measured")
    )
    assert own & kept_out == set()
    manifest = stored(store, f"{reference}/manifest.json")
    counts = manifest["reference"]["documents"] + manifest["measured"]["documents"] + manifest["overlapping"]
    assert counts == 24 + 12
    assert manifest["reference"]["sets"][0]["documents"] == manifest["reference"]["documents"]


def test_a_pull_passes_over_what_is_set_aside(leaking_run, store, leaks):
    """Every document of the pool is in the pilot: its chunks hold all but what is set aside.

    A pull covers its arm whole; an arm of which everything is set aside has nothing to draw.
    """
    version = pinned_pool(store, leaking_run.run)
    n = stored(store, version)["documents"]
    config = leaking_run.model_copy(
        update={"bandit": leaking_run.bandit.model_copy(update={"pilot_documents": n, "active_share": 0.0})}
    )
    # A pilot takes at most half of what may be scored: room for two pools lets it take this one whole
    settings = dataclasses.replace(round_settings(config, 0), scored_share=2.0)
    plan = plan_round.fn(store, Stage(leaking_run.run, 0, version, "", ""), 0, settings)
    aside = set(find_overlap.overlap_positions(store, leaking_run.run).tolist())
    arms = load_arms(store, version)
    members = [
        range(first, first + size)
        for first, size in zip(arms["position"].to_pylist(), arms["n_documents"].to_pylist(), strict=True)
    ]
    assert sum(map(len, members)) == n
    assert {draw.arm: draw.n_documents for draw in plan.draws} == {
        arm: len(positions) for arm, positions in enumerate(members) if not set(positions) <= aside
    }
    planned = sorted(position for chunk in plan.chunks for position in chunk)
    assert planned == sorted(set(range(n)) - aside)
    assert n - len(planned) == len(leaks)


def test_a_resume_finds_what_was_set_aside_and_may_end_at_it(leaking_run, store, monkeypatch):
    before = store.get(f"runs/{leaking_run.run}/overlap.json")
    monkeypatch.setattr(find_overlap, "_search_pool", None)  # it is not searched again
    stopping = leaking_run.diagnosis.model_copy(update={"stop_on": ("held_out_overlap",)})
    with pytest.raises(UnwantedFinding, match="held_out_overlap"):
        select_data(leaking_run.model_copy(update={"diagnosis": stopping}))
    assert store.get(f"runs/{leaking_run.run}/overlap.json") == before


def test_a_damaged_table_fails_verification(leaking_run, store):
    key = f"runs/{leaking_run.run}/overlap.parquet"
    body = store.get(key)
    try:
        store.put(key, body[:-1] + b"x")
        with pytest.raises(DigestMismatch, match=r"overlap\.parquet"):
            verify_run(leaking_run)
    finally:
        store.put(key, body)


def test_a_run_without_overlap_says_nothing(small_run):
    store = open_store(small_run.workspace)
    assert stored(store, f"runs/{small_run.run}/overlap.json")["documents"] == 0
    assert "held_out_overlap" not in verify_run(small_run)["set_aside"]
    counts = find_overlap.count_overlap(store, small_run.run, pinned_reference(store, small_run.run))
    assert find_overlap.overlap_findings(counts) == []


def test_nothing_is_looked_for_where_no_length_is_given(small_run):
    store = open_store(small_run.workspace)
    reference, version = pinned_reference(store, small_run.run), pinned_pool(store, small_run.run)
    assert find_overlap.find_overlap.fn(store, "unsearched", version, reference, None) == []
    assert find_overlap.read_overlap(store, "unsearched") is None
    assert len(find_overlap.overlap_positions(store, "unsearched")) == 0
    assert find_overlap.count_overlap(store, "unsearched", reference) == OverlapCounts()
