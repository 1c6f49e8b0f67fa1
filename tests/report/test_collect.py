"""The report holds every key it promises, its numbers are what the run committed, and nothing is left unset."""

import json
from dataclasses import asdict

import pytest
from pydantic import BaseModel

from quad_tasks.report.collect import read_findings, write_report
from quad_tasks.report.model import Report
from quad_tasks.report.report_json import FORMAT, parse_report
from quad_tasks.runtime.events import read_peaks
from quad_tasks.runtime.run import pinned_pool, pinned_reference
from quad_tasks.stages.bandit.ledger import read_ranking, read_scores
from quad_tasks.storage import rounds
from quad_tasks.storage.store import open_store

KEYS = {
    "format", "run", "created", "quad_version", "config_digest", "config", "pool", "scored", "rejected", "unpulled",
    "selected", "tokenizer", "model", "reference", "threshold", "stages", "arms", "pulls", "influence", "examples",
    "map", "diversity", "prediction", "findings", "provenance", "time_s", "peak_memory_bytes", "peak_gpu_memory_bytes",
    "cost",
}  # fmt: skip
STAGE_KEYS = {
    "stage", "direction", "threshold", "budget_tokens", "prediction", "seeds", "before", "selected", "random", "gain",
    "frontier", "pilot", "scored_by", "findings", "rounds", "refit_accepted",
}  # fmt: skip
UNSET = {"manifest", "uuid", "mean_influence", "mean_influence_selected", "best", "borderline", "worst", "arm"}
"""Fields that a part leaves out where it has no such thing: an arm's texts name no arm, a single reference no mean."""


@pytest.fixture
def body(small_run):
    return open_store(small_run.workspace).get(f"runs/{small_run.run}/report/report.json")


def unset_fields(part, path="report"):
    """List the fields of a report that nobody set."""
    if isinstance(part, BaseModel):
        for name in type(part).model_fields:
            if name not in part.model_fields_set and name not in UNSET:
                yield f"{path}.{name}"
            yield from unset_fields(getattr(part, name), f"{path}.{name}")
    elif isinstance(part, dict | tuple):
        for item in part.values() if isinstance(part, dict) else part:
            yield from unset_fields(item, path)


def test_the_report_holds_every_key_and_its_format(body):
    report = json.loads(body)
    assert set(report) == KEYS == set(Report.model_fields)
    assert report["format"] == FORMAT
    assert all(set(stage) == STAGE_KEYS for stage in report["stages"])


def test_every_field_was_set(body):
    assert sorted(set(unset_fields(parse_report(body)))) == []


def test_cost_adds_up_what_the_rounds_say(small_run, body):
    cost = parse_report(body).cost
    store = open_store(small_run.workspace)
    said = [one.info.cost for stage in range(2) for one in rounds.list_rounds(store, small_run.run, stage)]
    assert cost.scoring == pytest.approx(sum(one.scoring for one in said))
    assert (cost.reading, cost.calibration) == (0, 0)
    assert cost.share == pytest.approx(cost.scoring / cost.pool)


def test_what_the_report_compares_with_the_threshold_is_along_the_direction_that_ranked(small_run, body):
    """The small run's gate keeps the earlier ranking: the last stage's own scores compare with nothing shown."""
    store, report = open_store(small_run.workspace), parse_report(body)
    used = read_ranking(store, small_run.run, 1)
    assert used.direction != rounds.read_round(store, small_run.run, 1, 0).info.direction
    assert report.threshold == used.threshold == rounds.read_round(store, small_run.run, 0, 0).info.threshold
    first = read_scores(store, small_run.run, 1)
    influence = dict(zip(first["id"].to_pylist(), first["influence"].to_pylist(), strict=True))
    shown = [*report.examples.best, *report.examples.borderline, *report.examples.worst]
    shown += [text for arm in report.arms if arm.texts for text in (arm.texts.best, arm.texts.worst) if text]
    assert all(influence[one.id] == one.influence for one in shown)
    known = [value for value in report.map.influence if value is not None]
    assert sorted(known) == pytest.approx(sorted(influence.values()), abs=1e-12)
    assert sum(report.influence.scored) <= first.num_rows
    assert all(arm.quantiles is None or min(influence.values()) <= arm.quantiles[0] for arm in report.arms)


def test_documents_and_tokens_of_the_parts_are_those_of_the_whole(body):
    report = parse_report(body)
    for amount, by_source in ((report.pool, report.pool.sources), (report.selected, report.selected.by_source)):
        assert sum(one.documents for one in by_source.values()) == amount.documents
        assert sum(one.tokens for one in by_source.values()) == amount.tokens
    assert sum(report.selected.by_arm.values()) == report.selected.tokens
    assert report.scored.share == pytest.approx(report.scored.documents / report.pool.documents)


def test_a_report_written_again_differs_in_its_date_alone(small_run, body):
    store, run = open_store(small_run.workspace), small_run.run
    write_report.fn(store, small_run, pinned_pool(store, run), pinned_reference(store, run))
    again = open_store(small_run.workspace).get(f"runs/{small_run.run}/report/report.json")
    first, second = json.loads(body), json.loads(again)
    assert first | {"created": ""} == second | {"created": ""}
    assert second["peak_memory_bytes"] == read_peaks(store, run)[0] > 2**27


def test_findings_are_read_back_as_the_report_has_them(small_run, body):
    found = read_findings(open_store(small_run.workspace), small_run.run)
    assert [asdict(finding) for finding in found] == json.loads(body)["findings"]
