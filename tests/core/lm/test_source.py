"""A GGUF file becomes a model of floating-point weights and its tokenizer; what cannot be read is refused by name."""

import importlib.util

import numpy as np
import pytest
import torch
from tiny_gguf import TEXTS, write_gguf

from quad_tasks.core.lm import source
from quad_tasks.core.lm.model import ModelError
from quad_tasks.core.lm.source import dequantised, describe_gguf, load_source
from quad_tasks.core.lm.tokenizer import train_tokenizer

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in source.PACKAGES), reason="gguf or accelerate is missing"
)


def q4_1(weights: np.ndarray) -> np.ndarray:
    """Round to 16 levels between the least and the largest of every 32 weights, both kept as float16."""
    rows = weights.reshape(-1, 32)
    low = rows.min(axis=1, keepdims=True)
    step = (rows.max(axis=1, keepdims=True) - low) / np.float32(15)
    levels = np.floor((rows - low) / step + np.float32(0.5)).clip(0, 15)
    kept = step.astype(np.float16).astype(np.float32), low.astype(np.float16).astype(np.float32)
    return (levels * kept[0] + kept[1]).reshape(weights.shape)


def test_quantised_weights_come_back_at_their_levels_and_the_others_unchanged(tmp_path):
    original = write_gguf(tmp_path / "tiny.gguf", "Q4_1")
    model, tokenizer = load_source(tmp_path / "tiny.gguf")
    found = model.state_dict()
    for name, weight in original.state_dict().items():
        if ".mlp." in name:
            np.testing.assert_allclose(found[name].numpy(), q4_1(weight.numpy()), atol=1e-6)
            assert not torch.equal(found[name], weight)
        else:
            assert torch.equal(found[name], weight), name
    assert tokenizer(TEXTS)["input_ids"] == train_tokenizer(TEXTS, 300)(TEXTS)["input_ids"]


def test_what_was_dequantised_is_counted_by_type(tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    stored = describe_gguf(tmp_path / "tiny.gguf")
    assert stored == {"Q8_0": 6, "F32": 14}
    assert dequantised(stored) == {"Q8_0": 6}


def test_a_saved_model_is_loaded_as_one_that_never_was_quantised(tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    model, tokenizer = load_source(tmp_path / "tiny.gguf")
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in (tmp_path / "saved" / "config.json").read_text()
    again, _ = load_source(tmp_path / "saved")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_missing_packages_are_named_with_how_to_install_them(tmp_path, monkeypatch):
    write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr(source, "PACKAGES", ("gguf", "no_such_package"))
    with pytest.raises(ModelError, match=r"found no no_such_package: pip install -c constraints.txt '\.\[gguf\]'"):
        load_source(tmp_path / "tiny.gguf")


@pytest.mark.parametrize("damage", ["absent", "cut", "text"])
def test_a_damaged_file_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "tiny.gguf"
    if damage == "cut":
        write_gguf(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "text":
        path.write_text("version https://git-lfs.example/spec/v1\n")
    with pytest.raises(ModelError, match=r"tiny\.gguf"):
        load_source(path)
