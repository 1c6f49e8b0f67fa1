"""A document's loss and mean state against the plain path, one document at a time."""

import numpy as np
import pytest
import torch

from quad_tasks.core.lm.hidden_states import losses_and_states


@pytest.mark.parametrize("side", ["left", "right"])
def test_losses_and_states_equal_the_plain_path(tiny, side):
    model = tiny.tiny_model("llama")
    documents = tiny.random_documents([5, 2, 8])
    loss, states = losses_and_states(model, [tiny.pad(documents[:2], side, extra=2), tiny.pad(documents[2:], side)])
    with torch.no_grad():
        expected = [float(tiny.document_loss(model, d)) / (len(d) - 1) for d in documents]
        hidden = [model.model(d[None]).last_hidden_state[0, :-1].mean(0).float().numpy() for d in documents]
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(states, np.stack(hidden), rtol=1e-5, atol=1e-7)


def test_no_batch_is_no_row(tiny):
    loss, states = losses_and_states(tiny.tiny_model("gpt2"), [])
    assert (loss.shape, states.shape) == ((0,), (0, 16))
