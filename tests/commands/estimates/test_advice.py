"""What is advised is what docs/scaling.md recommends, and only what does not suit is said."""

import re
from pathlib import Path

import pytest
from small_pool import small_config

from quad_tasks.commands.estimates.advice import (
    LARGE_COST_SHARE,
    MOST_SHARDS,
    SAMPLED_PER_ARM,
    advise,
    advised_arms,
    advised_pilot,
)
from quad_tasks.config.load import parse_config

SCALING = (Path(__file__).resolve().parents[3] / "docs" / "scaling.md").read_text()
SUITED = {
    "clustering__arms": 5_774,
    "clustering__sample_documents": 600_000,
    "bandit__pilot_documents": 12_000,
    "workspace": "s3://bucket/w",
}


def advice(tmp_path, documents, shards=1000, tasks=100, share=0.005, workers=64, **changes):
    changes = {"workspace": "s3://bucket/w", "compute__workers": workers, **changes}
    config = parse_config(small_config(tmp_path, **changes), "advice")
    return advise(config, documents, shards, tasks, share)


def documented(key: str) -> float:
    """Return the value that docs/scaling.md recommends of a key for a hundred million documents."""
    row = next(line for line in SCALING.splitlines() if line.startswith("| 10⁸ |"))
    found = re.search(rf"`{re.escape(key)}: ([\d_.]+)`", row)
    assert found is not None, key
    return float(found[1])


def test_the_docs_recommend_what_is_advised():
    arms = documented("clustering.arms")
    assert advised_arms(10**8) == pytest.approx(arms, rel=0.05)
    assert advised_pilot(int(arms), 10**8) == documented("bandit.pilot_documents")
    assert documented("clustering.sample_documents") == SAMPLED_PER_ARM * arms
    assert documented("bandit.max_cost_share") == LARGE_COST_SHARE
    assert f"at most {MOST_SHARDS:,} shards" in SCALING


def test_settings_that_suit_are_left_alone(tmp_path):
    assert advice(tmp_path, 10**8, **SUITED) == []


@pytest.mark.parametrize(
    ("documents", "given", "message"),
    [
        (10**6, {"shards": 63}, "pool.inputs: .*64 workers need as many, found 63"),
        (10**8, {"shards": 98_000}, "pool.inputs: pack files, 10,000 shards at most .*, found 98,000"),
        (10**6, {"tasks": 14, "workers": 256}, "bandit.arms_per_round: .* 14 parts for 256 workers: 19 times as many"),
        (10**8, {**SUITED, "clustering__arms": 100}, "clustering.arms: about 5,774 suit 100,000,000 .*, found 100"),
        (
            10**8,
            {**SUITED, "clustering__sample_documents": 1000},
            "clustering.sample_documents: 577,400, .*found 1,000",
        ),
        (10**8, {**SUITED, "bandit__pilot_documents": 256}, "bandit.pilot_documents: 11,548, 2 an arm, found 256"),
        (10**8, {**SUITED, "share": None}, "bandit.max_cost_share: 0.005 .*, found no cap"),
        (10**8, {**SUITED, "share": 0.1}, "bandit.max_cost_share: 0.005 .*, found 0.1"),
        (10**8, {**SUITED, "workspace": "/data"}, "workspace: object storage"),
        (10**9, {}, "no pool of this many documents has been tried: split it"),
    ],
)
def test_what_does_not_suit_is_said_in_a_line_that_names_the_key(tmp_path, documents, given, message):
    assert [line for line in advice(tmp_path, documents, **given) if re.match(message, line)]
