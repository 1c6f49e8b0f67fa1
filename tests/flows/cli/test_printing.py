"""The longer results on a terminal: numbers rounded as a person reads them, a user's text never taken for markup."""

import json
from types import SimpleNamespace

import pytest

from flows import run_experiment
from flows.cli import printing
from flows.cli.printing import by_kind, print_experiment, print_first_config, print_plan, print_report, print_story
from quad_tasks.manifests.run import ExperimentRecord
from quad_tasks.storage.errors import StoreKeyError
from quad_tasks.storage.manifest import write_manifest
from quad_tasks.storage.store import open_store


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """A terminal on which no line wraps."""
    monkeypatch.setenv("COLUMNS", "200")


def words(capsys):
    """Return what was printed, a list of words a line."""
    return [line.split() for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("count", "written"),
    [(None, ""), (0, "0"), (7, "7"), (999, "999"), (1000, "1k"), (12_345, "12.3k"), (2.5e9, "2.5G"), (4e21, "4e+03E")],
)
def test_a_count_has_three_digits_and_a_unit(count, written):
    assert printing._short(count) == written


def plan(money):
    stage = {"flops": 3.2e12, "size_bytes": 1_500_000, "reads": 900, "writes": 100, "seconds": 75, "money": money}
    return {
        "pool": {
            "files": 3,
            "documents": 12_345,
            "tokens": 6_789_000,
            "counted": money is None,
            "sample_documents": None,
            "set_aside": {"empty_text": 3, "invalid_json": 1200},
        },
        "model": {
            "source": "fresh",
            "parameters": 135_000,
            "slow_dtype": False,
            "batch_tokens": {"value": 2048, "basis": "configured"},
        },
        "training": {"learning_rate": 1e-3, "configured": False},
        "scored": {"tokens": 1000, "rounds": 4, "tokens_at_most": 2000},
        "memory": {
            "fit": 1e9,
            "bandit": 2e9,
            "train": 3e9,
            "most": 3e9,
            "machine": 16e9,
            "roles": {"driver": 5e8, "scheduler": 1e8, "worker": 1.5e9},
        },
        "storage": {"kept": 2e9, "peak": 3e9},
        "request_s": 0.0,
        "advice": ["clustering.arms: about 64 suit [12,345] documents, found 6"],
        "device": None,
        "cost": {
            "reading": 0.0,
            "scoring": 2e12,
            "pool": 2e13,
            "share": 0.1,
            "most_share": 0.2,
            "training": 4e12,
        },
        "stages": [{"stage": "bandit", "documents": 500, "tokens": 20_000, **stage}],
        "total": {**stage, "seconds": 3720},
        "one_process_s": {"model": 30.0, "publish": 31.0},
        "machine": {"cores": 2, "workers": 4, "elsewhere": False},
    }


def test_a_plan_is_a_line_a_stage_and_a_total(capsys):
    print_plan(plan(None))
    lines = words(capsys)
    assert ["bandit", "500", "20k", "3.2T", "1.5M", "1k", "1", "min", "15", "s"] in lines
    assert ["total", "3.2T", "1.5M", "1k", "1", "h", "2", "min"] in lines
    text = " ".join(word for line in lines for word in line)
    assert "pool: 3 files, 12,345 documents, about 6,789,000 tokens (counted)" in text
    assert "set aside: 1,203 records seen (1,200 invalid_json, 3 empty_text)" in text
    assert "about 1,000 tokens in 4 rounds after the pilot, at most 2,000" in text
    assert "on 2 cores with 4 workers; 1 min 1 s of it runs in one process" in text
    assert "training: peak learning rate 0.001 (chosen for a fresh model" in text
    assert "memory at most, all processes: fit 1GB, bandit 2GB, train 3GB; this machine has 16GB" in text
    assert "memory of one process: driver 500MB, scheduler 100MB, worker 1.5GB; storage: 2GB in the end, 3GB" in text
    assert "advice: clustering.arms: about 64 suit [12,345] documents, found 6" in text
    assert "money" not in text
    assert "requests wait" not in text


def test_a_plan_of_a_larger_pool_says_what_is_its_sample_and_what_it_assumes(capsys):
    larger = plan(None)
    larger["pool"]["sample_documents"] = 99
    larger |= {"request_s": 0.02, "machine": {"cores": 2, "workers": 4, "elsewhere": True}}
    print_plan(larger)
    text = " ".join(word for line in words(capsys) for word in line)
    assert "about 6,789,000 tokens (of which 99 at hand are the sample)" in text
    assert "requests wait 20 ms each (assumed)" in text
    assert "this machine has" not in text


def test_a_priced_plan_says_money_and_an_estimate_says_so(capsys):
    print_plan(plan(1234.5))
    lines = words(capsys)
    assert [line[-1] for line in lines if line[:1] in (["bandit"], ["total"])] == ["1,234.50", "1,234.50"]
    assert any("estimated from a sample" in " ".join(line) for line in lines)


def test_leftovers_are_a_line_a_kind_and_their_sum_the_last():
    cleaned = {
        "leftovers": {"rounds": {"objects": 1200, "size_bytes": 3_000_000}, "tables": {"objects": 1, "size_bytes": 5}},
        "objects": 1201,
        "size_bytes": 3_000_005,
        "too_young": 0,
    }
    body = {"rounds": "1,200 (3,000,000 bytes)", "tables": "1 (5 bytes)"}
    assert by_kind({**cleaned, "dry_run": True}) == {**body, "would be removed": "1,201 (3,000,005 bytes)"}
    assert list(by_kind({**cleaned, "dry_run": False})) == ["rounds", "tables", "removed"]
    assert by_kind({**cleaned, "dry_run": True, "too_young": 7})["written within the last hour, so they stay"] == 7


def test_a_first_configuration_says_what_was_seen_decided_and_left_to_decide(capsys):
    column = {"name": "body", "kinds": ["text", "null"], "present": 0.98, "distinct": 0.5, "characters": 1234.4}
    result = {
        "pool": {"files": 2, "documents": 3000, "tokens": 40_000, "columns": [column, {**column, "name": "other"}]},
        "fields": {"text": "body"},
        "bad": {"invalid_json": 4},
        "broken": {"cut.gz": "[cut].gz: ends early"},
        "undecided": ["[which] field is the id"],
        "config": "config.yaml",
    }
    print_first_config(result)
    lines = words(capsys)
    assert ["body", "text/null", "98%", "50%", "1,234", "text"] in lines
    assert ["other", "text/null", "98%", "50%", "1,234"] in lines
    text = [" ".join(line) for line in lines]
    assert "bad records, which a run sets aside: 4 invalid_json" in text
    assert "left out: [cut].gz: ends early" in text
    assert "to decide: [which] field is the id" in text
    assert text[-1] == "wrote config.yaml; next: quad plan config.yaml"


STORY = {
    "id": "a-7",
    "verdict": "selected",
    "reason": "influence 0.5 is above τ [0.1]",
    "where": {"input": "pool/[x].jsonl", "line": 8, "shard": "x-0", "row": 1200},
}
TOLD = {
    "source": "sea",
    "n_tokens": 1500,
    "arm": {
        "arm": 3,
        "documents": 2000,
        "terms": ["ship", "crew"],
        "nearest_arms": [{"arm": 5, "distance": 0.2, "terms": ["law"]}],
    },
    "nearest_documents": [{"id": "a-8", "cosine": 0.99}],
    "rounds": [{"n_documents": 4, "reward": 0.012345, "stage": 0, "round": 2, "kind": "pull"}],
    "scores": [{"influence": 0.5, "stage": 0, "round": 2, "by_reference": {"law": -0.25}}],
    "predicted_influence": 0.125,
    "excerpt": "the [captain] sailed",
}


def test_a_story_tells_where_a_document_stood_and_what_became_of_it(capsys):
    print_story({**STORY, **TOLD})
    text = [" ".join(line) for line in words(capsys)]
    assert text[:2] == ["a-7: selected", "influence 0.5 is above τ [0.1]"]
    assert text[2:] == [
        "where pool/[x].jsonl:8, shard x-0 row 1,200",
        "source sea, 1,500 tokens",
        "arm 3, 2,000 documents: ship, crew",
        "near arm 5 at 0.2: law",
        "like a-8 (cosine 0.99)",
        "arm pulled stage 0 round 2 (pull): 4 documents, mean influence 0.01235",
        "influence 0.5 in stage 0 round 2",
        "-0.25 along reference law",
        "predicted 0.125",
        "text the [captain] sailed",
    ]


def test_the_story_of_what_was_set_aside_ends_with_its_place(capsys):
    print_story({**STORY, "where": {"input": "x.jsonl", "line": 8, "shard": "x-0"}})
    assert [" ".join(line) for line in words(capsys)][2:] == ["where x.jsonl:8, shard x-0"]


def test_a_run_without_a_report_is_told_how_to_go_on(tmp_path):
    with pytest.raises(
        StoreKeyError, match=r"run 'novels' in .*: expected a report, found none yet .*`quad resume novels`"
    ):
        print_report(SimpleNamespace(workspace=str(tmp_path), run="novels"), False)


def test_a_reports_headline_is_the_reports_numbers(small_run, capsys):
    body = json.loads(open_store(small_run.workspace).get("runs/small/report/report.json"))
    print_report(small_run, False)
    rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    said = {key.strip(): value.strip() for key, value in rows.items()}
    assert said["run"] == "small"
    assert said["scored"].startswith(f"{body['scored']['documents']} documents (")
    assert said["selected"].endswith("(budget 1,500)")
    assert f"{body['stages'][-1]['selected']['reference_loss']:.4f} selected" in said["reference loss"]
    assert said["report"] == f"{small_run.workspace}/runs/small/report/index.html"


@pytest.mark.parametrize("as_json", [False, True])
def test_an_experiments_tables_and_place_are_printed(tmp_path, monkeypatch, capsys, as_json):
    made = SimpleNamespace(
        tables=lambda result: {"What it shows": [{"claim": result["claim"], "limit": 1}]}, failed=lambda result: []
    )
    monkeypatch.setattr(run_experiment, "EXPERIMENTS", {"tiny": made})
    key = "experiments/tiny/0123/result.json"
    write_manifest(open_store(str(tmp_path)), key, ExperimentRecord(experiment="tiny", claim="it [holds]"))
    print_experiment(str(tmp_path), key, as_json)
    out = capsys.readouterr().out
    if as_json:
        assert json.loads(out)["claim"] == "it [holds]"
        assert json.loads(out)["result"] == str(tmp_path / key)
    else:
        assert [line.split() for line in out.splitlines()][1:] == [
            ["What", "it", "shows"], ["claim", "limit"], ["it", "[holds]", "1"], [], [str(tmp_path / key)],
        ]  # fmt: skip
