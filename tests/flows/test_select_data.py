"""The whole path on a small pool: accounted for, within budget, the same every time, resumable."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_pool import BAD_LINES, DOCUMENTS_PER_TOPIC, TOPICS, small_config, stored, topic_records, write_jsonl
from transformers import GPT2Config, GPT2LMHeadModel

from flows import run_bandit
from flows.select_data import select_data
from quad_tasks.commands.verify import verify_run
from quad_tasks.config.load import parse_config
from quad_tasks.core.lm.tokenizer import train_tokenizer
from quad_tasks.runtime.run import load_run, pinned_pool
from quad_tasks.runtime.status import run_status
from quad_tasks.stages.bandit.ledger import load_arms, read_scores
from quad_tasks.storage.lease import LeaseHeld, claim_lease, release_lease
from quad_tasks.storage.manifest import ManifestMismatch
from quad_tasks.storage.positions import read_table
from quad_tasks.storage.rounds import list_rounds
from quad_tasks.storage.store import open_store

STORIES = Path(__file__).resolve().parents[3] / "shared" / "models" / "stories260K"
DOCUMENTS_IN = len(TOPICS) * DOCUMENTS_PER_TOPIC + 1 + len(BAD_LINES)
REPORT_KEYS = {
    "run", "pool", "scored", "selected", "tokenizer", "stages", "findings", "time_s", "peak_memory_bytes", "rejected",
    "unpulled",
}  # fmt: skip


def selection_bytes(config) -> list[bytes]:
    store = open_store(config.workspace)
    manifest = stored(store, f"runs/{config.run}/selection/manifest.json")
    return [store.get(f"runs/{config.run}/selection/{part['name']}") for part in manifest["parts"]]


def selection_table(config):
    store = open_store(config.workspace)
    manifest = stored(store, f"runs/{config.run}/selection/manifest.json")
    return manifest, read_table(store, f"runs/{config.run}/selection/{manifest['parts'][0]['name']}")


def report_of(config):
    return json.loads(open_store(config.workspace).get(f"runs/{config.run}/report/report.json"))


def test_documents_in_are_set_aside_unpulled_rejected_or_selected(small_run):
    result = verify_run(small_run)
    assert result["documents_in"] == DOCUMENTS_IN
    assert result["set_aside"] == {"duplicate_text": 1, "invalid_json": 1, "missing_text": 1, "too_short": 1}
    assert result["balanced"]
    assert result["scored_once"]
    left = [key for key in result["orphans"] if "/predictions/" not in key]  # of tests that plan its rounds once more
    assert left == []


def test_what_was_set_aside_names_file_line_and_reason(small_run):
    store = open_store(small_run.workspace)
    keys = store.list(f"pools/{small_run.pool.name}/set_aside")
    rows = [row for key in keys for row in read_table(store, key).to_pylist()]
    assert {(row["input"].rsplit("/", 1)[-1], row["line"], row["reason"]) for row in rows} == {
        ("weather.jsonl", DOCUMENTS_PER_TOPIC + 1, "invalid_json"),
        ("weather.jsonl", DOCUMENTS_PER_TOPIC + 2, "missing_text"),
        ("weather.jsonl", DOCUMENTS_PER_TOPIC + 3, "too_short"),
    }


def test_selection_fills_the_budget_short_by_less_than_one_document(small_run):
    manifest, table = selection_table(small_run)
    tokens = table["n_tokens"].to_numpy()
    assert tokens.sum() == manifest["n_tokens"] <= small_run.selection.budget_tokens
    assert small_run.selection.budget_tokens - tokens.sum() < tokens.max()
    assert len(set(table["id"].to_pylist())) == table.num_rows


def test_all_but_the_general_share_have_influence_above_the_threshold_of_their_stage(small_run):
    store = open_store(small_run.workspace)
    _, table = selection_table(small_run)
    for stage in range(small_run.training.stages):
        threshold = list_rounds(store, small_run.run, stage)[0].info.threshold
        chosen = table.filter(np.asarray(table["stage"]) == stage)
        influence, tokens = (chosen[name].to_numpy() for name in ("influence", "n_tokens"))
        general = small_run.selection.general_share * small_run.selection.budget_tokens / small_run.training.stages
        assert tokens[~(influence > threshold)].sum() < general + tokens.max()


def test_manifest_names_tokenizer_pool_and_configuration(small_run):
    manifest, _ = selection_table(small_run)
    assert manifest["tokenizer"]["name"] == "fresh byte-level BPE"
    assert len(manifest["tokenizer"]["sha256"]) == 64
    assert manifest["pool"] == pinned_pool(open_store(small_run.workspace), small_run.run)
    assert sum(source["tokens"] for source in manifest["mixture"].values()) == manifest["n_tokens"]


def test_pool_is_laid_out_by_arm_with_every_kept_document_once(small_run):
    store = open_store(small_run.workspace)
    version = pinned_pool(open_store(small_run.workspace), small_run.run)
    parts = stored(store, version)["parts"]
    arm = np.concatenate([read_table(store, part["key"], ["arm"])["arm"].to_numpy() for part in parts])
    ids = [i for part in parts for i in read_table(store, part["key"], ["id"])["id"].to_pylist()]
    assert (np.diff(arm) >= 0).all()
    assert len(set(ids)) == len(ids) == DOCUMENTS_IN - len(BAD_LINES) - 1
    index = load_arms(open_store(small_run.workspace), version)
    assert index["n_documents"].to_pylist() == np.bincount(arm, minlength=index.num_rows).tolist()


def test_report_has_every_promised_number(small_run):
    report = report_of(small_run)
    assert report.keys() >= REPORT_KEYS
    assert report["pool"].keys() >= {"documents", "tokens", "set_aside"}
    assert report["selected"].keys() >= {"documents", "tokens", "budget_tokens", "by_arm"}
    assert report["tokenizer"].keys() >= {"name", "sha256"}
    assert len(report["stages"]) == 2
    for stage in report["stages"]:
        for kind in ("before", "selected", "random"):
            assert stage[kind]["reference_loss"] > 0
            assert set(stage[kind]["domains"]) == set(TOPICS)
    page = open_store(small_run.workspace).get(f"runs/{small_run.run}/report/index.html").decode()
    assert "<script" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_training_on_the_selection_lowers_the_reference_loss(small_run):
    last = report_of(small_run)["stages"][-1]
    assert last["selected"]["reference_loss"] < last["before"]["reference_loss"]


def test_a_second_stage_goes_on_from_the_first_ones_checkpoint_and_optimizer(small_run):
    store = open_store(small_run.workspace)
    first, second = (
        stored(store, f"runs/small/stage-{n:02d}/trained/selected-0/manifest.json")["trained_tokens"] for n in range(2)
    )
    assert 0 < first < second
    assert store.exists("runs/small/stage-01/trained/selected-0/optimizer.safetensors")
    pilots = [stored(store, f"runs/small/stage-{n:02d}/round-00000/manifest.json")["info"] for n in range(2)]
    assert pilots[0]["direction"] != pilots[1]["direction"]


def test_the_report_names_the_direction_that_the_gate_let_rank_each_stage(small_run):
    gate = stored(open_store(small_run.workspace), "runs/small/stage-01/gate.json")
    first, second = report_of(small_run)["stages"]
    assert second["refit_accepted"] is gate["accepted"]
    assert second["direction"] == gate["used"]
    assert (second["direction"] == first["direction"]) is not gate["accepted"]


def test_status_and_configuration_are_read_back_from_the_workspace(small_run):
    assert load_run(small_run.workspace, "small").identity() == small_run.identity()
    status = run_status(open_store(small_run.workspace), small_run)
    assert status["published"]
    assert [stage["trained"] for stage in status["stages"]] == [True, True]


@pytest.mark.slow
def test_the_same_configuration_gives_the_same_bytes_in_another_workspace(small_run, corpus, tmp_path):
    config = parse_config(small_config(corpus, str(tmp_path)), "again")
    select_data(config)
    assert selection_bytes(config) == selection_bytes(small_run)


@pytest.mark.slow
def test_a_run_interrupted_in_its_rounds_goes_on_to_the_same_selection(small_run, corpus, tmp_path, monkeypatch):
    config = parse_config(small_config(corpus, str(tmp_path)), "interrupted")
    commit = run_bandit.commit_round

    def fail_in_round_two(config, stage, number, *rest):
        if number == 2:
            raise RuntimeError("power cut")
        return commit(config, stage, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(run_bandit, "commit_round", fail_in_round_two)
        with pytest.raises(RuntimeError, match="power cut"):
            select_data(config)
    assert run_status(open_store(config.workspace), config)["stages"][0]["rounds"] == 2
    select_data(config)
    assert selection_bytes(config) == selection_bytes(small_run)
    scores = read_scores(open_store(config.workspace), config.run, 2)
    assert len(set(scores["position"].to_pylist())) == scores.num_rows


def test_a_finished_run_does_nothing_again_and_keeps_no_prediction_of_the_pool(small_run):
    store = open_store(small_run.workspace)
    kept = lambda: [key for key in store.list("runs/small") if "/stage-" in key or "/selection/" in key]  # noqa: E731
    before = {key: store.get(key) for key in kept() if "/predictions/" not in key}  # other tests plan rounds
    select_data(small_run)
    assert {key: store.get(key) for key in kept()} == before


def test_another_configuration_under_the_same_name_is_refused_with_both_digests(small_run, corpus):
    other = parse_config(small_config(corpus, small_run.workspace, selection__budget_tokens=900), "other")
    with pytest.raises(ManifestMismatch, match=r"small/config.json.*expected digest [0-9a-f]{64}, got [0-9a-f]{64}"):
        select_data(other)


def test_a_run_that_another_process_drives_is_refused_with_its_name(small_run):
    store = open_store(small_run.workspace)
    lease = claim_lease(store, "runs/small")
    try:
        with pytest.raises(LeaseHeld, match=r"process \d+ of .* on .*, started"):
            select_data(small_run)
    finally:
        release_lease(store, lease)


def test_published_parts_are_parquet_anyone_can_read(small_run, tmp_path):
    (tmp_path / "part.parquet").write_bytes(selection_bytes(small_run)[0])
    table = pq.read_table(tmp_path / "part.parquet")
    assert {"id", "source", "text", "n_tokens", "arm", "round", "influence"} <= set(table.column_names)


def save_tiny_gpt2(directory):
    texts = [str(record["text"]) for topic in TOPICS for record in topic_records(topic, 20, seed=5)]
    tokenizer = train_tokenizer(texts, 320)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=320, n_positions=64, n_embd=16, n_layer=2, n_head=2))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "stories260K"])
def test_a_checkpoint_from_a_path_is_selected_for_and_named(dask_client, corpus, tmp_path, kind):
    source = save_tiny_gpt2(tmp_path / "gpt2") if kind == "gpt2" else STORIES
    if not source.exists():
        pytest.skip(f"{source} is not there")
    changes = {"model__source": str(source)}
    changes |= {"training__stages": 1, "training__control": False, "training__frontier": []}
    config = parse_config(small_config(corpus, str(tmp_path / "workspace"), **changes), kind)
    select_data(config)
    assert verify_run(config)["balanced"]
    report = report_of(config)
    assert report["tokenizer"]["name"] == str(source)
    assert report["stages"][0]["selected"]["reference_loss"] < report["stages"][0]["before"]["reference_loss"]


@pytest.mark.slow
def test_the_narrowest_run_is_reported_and_verified(dask_client, corpus, tmp_path):
    """One measured document, one arm with neighbours to tell, and nothing that is selected by influence."""
    few = str(write_jsonl(tmp_path / "few.jsonl", topic_records("harbour", 5, seed=2)))
    body = small_config(
        corpus,
        str(tmp_path / "workspace"),
        reference={"inputs": [few]},
        heldout__reference_domain=None,
        clustering__arms=1,
        bandit__propagation="weights",
        selection__general_share=1,
        training__seeds=2,
        training__frontier=[],
    )
    config = parse_config(body, "narrowest")
    select_data(config)
    report = report_of(config)
    for stage in report["stages"]:
        saved = stage["random"]["reference_loss"] - stage["selected"]["reference_loss"]
        assert stage["gain"] == {"mean": pytest.approx(saved), "low": None, "high": None, "documents": 1, "seeds": 2}
    assert all(one["left"] is None for stage in report["stages"] for one in stage["rounds"])
    result = verify_run(config)
    assert result["balanced"]
    assert result["scored_once"]
