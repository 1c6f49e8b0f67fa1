"""Failures planted in small runs, each found in the run's report under its own name; a healthy run has none.

Four runs over one pool of twelve made-up topics: what they share (ingest, model, clusters, factors) is computed once.
"""

import inspect
import json
import re
import typing

import numpy as np
import pyarrow as pa
import pytest
from small_pool import small_config, write_jsonl

from flows.select_data import select_data
from quad_tasks.config.load import parse_config
from quad_tasks.config.values import Signature
from quad_tasks.core import bandit
from quad_tasks.core.evaluation import diagnosis, training_findings
from quad_tasks.core.evaluation.diagnosis import Measured, PullSize, diagnose
from quad_tasks.records import Pull
from quad_tasks.runtime.findings import UnwantedFinding
from quad_tasks.stages.bandit import score_round
from quad_tasks.stages.bandit.score_round import score_chunk
from quad_tasks.storage.store import open_store

N_TOPICS, DOCUMENTS, WORDS = 12, 30, 14
SYLLABLES = ["ba", "de", "fi", "go", "hu", "ka", "le", "mi", "no", "pu", "ra", "se", "ti", "vo", "wu", "za"]
ARMS = {"clustering__arms": N_TOPICS, "embedding__dimension": 16}
BANDIT = {
    "pilot_documents": 48, "arms_per_round": 2, "documents_per_pull": 12, "active_share": 0.5, "max_scored_share": 0.5,
    "scorer": "exact",
}  # fmt: skip  # six documents at random tell these arms apart
COMMON = {
    **ARMS,
    "bandit": BANDIT,
    "training": {"batch_tokens": 64, "learning_rate": 1e-4, "control": False},
}


def records(topic: int, n: int, seed: int) -> list[dict[str, object]]:
    """Documents of a topic: words of its own, the same for every seed."""
    own = np.random.default_rng(topic)
    words = ["".join(own.choice(SYLLABLES, 3)) for _ in range(WORDS)]
    generator = np.random.default_rng([seed, topic])
    texts = (" ".join(generator.choice(words, int(generator.integers(6, 45)))) for _ in range(n))
    return [{"id": f"{topic}-{seed}-{i}", "text": text, "source": f"t{topic}"} for i, text in enumerate(texts)]


def selecting(budget_tokens: int) -> dict[str, object]:
    """A budget, all of it for influence; a topic's 14 words make near-duplicates of all, which is not tested here."""
    return {"budget_tokens": budget_tokens, "near_duplicate_cosine": None, "general_share": 0.0}


def with_influence(table: pa.Table, values: np.ndarray) -> pa.Table:
    return table.set_column(table.schema.get_field_index("influence"), "influence", pa.array(values))


def score_noise(store, stage, positions, *settings):
    """Score a chunk as ever, then replace every score by a number that says nothing of its arm."""
    table = score_chunk(store, stage, positions, *settings)
    return with_influence(table, np.random.default_rng(positions).normal(size=len(table)))


@pytest.fixture(scope="module")
def topics(tmp_path_factory):
    """Twelve pool files, held-out files of all topics, and references of four topics and of one."""
    directory = tmp_path_factory.mktemp("topics")
    for topic in range(N_TOPICS):
        write_jsonl(directory / "pool" / f"t{topic}.jsonl", records(topic, DOCUMENTS, seed=0))
        write_jsonl(directory / "heldout" / f"t{topic}.jsonl", records(topic, 6, seed=1))
    for name, some in (("broad", range(4)), ("narrow", range(1))):
        write_jsonl(directory / f"{name}.jsonl", [r for topic in some for r in records(topic, 8, seed=2)])
    return directory


@pytest.fixture(scope="module")
def findings(dask_client, topics, tmp_path_factory):
    """Run a configuration in the shared workspace and return its findings by signature."""
    workspace = str(tmp_path_factory.mktemp("planted"))

    def run(name: str, reference: str = "broad", **changes: object) -> dict[str, dict[str, object]]:
        body = small_config(topics, workspace, **{**COMMON, **changes})
        body |= {"run": name, "reference": {"inputs": [f"{topics}/{reference}.jsonl"]}}
        body["heldout"] = {"inputs": [f"{topics}/heldout/*.jsonl"]}
        select_data(parse_config(body, name))
        report = json.loads(open_store(workspace).get(f"runs/{name}/report/report.json"))
        return {finding["signature"]: finding for finding in report["findings"]}

    return run


@pytest.mark.slow
def test_a_healthy_run_has_no_finding(findings):
    assert findings("healthy", selection=selecting(4000)) == {}


@pytest.mark.slow
def test_a_reference_of_one_topic_is_found_as_too_little_diversity(findings):
    assert set(findings("narrow", reference="narrow", selection=selecting(1400))) == {"too_little_diversity"}


@pytest.mark.slow
def test_a_budget_that_scores_everything_is_found_as_too_much_compute(findings):
    everything = {**BANDIT, "max_scored_share": 1.0, "oversample": 1000.0}
    found = findings("everything", bandit=everything, selection=selecting(2000))
    assert set(found) == {"too_much_compute"}
    assert found["too_much_compute"]["evidence"]["scored_per_selected_token"] > 10


@pytest.mark.slow
def test_scores_that_are_noise_inside_arms_are_found_as_arms_not_homogeneous(findings, monkeypatch):
    monkeypatch.setattr(score_round, "score_chunk", score_noise)
    found = set(findings("noise", selection=selecting(1180)))
    amounts = {"budget_not_reached", "too_much_compute"}  # what noise above τ holds is a matter of chance
    assert found - amounts == {"arms_not_homogeneous"}


@pytest.mark.slow
def test_a_finding_the_configuration_does_not_accept_fails_the_reported_run(findings):
    again = {"reference": "narrow", "selection": selecting(1400)}
    assert findings("narrow", **again, diagnosis={"stop_on": ["too_much_compute"]})
    with pytest.raises(UnwantedFinding, match=r"run 'narrow': .*, found too_little_diversity \(warning\): Good scores"):
        findings("narrow", **again, diagnosis={"stop_on": ["too_little_diversity", "too_much_compute"]})


def test_every_signature_can_be_listed():
    sources = inspect.getsource(diagnosis) + inspect.getsource(training_findings)
    functions = re.findall(r"Finding\(\"(\w+)\"", sources)
    assert set(typing.get_args(Signature)) == set(functions)


def play(alpha: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, arms and rounds of a game of a hundred arms, one of them three deviations better than the rest."""
    generator = np.random.default_rng(0)
    policy = bandit.paper_policy(alpha=alpha, arms_per_round=1, documents_per_pull=16)
    state = bandit.initial_state(np.full(100, 10_000))
    rounds = [np.sort(generator.integers(0, 100, 256))]  # the pilot
    scores = []
    for number in range(101):
        if number > 0:
            rounds.append(np.repeat(bandit.choose_arms(state, policy, generator), 16))
        scores.append(3.0 * (rounds[-1] == 0) + generator.normal(size=len(rounds[-1])))
        pulls = []
        for arm in np.unique(rounds[-1]):
            own = scores[-1][rounds[-1] == arm]
            pulls.append(Pull(int(arm), int(state.cursor[arm]), len(own), len(own), float(own.mean()), 0.0))
        state = bandit.update(state, pulls, policy)
    return np.concatenate(scores), np.concatenate(rounds), np.repeat(np.arange(101), [len(r) for r in rounds])


@pytest.mark.parametrize(("alpha", "found"), [(0.0, {"bandit_collapsed"}), (1.0, set())])
def test_one_far_better_arm_without_exploration_is_found_as_bandit_collapsed(alpha, found):
    influence, arm, number = play(alpha)
    broad = {"effective_arms": 30.0, "vendi_score": 10.0}
    measured = Measured(
        selected_tokens=100_000,
        budget_tokens=100_000,
        pool_tokens=10_000_000,
        scored_tokens=200_000,
        time_s={},
        influence_N=influence,
        arm_N=arm,
        pull_arm_P=arm,
        pull_round_P=number,
        n_arms=100,
        pull=PullSize(16, 16),
        selected=broad,
        random=broad,
        reference_change=-0.01,
        heldout_changes={"other": 0.0},
    )
    assert {finding.signature for finding in diagnose(measured)} == found


@pytest.mark.slow
def test_scores_that_change_with_the_checkpoint_are_found_as_stale_influence(findings, monkeypatch):
    """The second stage's scores are the first's turned round."""

    def turned(store, stage, positions, *settings):
        table = score_chunk(store, stage, positions, *settings)
        return table if stage.number == 0 else with_influence(table, -table["influence"].to_numpy())

    monkeypatch.setattr(score_round, "score_chunk", turned)
    two = {**COMMON["training"], "stages": 2}
    found = findings("stale", training=two, selection=selecting(2500))
    assert found["stale_influence"]["severity"] == "severe"
    assert found["stale_influence"]["evidence"]["rank_correlation"] < 0
