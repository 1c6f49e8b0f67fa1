import pytest
import torch

from quad_tasks.core import loss
from quad_tasks.core.blocks import UnsupportedLayer

CPU = torch.device("cpu")


@pytest.fixture(params=["one chunk", "a row per chunk"])
def _chunks(request, monkeypatch):
    if request.param == "a row per chunk":
        monkeypatch.setattr(loss, "_CPU_CHUNK_BYTES", 1)


@pytest.mark.usefixtures("_chunks")
def test_losses_equal_the_plain_path(tiny):
    model = tiny.tiny_model("llama")
    documents = tiny.random_documents([5, 2, 8])
    batch = loss.read_batch(tiny.pad(documents, "left", extra=2), CPU)
    with torch.no_grad():
        losses = loss.losses(loss.hidden_states(model, batch), loss.head_weight(model), batch)
        expected = torch.stack([tiny.document_loss(model, document) for document in documents])
    torch.testing.assert_close(torch.stack([part.sum() for part in losses.split(batch.n_targets_N)]), expected)


@pytest.mark.usefixtures("_chunks")
def test_loss_gradient_equals_autograd_through_the_head(tiny):
    model = tiny.tiny_model("llama")
    document = tiny.random_documents([7])[0]
    batch = loss.read_batch(tiny.pad([document], extra=3), CPU)
    hidden = loss.hidden_states(model, batch).detach().requires_grad_()
    logits = model.lm_head(hidden)[0, :-1]
    torch.nn.functional.cross_entropy(logits, document[1:], reduction="sum").backward()
    torch.testing.assert_close(loss.loss_gradient(hidden, loss.head_weight(model), batch), hidden.grad)


def test_left_and_right_padding_read_the_same_documents(tiny):
    documents = tiny.random_documents([3, 6])
    left, right = (loss.read_batch(tiny.pad(documents, side, extra=2, seeds=[5, 6]), CPU) for side in ("left", "right"))
    assert torch.equal(left.ids_NT, right.ids_NT)
    assert torch.equal(left.targets_M, torch.cat([document[1:] for document in documents]))
    assert (left.lengths_N, left.n_targets_N, left.seeds_N) == ((3, 6), (2, 5), (5, 6))


@pytest.mark.parametrize("length", [0, 1])
def test_a_document_without_a_target_is_refused(tiny, length):
    batch = tiny.pad([*tiny.random_documents([4]), torch.zeros(length, dtype=torch.int64)])
    with pytest.raises(ValueError, match=f"row 1 of the batch: expected at least 2 tokens, got {length}"):
        loss.read_batch(batch, CPU)


def test_inverted_distribution_chooses_by_the_running_sum():
    weights = torch.tensor([[1.0, 0.0, 3.0]]).repeat(4, 1)
    uniforms = torch.tensor([[0.0], [0.24], [0.25], [0.999]], dtype=torch.float64)
    assert loss._invert_distribution(weights, uniforms).tolist() == [0, 0, 2, 2]


def test_a_head_with_bias_is_refused(tiny):
    model = tiny.tiny_model("llama")
    model.lm_head = torch.nn.Linear(16, tiny.VOCABULARY)
    with pytest.raises(UnsupportedLayer, match=r"lm_head: expected nn\.Linear without bias"):
        loss.head_weight(model)


def test_low_precision_models_are_summed_in_float32(tiny):
    assert loss.head_weight(tiny.tiny_model("llama").bfloat16()).dtype == torch.float32
