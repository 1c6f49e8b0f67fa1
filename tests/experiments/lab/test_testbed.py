"""A testbed is built once, and holds influence as the core computes it one document at a time."""

import numpy as np
import pytest
import torch
from experiments.conftest import TINY

from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.influence import score_documents
from quad_tasks.core.lm.batching import make_batches
from quad_tasks.experiments.lab import testbed
from quad_tasks.experiments.lab.corpus_sample import SCORES
from quad_tasks.experiments.lab.testbed import build_testbeds
from quad_tasks.storage.store import open_store
from quad_tasks.storage.tensors import load_tensors


def test_the_same_inputs_and_size_are_built_once(tiny_testbed, tiny_config):
    store = open_store(tiny_testbed.workspace)
    before = sorted(store.list(tiny_testbed.key))
    assert build_testbeds(tiny_testbed.workspace, tiny_config, TINY) == [tiny_testbed.key]
    assert sorted(store.list(tiny_testbed.key)) == before


@pytest.mark.parametrize("version", ["METHOD", "DRAW"])
def test_a_testbed_trained_or_drawn_another_way_is_not_used_again(tiny_testbed, monkeypatch, version):
    size = testbed._size_body(TINY)
    store = open_store(tiny_testbed.workspace)
    assert testbed._write_sample(store, tiny_testbed.texts, size) == tiny_testbed.key
    monkeypatch.setattr(testbed, version, getattr(testbed, version) + 1)
    assert testbed._write_sample(store, tiny_testbed.texts, size) != tiny_testbed.key


def test_influence_without_a_hessian_is_the_dot_product_of_two_gradients(tiny_testbed):
    model = tiny_testbed.model
    maps = [model.get_submodule(module).weight for block in find_blocks(model, "joint") for module in block.modules]

    def gradient(ids):
        with torch.enable_grad():
            tokens = torch.tensor([ids])
            loss = model(input_ids=tokens, labels=tokens).loss * (len(ids) - 1)
            return torch.cat([g.flatten() for g in torch.autograd.grad(loss, maps)]).double()

    for parameter in maps:
        parameter.requires_grad_(True)
    texts, tokenizer = tiny_testbed.texts, tiny_testbed.tokenizer
    reference = [
        tokenizer(text, add_special_tokens=False)["input_ids"][: TINY.window_tokens] for text in texts.reference
    ]
    wanted = sum(gradient(ids) for ids in reference) / sum(len(ids) - 1 for ids in reference)
    for row in (0, 17, 41):
        expected = float(wanted @ gradient(tiny_testbed.documents[row]))
        np.testing.assert_allclose(tiny_testbed.influence["identity"][row], expected, rtol=1e-4)


def test_scoring_along_all_kinds_at_once_is_scoring_along_each(tiny_testbed):
    store = open_store(tiny_testbed.workspace)
    batches, owner = make_batches(tiny_testbed.documents[:20], TINY.window_tokens, TINY.batch_tokens)
    for name in SCORES:
        arrays, _ = load_tensors(store, f"{tiny_testbed.key}/{name}.safetensors")
        direction = {block: torch.from_numpy(values) for block, values in arrays.items()}
        alone = score_documents(tiny_testbed.model, batches, direction).influence[np.argsort(owner.numpy())]
        np.testing.assert_allclose(tiny_testbed.influence[name][:20], alone, rtol=1e-4, atol=1e-6)


def test_every_document_is_scored_along_every_direction(tiny_testbed):
    n = len(tiny_testbed.documents)
    assert n == TINY.documents
    for name in SCORES:
        assert tiny_testbed.influence[name].shape == (n,)
    assert tiny_testbed.hidden.shape == (n, TINY.width)
    sea = np.array([text.startswith("the captain") for text in tiny_testbed.texts.pool])
    influence = tiny_testbed.per_token()
    assert influence[sea].mean() > influence[~sea].mean()
    assert tiny_testbed.seconds["score"] > 0
