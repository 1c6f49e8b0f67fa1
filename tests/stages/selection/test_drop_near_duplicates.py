"""No two selected texts say the same, and what the model read is among what influence is predicted from: one run."""

import itertools

import numpy as np
import pytest
import torch
from small_pool import TOPICS, small_config, stored, topic_records, write_corpus, write_jsonl

from flows.select_data import select_data
from quad_tasks.commands.inspect import inspect_document
from quad_tasks.config.load import parse_config
from quad_tasks.core.lm.batching import split_windows
from quad_tasks.runtime.checkpoints import load_checkpoint
from quad_tasks.runtime.run import pinned_pool, starting_checkpoint
from quad_tasks.stages.influence import extract_states
from quad_tasks.storage.positions import read_positions, read_table
from quad_tasks.storage.store import open_store


def jaccard(a: str, b: str) -> float:
    first, second = ({tuple(t.split()[i : i + 5]) for i in range(max(len(t.split()) - 4, 1))} for t in (a, b))
    return len(first & second) / len(first | second)


@pytest.fixture(scope="module")
def copied(dask_client, tmp_path_factory):
    """A finished run on a pool in which two thirds of the documents have an edited copy; half its budget is general."""
    directory = write_corpus(tmp_path_factory.mktemp("copied"))
    for topic in TOPICS:
        records = [r for r in topic_records(topic, 40, seed=0) if len(r["text"].split()) > 20]
        copies = [{**r, "id": f"{r['id']}-copy", "text": r["text"] + " edited"} for r in records]
        shouted = [{**r, "id": f"{r['id']}-shout", "text": r["text"].upper().replace(" ", "  ")} for r in records]
        write_jsonl(directory / "pool" / f"{topic}-copies.jsonl", copies + shouted)
    body = small_config(
        directory,
        str(tmp_path_factory.mktemp("workspace")),
        selection={"budget_tokens": 3000, "general_share": 0.5, "near_duplicate_cosine": None},
        bandit__features="hidden_states",
        training__stages=1,
        training__frontier=[],
    )
    config = parse_config(body, "copied")
    select_data(config)
    return config


def selected_texts(config) -> list[str]:
    store = open_store(config.workspace)
    parts = stored(store, f"runs/{config.run}/selection/manifest.json")["parts"]
    return [t for p in parts for t in read_table(store, f"runs/{config.run}/selection/{p['name']}")["text"].to_pylist()]


def test_no_two_selected_texts_share_their_word_sequences(copied):
    texts = [text.lower() for text in selected_texts(copied)]
    assert max(jaccard(a, b) for a, b in itertools.combinations(texts, 2)) < copied.selection.near_duplicate_overlap
    chosen = stored(open_store(copied.workspace), f"runs/{copied.run}/stage-00/selected.json")
    assert chosen["near_duplicates"]
    assert chosen["tokens"] > 0.95 * copied.selection.budget_tokens


def test_a_document_left_out_for_its_words_says_so(copied):
    store, version = open_store(copied.workspace), pinned_pool(open_store(copied.workspace), copied.run)
    dropped = stored(store, f"runs/{copied.run}/stage-00/selected.json")["near_duplicates"]
    name = read_positions(store, version, np.array(dropped[:1]), ["id"])["id"][0].as_py()
    assert "near-duplicate" in inspect_document(copied, name)["reason"]


def test_the_model_reads_the_pool_once_and_its_states_are_candidates(copied):
    store, version = open_store(copied.workspace), pinned_pool(open_store(copied.workspace), copied.run)
    key = extract_states.states_of(store, version, copied.model_use())
    features = stored(store, f"runs/{copied.run}/stage-00/selected.json")["prediction"]["features"]
    assert set(features) <= {"embedding", "length", "tokens", "states", "loss"}
    positions = np.array([7, 3, 11])
    found = extract_states.load_states(store, key, positions)
    model, tokenizer = load_checkpoint(store, starting_checkpoint(store, version), "float32", "cpu")
    window = copied.model.window_tokens
    for text, row in zip(read_positions(store, version, positions, ["text"])["text"].to_pylist(), found, strict=True):
        ids = torch.tensor(tokenizer(text)["input_ids"])
        losses, hidden = [], []
        for piece in split_windows(ids, window):
            with torch.no_grad():
                read, logits = model.model(piece[None]).last_hidden_state[0], model(piece[None]).logits[0]
            hidden.append(read[:-1])
            losses.append(torch.nn.functional.cross_entropy(logits[:-1], piece[1:], reduction="none"))
        assert row[-1] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-4)
        np.testing.assert_allclose(row[:-1], torch.cat(hidden).mean(0), rtol=1e-3, atol=1e-5)


def test_states_are_kept_for_other_runs_on_the_pool(copied):
    store, version = open_store(copied.workspace), pinned_pool(open_store(copied.workspace), copied.run)
    key = extract_states.states_of(store, version, copied.model_use())
    before = store.list(key)
    assert extract_states.extract_states.fn(store, version, copied.model_use()) == key
    assert store.list(key) == before
