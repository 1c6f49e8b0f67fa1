import pytest
import torch

from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.capture import backward, capture
from quad_tasks.core.loss import frozen, head_weight, read_batch


def _n_hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def _is_frozen(model):
    parameters_frozen = not any(parameter.requires_grad for parameter in model.parameters())
    return parameters_frozen and not any(module.training for module in model.modules())


def _fail_inside(context, holds):
    with context:
        assert holds()
        raise ZeroDivisionError("inside")


def test_hooks_are_removed_after_an_exception_inside(tiny):
    model = tiny.tiny_model("llama")
    with pytest.raises(ZeroDivisionError, match="inside"):
        _fail_inside(capture(model, find_blocks(model), lambda *_: None), lambda: _n_hooks(model) == 2 * 7)
    assert _n_hooks(model) == 0


def test_hooks_are_removed_when_hooking_itself_fails(tiny):
    model = tiny.tiny_model("llama")
    blocks = find_blocks(model)
    del model.model.layers[1].mlp.down_proj
    with pytest.raises(AttributeError, match="down_proj"), capture(model, blocks, lambda *_: None):
        pass
    assert _n_hooks(model) == 0


def test_a_module_without_a_gradient_is_an_error(tiny):
    model = tiny.tiny_model("llama")
    with pytest.raises(RuntimeError, match="expected a gradient at every tracked module"):  # noqa: SIM117
        with capture(model, find_blocks(model), lambda *_: None):
            pass


def test_flags_are_restored_after_an_exception_inside(tiny):
    model = tiny.tiny_model("llama")
    model.train()
    model.model.norm.eval()
    model.lm_head.weight.requires_grad_(False)
    with pytest.raises(ZeroDivisionError, match="inside"):
        _fail_inside(frozen(model), lambda: _is_frozen(model))
    assert [name for name, module in model.named_modules() if not module.training] == ["model.norm"]
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["lm_head.weight"]


def test_the_backward_pass_stops_at_the_first_tracked_map(tiny):
    """With MLP blocks only, the first layer's attention is outside the graph."""
    model = tiny.tiny_model("llama")
    reached = []

    def watch(_module, _inputs, output):
        reached.append(output.requires_grad)

    handle = model.model.layers[0].self_attn.o_proj.register_forward_hook(watch)
    with frozen(model):
        documents = read_batch(tiny.pad(tiny.random_documents([5])), torch.device("cpu"))
        backward(model, documents, find_blocks(model, "none"), lambda *_: None, head_weight(model))
    handle.remove()
    assert reached == [False]


def test_received_tensors_make_up_autograd_s_weight_gradients(tiny):
    model = tiny.tiny_model("gpt_neox")
    blocks = find_blocks(model, "split")
    document = tiny.random_documents([6])[0]
    found = {}

    def receive(group, a_PI, deltas_PO):
        a_PI = torch.cat([a_PI, a_PI.new_ones(len(a_PI), 1)], dim=1)
        found.update({block.name: delta.T @ a_PI for block, delta in zip(group, deltas_PO, strict=True)})

    with frozen(model):
        backward(model, read_batch(tiny.pad([document]), torch.device("cpu")), blocks, receive, head_weight(model))
    gradients = tiny.dense_gradient(model, document)
    torch.testing.assert_close(found, {block.name: tiny.dense_block(model, block, gradients) for block in blocks})
