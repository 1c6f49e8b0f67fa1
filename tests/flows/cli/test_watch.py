"""`quad status`, `quad events`, `quad metrics`: what they print, and when a watch ends."""

import json

import pytest
from typer.testing import CliRunner

from flows.cli import watch
from flows.cli.app import app
from flows.cli.printing import status_view
from quad_tasks.commands.metrics import render_gauges

STAGE = {
    "stage": 0, "rounds": 3, "scored_documents": 1200, "scored_tokens": 340_000, "accepted_documents": 40,
    "accepted_tokens": 9000, "cost_share": 0.0512, "gain_left": None, "selected": True, "trained": False,
}  # fmt: skip
STATUS = {
    "run": "novels", "pool": "pools/p/v0001/manifest.json", "stages": [STAGE], "published": False, "reported": False,
    "driven_by": None, "last_event": "2026-01-02T03:04:05+00:00",
}  # fmt: skip


def invoke(*arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_status_is_a_table_of_stages_and_says_what_to_do(capsys):
    with status_view(False, False) as show:
        show(STATUS)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["0", "3", "1,200", "340,000", "40", "9,000", "5.1%", "–", "yes", "no"] in lines
    assert ["driven", "by", "nobody;", "`quad", "resume", "novels`", "goes", "on", "with", "it"] in lines


def test_a_watch_off_a_terminal_prints_what_has_changed_a_line_each(capsys):
    with status_view(True, True) as show:
        for rounds in (1, 1, 2):
            show({**STATUS, "stages": [{**STAGE, "rounds": rounds}]})
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [status["stages"][0]["rounds"] for status in found] == [1, 2]


def test_a_watch_of_a_finished_run_ends_at_once(small_run, monkeypatch):
    monkeypatch.setattr(watch.time, "sleep", lambda s: pytest.fail("waited for a finished run"))
    output = invoke("status", "small", "--workspace", small_run.workspace, "--watch", "--json")
    assert json.loads(output)["reported"]


def test_a_watch_goes_on_until_the_report_is_there_or_it_is_interrupted(small_run, monkeypatch):
    from quad_tasks.runtime import status as module

    seen = iter([False, False, True])
    monkeypatch.setattr(module, "run_status", lambda store, config: {**STATUS, "reported": next(seen)})
    monkeypatch.setattr(watch.time, "sleep", lambda s: None)
    command = ("status", "small", "--workspace", small_run.workspace, "--watch", "--json")
    assert [json.loads(line)["reported"] for line in invoke(*command).splitlines()] == [False, True]

    def interrupt(seconds):
        raise KeyboardInterrupt

    seen = iter([False] * 9)
    monkeypatch.setattr(watch.time, "sleep", interrupt)
    assert not json.loads(invoke(*command))["reported"]


def test_events_are_lines_of_json_that_tell_a_run_from_start_to_end(small_run):
    lines = invoke("events", "small", "--workspace", small_run.workspace).splitlines()
    events = [json.loads(line) for line in lines]
    kinds = [event["event"] for event in events]
    assert (kinds[0], kinds[-1]) == ("run_started", "run_ended")
    assert kinds.index("documents_selected") < kinds.index("selection_published") < kinds.index("report_written")
    rounds = [(event["stage"], event["round"]) for event in events if event["event"] == "round_committed"]
    assert rounds == sorted(rounds)
    assert len(rounds) > 2
    assert {event["step"] for event in events if event["event"] == "step_ended"} >= {"ingest", "fit", "bandit", "train"}


def test_metrics_without_a_port_are_printed_once(small_run):
    assert invoke("metrics", "--workspace", small_run.workspace) == render_gauges(small_run.workspace)
