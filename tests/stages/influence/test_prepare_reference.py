"""Several reference sets: one direction of all drives the bandit; none is made from what is measured."""

import json

import numpy as np
import pytest
from small_pool import small_config, topic_records, write_jsonl

from flows.select_data import select_data
from quad_tasks.commands.inspect import inspect_document
from quad_tasks.config.load import parse_config
from quad_tasks.config.schema import ConfigError
from quad_tasks.stages.bandit.ledger import read_scores
from quad_tasks.stages.influence.fit_direction import load_directions
from quad_tasks.stages.influence.prepare_reference import split_reference
from quad_tasks.storage import rounds
from quad_tasks.storage.store import open_store

WEIGHTS = {"harbour": 3.0, "kitchen": 1.0}
SHARES = {"harbour": 0.75, "kitchen": 0.25}


@pytest.fixture(scope="module")
def inputs(corpus, tmp_path_factory):
    """A reference file of each of two topics."""
    folder = tmp_path_factory.mktemp("references")
    kitchen = write_jsonl(folder / "kitchen.jsonl", topic_records("kitchen", 24, seed=2))
    return {"harbour": str(corpus / "reference" / "harbour.jsonl"), "kitchen": str(kitchen)}


@pytest.fixture(scope="module")
def configured(corpus, inputs, tmp_path_factory):
    """Configure runs in one workspace, by their reference."""
    workspace = str(tmp_path_factory.mktemp("workspace"))

    def configure(run, reference, **changes):
        changes = {"training__stages": 1, "training__frontier": [], "heldout__reference_domain": None, **changes}
        return parse_config(small_config(corpus, workspace, run=run, reference=reference, **changes), run)

    return configure


@pytest.fixture(scope="module")
def config(dask_client, configured, inputs):
    """A finished run with both sets."""
    sets = {name: {"inputs": [uri], "weight": WEIGHTS[name]} for name, uri in inputs.items()}
    finished = configured("both", {"sets": sets})
    select_data(finished)
    return finished


def test_influence_is_the_mean_of_each_sets_by_weight(config):
    scores = read_scores(open_store(config.workspace), config.run, 1)
    by_set = {name: scores[f"influence_{name}"].to_numpy() for name in SHARES}
    expected = sum(SHARES[name] * influence for name, influence in by_set.items())
    np.testing.assert_allclose(scores["influence"].to_numpy(), expected, rtol=1e-12)
    assert np.corrcoef(*by_set.values())[0, 1] < 0.999


def test_each_set_has_the_direction_of_a_run_with_it_alone(config, configured, inputs):
    store = open_store(config.workspace)
    directions, shares = load_directions(store, rounds.read_round(store, config.run, 0, 0).info.direction)
    assert shares == SHARES
    for name, uri in inputs.items():
        fitted = select_data(configured(f"only-{name}", {"inputs": [uri]}), until="fit")
        (direction,), share = (list(part.values()) for part in load_directions(store, fitted))
        assert share == [1.0]
        for block, tensor in direction.items():
            np.testing.assert_allclose(
                directions[name][block], tensor, rtol=1e-5, atol=1e-6 * float(tensor.abs().max())
            )


def test_documents_like_a_set_gain_most_along_it(config):
    scores = read_scores(open_store(config.workspace), config.run, 1).to_pandas()
    means = scores.groupby("source")[[f"influence_{name}" for name in WEIGHTS]].mean()
    assert means["influence_harbour"].idxmax() == "harbour"
    assert means["influence_kitchen"].idxmax() == "kitchen"


def test_a_story_tells_what_each_set_gave(config):
    row = read_scores(open_store(config.workspace), config.run, 1).to_pylist()[0]
    score = inspect_document(config, row["id"])["scores"][0]
    assert score["by_reference"] == {name: row[f"influence_{name}"] for name in WEIGHTS}


def test_the_reference_loss_is_the_mean_of_each_sets_by_weight(config):
    losses = json.loads(open_store(config.workspace).get(f"runs/{config.run}/stage-00/trained/before/losses.json"))
    assert losses["reference_loss"] == pytest.approx(sum(SHARES[n] * loss for n, loss in losses["references"].items()))


def test_an_approximate_scorer_is_gated_by_the_mean_of_all_sets(configured, inputs):
    sets = {name: {"inputs": [uri]} for name, uri in inputs.items()}
    approximate = {"bandit__scorer": "low_rank", "bandit__scorer_floor": 0.9, "bandit__calibration_documents": 16}
    config = configured("low-rank", {"sets": sets}, **approximate)
    select_data(config, until="bandit")
    store = open_store(config.workspace)
    assert rounds.read_round(store, config.run, 0, 0).info.calibration.accepted
    manifest = rounds.read_round(store, config.run, 0, 1)
    assert manifest.info.scorer["scorer"] == "low_rank"
    scores = rounds.read_round_table(store, manifest, "scores")
    expected = np.mean([scores[f"influence_{name}"].to_numpy() for name in sets], axis=0)
    np.testing.assert_allclose(scores["influence"].to_numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({}, "reference: expected either `inputs` or `sets`, found neither"),
        ({"inputs": ["a"], "sets": {"b": {"inputs": ["c"]}}}, "reference: expected either .* found both"),
        ({"sets": {"b": {"inputs": ["c"], "weigth": 2}}}, r"reference.sets.b.weigth: unknown key; did you mean weight"),
        ({"sets": {"b": {"inputs": ["c"], "weight": 0}}}, "reference.sets.b.weight: expected .*greater than 0"),
        ({"sets": {"b/c": {"inputs": ["c"]}}}, "reference.sets.b/c"),
    ],
)
def test_a_reference_that_cannot_be_is_refused_by_its_key(reference, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(small_config("/corpus", "/workspace", reference=reference), "config.yaml")


@pytest.mark.parametrize(
    ("documents", "share", "message"),
    [
        (10, 0.99, r"reference\.heldout_share: .* found 0\.99, .* all 10 documents of reference\.inputs"),
        (1, 0.2, r"reference\.inputs: expected at least 2 documents, found 1"),
    ],
)
def test_a_set_that_leaves_nothing_for_the_direction_is_refused(tmp_path, configured, documents, share, message):
    uri = str(write_jsonl(tmp_path / "few.jsonl", topic_records("harbour", documents, seed=2)))
    config = configured("few", {"inputs": [uri], "heldout_share": share})
    with pytest.raises(ConfigError, match=message):
        split_reference(config.reference, config.heldout, config.seed)


def doubled(tmp_path, config, **changes):
    """Configure a reference that holds each document twice, the second time inside a longer one under another id."""
    records = [r for r in topic_records("harbour", 60, seed=5) if len(r["text"].split()) > 30][:20]
    longer = [{**r, "id": f"{r['id']}-twice", "text": f"before it {r['text']} after it"} for r in records]
    uri = str(write_jsonl(tmp_path / "doubled.jsonl", records + longer))
    return config("doubled", {"inputs": [uri]}, **changes)


@pytest.mark.parametrize("words", [5, None])
def test_a_document_that_holds_measured_text_is_left_out_of_the_direction(tmp_path, configured, words):
    config = doubled(tmp_path, configured, heldout__overlap_words=words)
    own, measured, _ = split_reference(config.reference, config.heldout, config.seed)
    assert len(measured) == 8
    names = {document.id.removesuffix("-twice") for document in measured}
    twins = [document.id for document in own if document.id.removesuffix("-twice") in names]
    assert len(own) == (32 if words is None else 40 - 2 * len(names))
    assert bool(twins) == (words is None)


def test_what_is_left_out_makes_room_for_other_documents(tmp_path, configured):
    config = doubled(tmp_path, configured)
    few = config.reference.model_copy(update={"max_documents": 10})
    own, measured, _ = split_reference(few, config.heldout, config.seed)
    assert len(own) == 10
    assert not {d.id.removesuffix("-twice") for d in own} & {d.id.removesuffix("-twice") for d in measured}


def test_a_reference_that_is_all_measured_is_refused(tmp_path, configured, corpus):
    heldout = str(corpus / "heldout" / "harbour.jsonl")
    config = configured("all", {"inputs": [heldout]}, heldout__reference_domain="harbour")
    with pytest.raises(ConfigError, match=r"reference.inputs: expected .*, found none: all 8 hold text"):
        split_reference(config.reference, config.heldout, config.seed)
