"""Windows cover a document once, and batches hold every window within their tokens."""

import pytest
import torch

from quad_tasks.core.lm.batching import bucket_batches, make_batches, split_windows

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


def test_batches_of_like_length_hold_no_sequence_much_shorter_than_their_longest():
    lengths = [3, 17, 5, 5, 9, 40, 2, 8]
    batches = bucket_batches(lengths, batch_tokens=100, least_share=0.75)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(min(lengths[i] for i in b) >= 0.75 * max(lengths[i] for i in b) for b in batches)
    assert [4, 7] in batches
