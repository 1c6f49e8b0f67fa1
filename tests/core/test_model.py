import pytest
import torch

from quad_tasks.core.model import (
    LlamaSize,
    ModelError,
    bucket_batches,
    encode,
    fresh_llama,
    load_model,
    load_tokenizer,
    make_batches,
    split_windows,
    tokenizer_sha256,
    train_tokenizer,
)

TEXTS = ["the ship left the harbour", "rain fell on the deck", "a gull cried over the mast"] * 4


@pytest.mark.parametrize("n_tokens", [0, 1, 2, 5, 6, 9, 10, 23])
def test_every_token_but_the_first_is_a_target_exactly_once(n_tokens):
    windows = split_windows(list(range(n_tokens)), 5)
    targets = [token for window in windows for token in window[1:]]
    assert targets == list(range(1, n_tokens))
    assert all(2 <= len(window) <= 5 for window in windows)


def test_batches_hold_every_sequence_once_within_the_token_budget():
    lengths = [3, 17, 5, 5, 9, 40, 2, 8]
    batches = bucket_batches(lengths, batch_tokens=20)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(b) * max(lengths[i] for i in b) <= 20 or len(b) == 1 for b in batches)


def test_padded_windows_give_back_the_documents():
    documents = [[7, 8, 9, 10, 11, 12], [1, 2], [5, 6, 7]]
    batches, owner = make_batches(documents, window_tokens=4, batch_tokens=8)
    rows = [
        ids[mask.bool()].tolist()
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    targets = {n: [] for n in range(3)}
    for row, document in sorted(zip(rows, owner.tolist(), strict=True), key=lambda pair: pair[0]):
        targets[document] += row[1:]
    assert targets == {0: [8, 9, 10, 11, 12], 1: [2], 2: [6, 7]}


def test_windows_of_a_document_have_different_label_seeds_and_equal_documents_equal_ones():
    batches, owner = make_batches([[1] * 9, [1] * 9], 5, 64, seeds=[3, 3])
    seeds = torch.cat([batch["seed"] for batch in batches])
    by_document = [sorted(seeds[owner == n].tolist()) for n in range(2)]
    assert by_document[0] == by_document[1]
    assert len(set(by_document[0])) == len(by_document[0])


def test_a_trained_tokenizer_is_reversible_and_its_digest_survives_saving(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 300)
    text = "unseen ünïcode \u2028 text"
    assert tokenizer.decode(encode(tokenizer, [text])[0]) == text
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_sha256(load_tokenizer(tmp_path)) == tokenizer_sha256(tokenizer)


def test_a_fresh_model_follows_its_seed_and_leaves_the_global_generator_alone():
    size = LlamaSize(width=16, layers=1, heads=2, key_value_heads=1, mlp_width=24)
    before = torch.random.get_rng_state()
    first, second, other = (fresh_llama(size, 64, 32, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.lm_head.weight, second.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_source_that_is_no_model_is_named(load, tmp_path):
    with pytest.raises(ModelError, match=f"{tmp_path}: expected a"):
        load(tmp_path)
