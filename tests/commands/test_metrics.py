"""Gauges say what the ledger says, in a form that Prometheus reads; a broken run hides no other."""

import json
import re
from pathlib import Path
from urllib.request import urlopen

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from quad_tasks.commands.metrics import OF_RUNS, OF_STAGES, READABLE, RunGauges, render_gauges, serve_gauges
from quad_tasks.storage.keys import run_record_key
from quad_tasks.storage.rounds import list_rounds
from quad_tasks.storage.store import open_store

MONITORING = Path(__file__).resolve().parents[2] / "infra" / "monitoring"
NAMES = {READABLE, *OF_RUNS, *(f"quad_{name}" for name in OF_STAGES)}


def samples(text):
    """Return every value of an exposition by name and labels."""
    families = text_string_to_metric_families(text)
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def test_gauges_of_a_run_are_the_sums_of_its_rounds(small_run):
    found = samples(render_gauges(small_run.workspace))
    for stage in range(2):
        infos = [one.info for one in list_rounds(open_store(small_run.workspace), "small", stage)]
        labels = ("small", str(stage))
        assert found["quad_rounds", *labels] == len(infos)
        assert found["quad_scored_documents", *labels] == sum(info.documents for info in infos)
        assert found["quad_accepted_tokens", *labels] == sum(info.accepted_tokens for info in infos)
        assert found["quad_cost_share", *labels] == pytest.approx(infos[-1].cost.share)
        assert found["quad_trained", *labels] == 1
    assert found["quad_reported", "small"] == found["quad_run_readable", "small"] == 1
    assert found["quad_driven", "small"] == 0
    assert found["quad_budget_tokens", "small"] == small_run.selection.budget_tokens
    assert found["quad_last_event_timestamp_seconds", "small"] > 1.7e9


def test_a_run_that_cannot_be_read_hides_no_other(small_run, tmp_path):
    store = open_store(str(tmp_path))
    store.put(run_record_key("broken"), b"{")
    store.put("runs/of-a-refresh/times/1.json", b"{}")
    store.put(run_record_key("small"), open_store(small_run.workspace).get(run_record_key("small")))
    found = samples(render_gauges(str(tmp_path)))
    assert (found["quad_run_readable", "broken"], found["quad_run_readable", "small"]) == (0, 1)
    assert ("quad_run_readable", "of-a-refresh") not in found
    assert (found["quad_rounds", "small", "0"], found["quad_reported", "small"]) == (0, 0)
    assert ("quad_cost_share", "small", "0") not in found
    assert samples(render_gauges(str(tmp_path), ["small"])).keys().isdisjoint({("quad_run_readable", "broken")})


def test_a_finished_run_is_read_once(small_run, monkeypatch):
    gauges = RunGauges(small_run.workspace)
    first = [family.samples for family in gauges.collect()]
    monkeypatch.setattr("quad_tasks.commands.metrics.load_run", lambda *a: 1 / 0)
    assert [family.samples for family in gauges.collect()] == first


def test_they_are_served_at_a_port_of_loopback(small_run):
    server, thread = serve_gauges(small_run.workspace, ["small"], "127.0.0.1", 0)
    try:
        with urlopen(f"http://127.0.0.1:{server.server_port}/metrics") as answer:
            assert samples(answer.read().decode()) == samples(render_gauges(small_run.workspace, ["small"]))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_dashboard_and_alerts_ask_for_gauges_that_there_are():
    board = json.loads((MONITORING / "dashboard.json").read_text())
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    named = {name for expression in asked for name in re.findall(r"\bquad_\w+", expression)}
    assert named <= NAMES
    assert {"quad_scored_documents", "quad_accepted_tokens", "quad_cost_share", "quad_gain_left"} <= named
    scrape = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
    assert scrape["rule_files"] == ["alerts.yaml"]
