"""What Prefect's UI shows of a run: nothing outside a flow; inside, rounds as versions of one artifact."""

import base64
import re
from xml.etree import ElementTree

import httpx
import pytest
from prefect.settings import PREFECT_API_URL

from quad_tasks import artifacts
from quad_tasks.artifact_plots import bars
from quad_tasks.records import Stage

SVG = "{http://www.w3.org/2000/svg}"

INFO = {
    "kind": "bandit",
    "documents": 12,
    "active_documents": 8,
    "tokens": 3400,
    "accepted_documents": 5,
    "threshold": 0.0123,
    "arms": 2,
    "effective_arms": 4.5,
    "findings": [
        {
            "signature": "bandit_collapsed",
            "severity": "warning",
            "evidence": {"effective_arms": 1.5},
            "remedy": "Raise bandit.alpha.",
        }
    ],
}


def test_outside_a_flow_nothing_is_sent(monkeypatch):
    monkeypatch.setattr(artifacts, "create_markdown_artifact", lambda *a, **k: 1 / 0)
    monkeypatch.setattr(artifacts, "create_table_artifact", lambda *a, **k: 1 / 0)
    artifacts.show_round(Stage("run", 0, "", "", ""), 3, INFO, [{"arm": 1, "reward": 0.5, "n_targets": 9}])


@pytest.fixture
def sent(monkeypatch):
    """What is sent, by key, as if inside a flow."""
    sent = {}
    monkeypatch.setattr(artifacts, "TaskRunContext", type("Inside", (), {"get": staticmethod(lambda: True)}))
    monkeypatch.setattr(artifacts, "create_markdown_artifact", lambda text, key, description: sent.update({key: text}))
    monkeypatch.setattr(artifacts, "create_table_artifact", lambda rows, key, description: sent.update({key: rows}))
    return sent


def drawings(markdown: str) -> list[ElementTree.Element]:
    """Decode the images of a Markdown text."""
    found = re.findall(r"!\[[^\]]*\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)", markdown)
    return [ElementTree.fromstring(base64.b64decode(data)) for data in found]


def points(drawn: ElementTree.Element, name: str) -> list[tuple[float, float]]:
    """Return the corners of a named part's first path, in points."""
    (part,) = (element for element in drawn.iter(f"{SVG}g") if element.get("id") == name)
    numbers = re.findall(r"[ML] (\S+) (\S+)", next(part.iter(f"{SVG}path")).get("d"))
    return [(float(x), float(y)) for x, y in numbers]


def ends(drawn: ElementTree.Element, name: str) -> tuple[float, float]:
    """Return a bar's left and right end."""
    across = [x for x, _ in points(drawn, name)]
    return min(across), max(across)


def labels(drawn: ElementTree.Element) -> set[str | None]:
    """Return all text of a drawing."""
    return {element.text for element in drawn.iter(f"{SVG}text")}


def test_a_rounds_text_says_what_was_scored_and_found(sent):
    pulls = [{"arm": 1, "reward": 0.5, "n_targets": 9}, {"arm": 12, "reward": -0.25, "n_targets": 9}]
    artifacts.show_round(Stage("My.Run_1", 0, "", "", ""), 3, INFO, pulls)
    text = sent["my-run-1-rounds"]
    assert "12 documents scored (8 of them drawn" in text
    assert "τ = 0.0123" in text
    assert "- bandit_collapsed (warning; effective arms 1.5): Raise bandit.alpha." in text
    (drawn,) = drawings(text)
    (low, zero), (high, also_zero) = sorted(ends(drawn, f"bar-{row}") for row in (0, 1))
    assert zero == pytest.approx(high, abs=0.1)
    assert also_zero - high == pytest.approx(2 * (zero - low), abs=0.1)
    assert {"arm 1", "0.5", "arm 12", "-0.25", "τ = 0.0123"} <= labels(drawn)
    assert [(row["arm"], row["mean influence"]) for row in sent["my-run-1-arms"]] == [(1, 0.5), (12, -0.25)]


def test_a_round_of_very_many_arms_draws_the_best_and_the_worst(sent):
    pulls = [{"arm": arm, "reward": float(arm), "n_targets": 9} for arm in range(200)]
    artifacts.show_round(Stage("r", 0, "", "", ""), 3, INFO, pulls)
    (drawn,) = drawings(sent["r-rounds"])
    assert sum("bar-" in element.get("id", "") for element in drawn.iter(f"{SVG}g")) == artifacts.MOST_BARS
    assert {"arm 199", "arm 0"} <= labels(drawn)
    assert "arm 100" not in labels(drawn)
    assert len(sent["r-arms"]) == 200


def test_a_stage_draws_the_course_of_its_rounds(sent):
    chosen = {"documents": 7, "tokens": 90, "budget_tokens": 100, "near_duplicates": [3], "findings": []}
    rounds = [{"mean_reward": reward, "accepted_tokens": 40} for reward in (-0.5, 0.25, 0.5)]
    artifacts.show_stage(Stage("r", 1, "", "", ""), chosen, rounds)
    influence, tokens = drawings(sent["r-selection"])
    heights = [y for _, y in points(influence, "course")][:3]
    assert heights[1] - heights[2] == pytest.approx((heights[0] - heights[2]) / 4, abs=0.1)
    first, second, third = [y for _, y in points(tokens, "course")][:3]
    assert first - second == pytest.approx(second - third, abs=0.1)
    assert "budget = 100" in labels(tokens)


def test_hostile_words_stay_text():
    drawn = bars("a [title](javascript:x) <b>", {'<script>"&$x^2$': 1.0, "arm \u202e": -1.0}, "influence")
    assert "(javascript" not in drawn
    assert '<script>"&$x^2$' in labels(drawings(drawn)[0])


def test_a_run_leaves_its_rounds_its_selection_and_its_report(small_run):
    found = httpx.post(f"{PREFECT_API_URL.value()}/artifacts/filter", json={"limit": 200}).json()
    keys = [artifact["key"] for artifact in found]
    assert {"small-rounds", "small-arms", "small-selection", "small-report"} <= set(keys)
    assert keys.count("small-rounds") >= 6
