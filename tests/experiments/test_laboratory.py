"""A laboratory holds a fair sample, and influence as the core computes it one document at a time."""

import dataclasses

import numpy as np
import torch
from experiments.conftest import TINY

from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.influence import score_documents
from quad_tasks.core.model import make_batches
from quad_tasks.experiments.laboratory import build_laboratories
from quad_tasks.experiments.sample import SCORES, read_inputs
from quad_tasks.storage.factors import load_tensors
from quad_tasks.storage.store import open_store


def test_the_sample_holds_every_text_once_however_the_pool_is_cut_up(tiny_config):
    texts = read_inputs(tiny_config, dataclasses.replace(TINY, documents=1000))
    assert len(texts.pool) == len(set(texts.pool)) == 75
    turned = tiny_config.model_copy(
        update={"pool": tiny_config.pool.model_copy(update={"inputs": tiny_config.pool.inputs[2::-1]})}
    )
    assert set(read_inputs(turned, TINY).pool) <= set(texts.pool)
    assert set(texts.others) == {"sums", "law"}
    assert not set(texts.reference) & set(texts.measured)


def test_the_same_inputs_and_size_are_built_once(tiny_laboratory, tiny_config):
    store = open_store(tiny_laboratory.workspace)
    before = sorted(store.list(tiny_laboratory.key))
    assert build_laboratories(tiny_laboratory.workspace, tiny_config, TINY) == [tiny_laboratory.key]
    assert sorted(store.list(tiny_laboratory.key)) == before


def test_influence_without_a_hessian_is_the_dot_product_of_two_gradients(tiny_laboratory):
    model = tiny_laboratory.model
    maps = [model.get_submodule(module).weight for block in find_blocks(model, "joint") for module in block.modules]

    def gradient(ids):
        with torch.enable_grad():
            tokens = torch.tensor([ids])
            loss = model(input_ids=tokens, labels=tokens).loss * (len(ids) - 1)
            return torch.cat([g.flatten() for g in torch.autograd.grad(loss, maps)]).double()

    for parameter in maps:
        parameter.requires_grad_(True)
    texts, tokenizer = tiny_laboratory.texts, tiny_laboratory.tokenizer
    reference = [
        tokenizer(text, add_special_tokens=False)["input_ids"][: TINY.window_tokens] for text in texts.reference
    ]
    wanted = sum(gradient(ids) for ids in reference) / sum(len(ids) - 1 for ids in reference)
    for row in (0, 17, 41):
        expected = float(wanted @ gradient(tiny_laboratory.documents[row]))
        np.testing.assert_allclose(tiny_laboratory.influence["identity"][row], expected, rtol=1e-4)


def test_scoring_along_all_kinds_at_once_is_scoring_along_each(tiny_laboratory):
    store = open_store(tiny_laboratory.workspace)
    batches, owner = make_batches(tiny_laboratory.documents[:20], TINY.window_tokens, TINY.batch_tokens)
    for name in SCORES:
        arrays, _ = load_tensors(store, f"{tiny_laboratory.key}/{name}.safetensors")
        direction = {block: torch.from_numpy(values) for block, values in arrays.items()}
        alone = score_documents(tiny_laboratory.model, batches, direction).influence[np.argsort(owner.numpy())]
        np.testing.assert_allclose(tiny_laboratory.influence[name][:20], alone, rtol=1e-4, atol=1e-6)


def test_every_document_is_scored_along_every_direction(tiny_laboratory):
    n = len(tiny_laboratory.documents)
    assert n == TINY.documents
    for name in SCORES:
        assert tiny_laboratory.influence[name].shape == (n,)
    assert tiny_laboratory.hidden.shape == (n, TINY.width)
    sea = np.array([text.startswith("the captain") for text in tiny_laboratory.texts.pool])
    influence = tiny_laboratory.per_token["joint"]
    assert influence[sea].mean() > influence[~sea].mean()
    assert tiny_laboratory.seconds["score"] > 0
