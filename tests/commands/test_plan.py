"""`quad plan`: counts follow from the inputs, stages are the ones a run times, what would end a run is found before."""

import pytest
from small_pool import small_config, stored

from quad_tasks.commands import input_sample
from quad_tasks.commands.estimates import probe
from quad_tasks.commands.input_sample import look_at
from quad_tasks.commands.plan import plan_run
from quad_tasks.config.load import parse_config
from quad_tasks.config.schema import ConfigError
from quad_tasks.runtime.events import read_times
from quad_tasks.runtime.run import pinned_pool
from quad_tasks.storage.input_documents import InputError, expand_inputs
from quad_tasks.storage.store import open_store


@pytest.fixture(autouse=True)
def short_probe(monkeypatch):
    """Measure for no longer than it takes: no test reads a duration."""
    monkeypatch.setattr(probe, "LEAST_S", 0.0)


@pytest.mark.slow
def test_a_plan_counts_what_the_run_counted(small_run):
    one_worker = small_run.compute.model_copy(update={"workers": 1})
    planned = plan_run(small_run.model_copy(update={"compute": one_worker}), price_per_hour=3.0)
    store = open_store(small_run.workspace)
    pool = stored(store, pinned_pool(open_store(small_run.workspace), small_run.run))
    assert (
        planned["pool"]["documents"] == pool["documents"] + pool["set_aside"]["duplicate_text"] + 1
    )  # one is too short
    assert 0.5 < planned["pool"]["tokens"] / pool["tokens"] < 2
    assert [stage["stage"] for stage in planned["stages"]] == [
        "model", "ingest", "embed", "cluster", "overlap", "fit", "bandit", "train", "publish"
    ]  # fmt: skip
    assert {stage["stage"] for stage in planned["stages"]} == set(read_times(store, small_run.run))
    assert planned["total"]["money"] == pytest.approx(planned["total"]["seconds"] / 3600 * 3.0)
    assert all(stage["seconds"] > 0 for stage in planned["stages"])
    assert planned["scored"]["tokens"] <= planned["scored"]["tokens_at_most"]


def test_flops_of_training_are_six_per_parameter_and_token(corpus, tmp_path, one_process):
    """Up to attention (Kaplan et al. 2020, arXiv 2001.08361, table 1)."""
    planned = plan_run(parse_config(small_config(corpus, str(tmp_path)), "test"))
    model = planned["stages"][0]
    six = 6 * planned["model"]["parameters"] * model["tokens"]
    assert six < model["flops"] < 1.5 * six


def test_a_fit_s_passes_count_a_sample_each(corpus, tmp_path, one_process):
    fits = {
        n: next(stage for stage in plan_run(config)["stages"] if stage["stage"] == "fit")
        for n in (None, 40, 10)
        for config in [parse_config(small_config(corpus, str(tmp_path), factors__eigenvalue_documents=n), "test")]
    }
    assert (fits[40]["tokens"], fits[40]["flops"]) == (fits[None]["tokens"], fits[None]["flops"])
    assert fits[10]["flops"] < fits[None]["flops"]
    assert fits[10]["documents"] == fits[None]["documents"]


def test_large_inputs_are_sampled_and_their_counts_estimated(corpus, monkeypatch):
    uris = expand_inputs([f"{corpus}/pool/*.jsonl"])
    whole = look_at(uris)
    monkeypatch.setattr(input_sample, "WHOLE_BYTES", 1)
    monkeypatch.setattr(input_sample, "SAMPLED_RECORDS", 20)
    part = look_at(uris)
    assert (whole.exact, part.exact) == (True, False)
    assert len(part.records) == 60
    assert 0.8 < part.documents / whole.documents < 1.25


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"pool__inputs": ["/nowhere/*.jsonl"]}, InputError, r"/nowhere/\*.jsonl"),
        ({"pool__fields": {"text": "body"}}, ConfigError, r"pool.fields.text: .*none in 'body' \(.*id.*text"),
        ({"heldout__reference_domain": "nowhere"}, ConfigError, r"heldout.reference_domain: expected one of"),
        ({"selection__budget_tokens": 10**9}, ConfigError, r"selection.budget_tokens: expected at most the pool's"),
    ],
)
def test_what_would_end_a_run_is_found_before_it(one_process, corpus, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        plan_run(parse_config(small_config(corpus, str(tmp_path), **changes), "test"))


def test_inputs_stand_for_a_pool_of_so_many_times_their_documents(corpus, tmp_path, one_process):
    config = parse_config(small_config(corpus, str(tmp_path)), "test")
    here = plan_run(config)
    n = 1000 * here["pool"]["documents"]
    planned = plan_run(config, documents=n)
    assert planned["pool"]["documents"] == n
    assert planned["pool"]["sample_documents"] == here["pool"]["documents"]
    assert planned["pool"]["files"] == 1000 * here["pool"]["files"]
    assert planned["pool"]["text_bytes"] == pytest.approx(1000 * here["pool"]["text_bytes"], rel=1e-3)
    assert not planned["pool"]["counted"]
    rows = {stage["stage"]: stage for stage in planned["stages"]}
    small = {stage["stage"]: stage for stage in here["stages"]}
    assert rows["ingest"]["size_bytes"] == pytest.approx(1000 * small["ingest"]["size_bytes"], rel=0.05)
    assert rows["fit"]["tokens"] == pytest.approx(small["fit"]["tokens"], rel=0.01)  # a sample, a reference
    assert (
        planned["memory"]["roles"]["driver"] == here["memory"]["roles"]["driver"]
    )  # it holds no document but chosen ones
    assert set(planned["memory"]["roles"]) == {"driver", "scheduler", "worker"}
    assert planned["storage"]["peak"] > planned["storage"]["kept"] == planned["total"]["size_bytes"]
    assert planned["total"]["reads"] == sum(row["reads"] for row in planned["stages"])


def test_as_many_documents_as_there_are_plan_what_no_number_plans(corpus, tmp_path, one_process):
    config = parse_config(small_config(corpus, str(tmp_path)), "test")
    here = plan_run(config)
    again = plan_run(config, documents=here["pool"]["documents"])
    counts = ("documents", "tokens", "flops", "size_bytes", "reads", "writes")
    for stage, same in zip(here["stages"], again["stages"], strict=True):
        assert [stage[name] for name in counts] == [same[name] for name in counts]


def test_more_workers_are_planned_than_are_measured_here_and_share_what_can_be_shared(
    corpus, tmp_path, one_process, monkeypatch
):
    config, asked = parse_config(small_config(corpus, str(tmp_path)), "test"), []
    measure = probe._at_once
    monkeypatch.setattr(probe, "_at_once", lambda *given: asked.append(given[1]) or measure(*given))
    planned = plan_run(config, documents=10**8, workers=256)
    assert planned["machine"]["workers"] == 256
    assert planned["machine"]["elsewhere"]
    assert asked == [min(256, probe.usable_cores())]
    one = plan_run(config, documents=10**8, workers=1)
    assert planned["total"]["seconds"] < one["total"]["seconds"] / 20
    assert planned["memory"]["most"] > 100 * one["memory"]["roles"]["worker"]


def test_a_remote_workspace_waits_for_its_requests(corpus, tmp_path, one_process, monkeypatch):
    monkeypatch.setattr("quad_tasks.commands.plan.check_workspace", lambda workspace: workspace)
    far, near = (
        plan_run(parse_config(small_config(corpus, place), "test"), documents=10**6, workers=4)
        for place in ("s3://bucket/w", str(tmp_path))
    )
    assert (near["request_s"], far["request_s"]) == (0.0, 0.02)
    waits = 0.02 * (far["total"]["reads"] + far["total"]["writes"]) / 8
    assert far["total"]["seconds"] > near["total"]["seconds"] / 2 + waits


def test_a_pool_smaller_than_its_sample_is_refused(corpus, tmp_path, one_process):
    with pytest.raises(ConfigError, match=r"--documents: expected at least the 182 of pool.inputs, .*found 100"):
        plan_run(parse_config(small_config(corpus, str(tmp_path)), "test"), documents=100)


def test_a_workspace_that_is_a_file_is_named(corpus, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"workspace: expected a folder that can be written, found .*file"):
        plan_run(parse_config(small_config(corpus, str(tmp_path / "file" / "workspace")), "test"))


def test_a_plan_leaves_no_trace_in_a_local_workspace(corpus, tmp_path, one_process):
    plan_run(parse_config(small_config(corpus, str(tmp_path / "workspace")), "test"))
    assert not (tmp_path / "workspace").exists()
