"""What Prefect's UI shows of a run: nothing outside a flow; inside, rounds as versions of one artifact."""

import httpx
from prefect.settings import PREFECT_API_URL

from quad_tasks import artifacts
from quad_tasks.records import Stage

INFO = {
    "kind": "bandit",
    "documents": 12,
    "active_documents": 8,
    "tokens": 3400,
    "accepted_documents": 5,
    "threshold": 0.0123,
    "arms": 2,
    "effective_arms": 4.5,
    "findings": [{"signature": "bandit_collapsed", "severity": "warning", "remedy": "Raise bandit.alpha."}],
}


def test_outside_a_flow_nothing_is_sent(monkeypatch):
    monkeypatch.setattr(artifacts, "create_markdown_artifact", lambda *a, **k: 1 / 0)
    monkeypatch.setattr(artifacts, "create_table_artifact", lambda *a, **k: 1 / 0)
    artifacts.show_round(Stage("run", 0, "", "", ""), 3, INFO, [{"arm": 1, "reward": 0.5, "n_targets": 9}])


def test_a_rounds_text_says_what_was_scored_and_found(monkeypatch):
    sent = {}
    monkeypatch.setattr(artifacts, "TaskRunContext", type("Inside", (), {"get": staticmethod(lambda: True)}))
    monkeypatch.setattr(artifacts, "create_markdown_artifact", lambda text, key, description: sent.update({key: text}))
    monkeypatch.setattr(artifacts, "create_table_artifact", lambda rows, key, description: sent.update({key: rows}))
    pulls = [{"arm": 1, "reward": 0.5, "n_targets": 9}, {"arm": 12, "reward": -0.25, "n_targets": 9}]
    artifacts.show_round(Stage("My.Run_1", 0, "", "", ""), 3, INFO, pulls)
    text = sent["my-run-1-rounds"]
    assert "12 documents scored (8 of them drawn" in text
    assert "τ = 0.0123" in text
    assert "**bandit_collapsed** (warning): Raise bandit.alpha." in text
    bars = [line for line in text.splitlines() if line.startswith("arm")]
    assert [line.count("█") for line in bars] == [24, 12]
    assert bars[0].index("|") == bars[1].index("|") > bars[1].index("█")
    assert sent["my-run-1-arms"] == pulls


def test_a_run_leaves_its_rounds_its_selection_and_its_report(small_run):
    found = httpx.post(f"{PREFECT_API_URL.value()}/artifacts/filter", json={"limit": 200}).json()
    keys = [artifact["key"] for artifact in found]
    assert {"small-rounds", "small-arms", "small-selection", "small-report"} <= set(keys)
    assert keys.count("small-rounds") >= 6
