"""What Prefect's UI shows of a run: nothing outside a flow; inside, rounds as versions of one artifact."""

import base64
import json
import logging
import re
import uuid
from xml.etree import ElementTree

import httpx
import pytest
from deployments import run_log
from prefect import flow
from prefect.settings import PREFECT_API_URL
from small_pool import pool_version, round_info, small_config

from flows.select_data import select_data
from quad_tasks.config.load import parse_config
from quad_tasks.manifests.pool import PoolVersion
from quad_tasks.manifests.run import Choice
from quad_tasks.records import Finding, Stage
from quad_tasks.runtime import prefect_ui
from quad_tasks.runtime.prefect_plots import bars
from quad_tasks.runtime.prefect_runs import WITHOUT_PREFECT_VARIABLE
from quad_tasks.runtime.run import pinned_pool
from quad_tasks.storage.keys import report_key
from quad_tasks.storage.rounds import count_rounds
from quad_tasks.storage.store import open_store

SVG = "{http://www.w3.org/2000/svg}"

INFO = round_info(
    documents=12,
    active_documents=8,
    tokens=3400,
    accepted_documents=5,
    threshold=0.0123,
    arms=2,
    effective_arms=4.5,
    findings=[Finding("bandit_collapsed", "warning", {"effective_arms": 1.5}, "Raise bandit.alpha.")],
)


@pytest.fixture(autouse=True)
def _recorded(monkeypatch):
    monkeypatch.setenv(WITHOUT_PREFECT_VARIABLE, "")


def test_outside_a_flow_nothing_is_drawn_or_sent(monkeypatch):
    monkeypatch.setattr(prefect_ui, "bars", lambda *a, **k: 1 / 0)
    monkeypatch.setattr(prefect_ui, "create_markdown_artifact", lambda *a, **k: 1 / 0)
    monkeypatch.setattr(prefect_ui, "create_table_artifact", lambda *a, **k: 1 / 0)
    prefect_ui.show_round(Stage("run", 0, "", "", ""), 3, INFO, [{"arm": 1, "reward": 0.5, "n_targets": 9}])


@pytest.fixture
def sent(monkeypatch):
    """What is sent, by key, as if inside a flow."""
    sent = {}
    monkeypatch.setattr(prefect_ui, "TaskRunContext", type("Inside", (), {"get": staticmethod(lambda: True)}))
    monkeypatch.setattr(prefect_ui, "create_markdown_artifact", lambda text, key, description: sent.update({key: text}))
    monkeypatch.setattr(prefect_ui, "create_table_artifact", lambda rows, key, description: sent.update({key: rows}))
    return sent


def test_what_prefect_does_not_take_ends_nothing(sent, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(prefect_ui, "notice", said.append)
    monkeypatch.setattr(prefect_ui, "create_markdown_artifact", lambda *a, **k: 1 / 0)
    prefect_ui.show_round(Stage("run", 0, "", "", ""), 3, INFO, [{"arm": 1, "reward": 0.5, "n_targets": 9}])
    assert list(sent) == ["run-arms"]
    assert said == ["Prefect's UI does not show 'Stage 0, round 3': ZeroDivisionError: division by zero"]


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
    prefect_ui.show_round(Stage("My.Run_1", 0, "", "", ""), 3, INFO, pulls)
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
    prefect_ui.show_round(Stage("r", 0, "", "", ""), 3, INFO, pulls)
    (drawn,) = drawings(sent["r-rounds"])
    assert sum("bar-" in element.get("id", "") for element in drawn.iter(f"{SVG}g")) == prefect_ui.MOST_BARS
    assert {"arm 199", "arm 0"} <= labels(drawn)
    assert "arm 100" not in labels(drawn)
    assert len(sent["r-arms"]) == 200


def test_a_stage_draws_the_history_of_its_rounds(sent):
    chosen = Choice(documents=7, tokens=90, budget_tokens=100, near_duplicates=[3], sha256="")
    rounds = [round_info(mean_reward=reward, accepted_tokens=40) for reward in (-0.5, 0.25, 0.5)]
    prefect_ui.show_stage(Stage("r", 1, "", "", ""), chosen, rounds)
    influence, tokens = drawings(sent["r-selection"])
    heights = [y for _, y in points(influence, "history")][:3]
    assert heights[1] - heights[2] == pytest.approx((heights[0] - heights[2]) / 4, abs=0.1)
    first, second, third = [y for _, y in points(tokens, "history")][:3]
    assert first - second == pytest.approx(second - third, abs=0.1)
    assert "budget = 100" in labels(tokens)


def novels(shards: str, documents: int, clustering: str = "c", layers: int = 1) -> PoolVersion:
    """Return a version of the pool `novels` with a shard a letter."""
    return pool_version(
        [], pool="novels", shards=tuple(shards), documents=documents, clustering=clustering,
        layers=[{"tables": str(i), "parts": 1, "rows": 1} for i in range(layers)], set_aside={"duplicate_text": 3},
        drift={"new_documents": 60, "beyond_radius": 0.5, "occupancy_shift": 0.02, "drift": 0.05},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("before", "now", "news"),
    [
        (None, novels("ab", 1600), "v0002 is the first version of these settings."),
        (novels("ab", 1600), novels("ab", 1600), "Nothing is new: v0002 holds the inputs as they are."),
        (
            novels("abc", 1600),
            novels("abdef", 1660, layers=2),
            "v0002: shards new 3, gone or changed 1; the arms stand.",
        ),
        (
            novels("ab", 1600),
            novels("abd", 1660, clustering="d"),
            "v0002: shards new 1, gone or changed 0; clustered anew.",
        ),
    ],
)
def test_a_refresh_says_what_is_new(sent, monkeypatch, before, now, news):
    prefect_ui.show_refresh("pools/novels/v0002/manifest.json", now, before)
    assert sent == {}  # outside a flow
    monkeypatch.setattr(prefect_ui, "FlowRunContext", prefect_ui.TaskRunContext)
    prefect_ui.show_refresh("pools/novels/v0002/manifest.json", now, before)
    [(key, text)] = sent.items()
    assert (key, text.splitlines()[:3]) == ("pool-novels", ["## Pool novels", "", news])
    assert f"| documents | {before.documents if before else 0:,} | {now.documents:,} |" in text
    assert "Set aside: 3 duplicate_text. Drift: 5.0% of documents are new and far from their arm" in text
    assert text.endswith("Laid out in 2 layers." if len(now.layers) == 2 else "Laid out whole.")


def test_hostile_words_stay_text():
    drawn = bars("a [title](javascript:x) <b>", {'<script>"&$x^2$': 1.0, "arm \u202e": -1.0}, "influence")
    assert "(javascript" not in drawn
    assert '<script>"&$x^2$' in labels(drawings(drawn)[0])


@pytest.fixture
def asset_events(monkeypatch):
    """Events of assets that Prefect is told of: name, resource, what it is related to, payload."""
    told = []

    def emit(event, resource, related=(), payload=None, **_):
        if event.startswith("prefect.asset"):
            others = [one["prefect.resource.id"] for one in related]
            told.append((event.removeprefix("prefect.asset."), resource["prefect.resource.id"], others, payload))

    monkeypatch.setattr("prefect.events.emit_event", emit)
    return told


def test_an_asset_is_shown_with_what_it_was_made_from(asset_events, prefect_server, tmp_path):
    store = open_store(str(tmp_path))
    prefect_ui.show_asset(store, "selection", "runs/r/selection", [])
    assert asset_events == []

    @flow
    def publish():
        prefect_ui.show_asset(store, "selection", "runs/r/selection", ["pools/a b/v0001/manifest.json"], tokens=9)

    publish()
    pool = f"file://{tmp_path}/pools/a-b/v0001/manifest.json"
    assert asset_events == [
        ("referenced", pool, [], None),
        ("materialization.succeeded", f"file://{tmp_path}/runs/r/selection", [pool, "quad"], {"tokens": 9}),
    ]


def test_an_asset_that_prefect_does_not_take_ends_nothing(prefect_server, tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(prefect_ui, "notice", said.append)

    @flow
    def publish():
        prefect_ui.show_asset(open_store(str(tmp_path)), "selection", "runs/" + "r" * 600, [])
        return "published"

    assert publish() == "published"
    assert len(said) == 1
    assert "Prefect's UI does not show 'selection runs/r" in said[0]


@pytest.mark.slow
def test_a_run_leaves_its_log_artifacts_and_assets_that_lead_from_pool_to_report(
    asset_events, dask_client, prefect_server, corpus, tmp_path
):
    run = f"assets-{uuid.uuid4().hex[:8]}"  # the server knows the runs of a first try
    config = parse_config(small_config(corpus, str(tmp_path), run=run, training__stages=1), run)
    select_data(config)
    (pool, factors, selection, report) = made = [key for event, key, _, _ in asset_events if event.startswith("mat")]
    root = f"file://{tmp_path}"
    version = pinned_pool(open_store(str(tmp_path)), run)
    assert (pool, selection) == (f"{root}/{version}", f"{root}/runs/{run}/selection")
    assert factors.startswith(f"{root}/factors/")
    assert report == f"{root}/runs/{run}/report/index.html"
    assert {key: sorted(others) for event, key, others, _ in asset_events if event.startswith("mat")} == {
        pool: ["quad"],
        factors: sorted([pool, "quad"]),
        selection: sorted([pool, factors, "quad"]),
        report: sorted([selection, "quad"]),
    }
    found = httpx.post(f"{PREFECT_API_URL.value()}/artifacts/filter", json={"limit": 200}).json()
    keys = [artifact["key"] for artifact in found]
    assert {"pool-pool", *(f"{run}-{what}" for what in ("rounds", "arms", "selection", "report"))} <= set(keys)
    assert keys.count(f"{run}-rounds") == count_rounds(open_store(str(tmp_path)), run, 0) > 1
    written = json.loads(open_store(str(tmp_path)).get(report_key(run)))
    findings = [finding["signature"] for finding in written["findings"]]
    logged = run_log(PREFECT_API_URL.value().removesuffix("/api"), run, last=f"run {run}: {findings[-1]}")
    messages = [message for _, message in logged]
    assert {"stage 0: rounds: 100 % of the way to the nearest stop", "write report"} <= set(messages)
    assert any(message.startswith("embed: ") and " in " in message for message in messages)
    warned = [message for level, message in logged if level == logging.WARNING]
    assert [message.split()[2] for message in warned if message.startswith(f"run {run}: ")] == findings
    select_data(config)
    assert [key for event, key, _, _ in asset_events if event.startswith("mat")] == [*made, report]
