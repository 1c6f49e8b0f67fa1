"""A checkpoint that cannot be used is refused from its files, with path and cause; one that can is let pass."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForSequenceClassification,
    LlamaModel,
)

from quad_tasks.core.blocks import UnsupportedLayer
from quad_tasks.core.lm.model import LlamaSize, ModelError, fresh_llama, load_model
from quad_tasks.core.lm.tokenizer import train_tokenizer
from quad_tasks.runtime.check_checkpoint import check_checkpoint, check_values, find_folder, model_tensors

WINDOW = 32
UP_PROJECTION = "model.layers.1.mlp.up_proj.weight"
KEPT_UNREAD = "model.layers.0.self_attn.rotary_emb.inv_freq"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the ship left the harbour and the rain came"], 280)


@pytest.fixture
def folder(tmp_path, tokenizer):
    """A Llama of two layers with a head of its own."""
    model = fresh_llama(LlamaSize(16, 2, 2, 1, 24), len(tokenizer), WINDOW, 0)
    model.config.tie_word_embeddings = False
    untied = type(model)(model.config)
    untied.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change_config(folder, **changes):
    body = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(body | changes))


def change_weights(folder, change):
    """Write the weights that `change` makes of those that are there."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def filled(name, value):
    """Return a change that puts `value` into the first entry of a tensor, or with None zeros into all of it."""

    def change(weights):
        if value is None:
            weights[name].zero_()
        else:
            weights[name].view(-1)[0] = value
        return weights

    return change


def resave(folder, model_class):
    model_class.from_pretrained(folder).save_pretrained(folder)


def without_unknown(folder):
    tokenizer = Tokenizer(models.WordLevel({"ship": 0, "rain": 1}, unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def drop_characters(folder):
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    tokenizer.save(str(folder / "tokenizer.json"))


def shard(folder):
    """Write the weights to several files and lose the second."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="10KB")
    sorted(folder.glob("*-of-*"))[1].unlink()


def adapter(folder):
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pickled(folder):
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


DAMAGES = {
    "missing": (lambda f: change_weights(f, lambda w: {k: v for k, v in w.items() if k != UP_PROJECTION}),
                rf"1 missing \({UP_PROJECTION}\)"),
    "headless": (lambda f: resave(f, LlamaModel), r"1 missing \(lm_head.weight\); without its head"),
    "classifier": (lambda f: resave(f, LlamaForSequenceClassification), r"1 left over \(score.weight\)"),
    "left over": (lambda f: change_config(f, num_hidden_layers=1, layer_types=None), "9 left over .*model.layers.1"),
    "prefixed": (lambda f: change_weights(f, lambda w: {f"_orig_mod.{k}": v for k, v in w.items()}),
                 "their names begin with '_orig_mod.'"),
    "another shape": (lambda f: change_config(f, intermediate_size=48), r"down_proj.weight \[16, 24\] in place of"),
    "cut short": (cut, "model.safetensors: expected a whole safetensors file, found .* bytes"),
    "pointer": (lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid x\n"),
                "model.safetensors: expected weights, found a Git LFS pointer"),
    "lost file": (shard, "index.json: expected .* files of weights, found model-00002-of-"),
    "pickled": (pickled, "expected weights in model.safetensors, found pytorch_model.bin"),
    "NaN": (lambda f: change_weights(f, filled(UP_PROJECTION, float("nan"))), f"found NaN in {UP_PROJECTION}"),
    "infinite": (lambda f: change_weights(f, filled(UP_PROJECTION, float("inf"))), "found infinite values in"),
    "zero": (lambda f: change_weights(f, filled(UP_PROJECTION, None)), f"nothing but zeros in {UP_PROJECTION}"),
    "adapter": (adapter, "found an adapter: merge it"),
    "no configuration": (lambda f: (f / "config.json").unlink(), "found no config.json"),
    "no JSON": (lambda f: (f / "config.json").write_text("{not"), "config.json: expected JSON"),
    "no type": (lambda f: change_config(f, model_type=None), "config.json: .*found no model_type"),
    "unknown type": (lambda f: change_config(f, model_type="quasillama"), "model: expected a causal .*quasillama"),
    "no language model": (lambda f: change_config(f, model_type="t5"), "model: expected a causal language model"),
    "quantised": (lambda f: change_config(f, quantization_config={"quant_method": "fp8"}), r"quantised \(fp8\)"),
    "attention": (lambda f: change_config(f, _attn_implementation="flash_attention_2"), "found 'flash_attention_2'"),
    "dtype": (lambda f: change_config(f, torch_dtype="auto"), "torch_dtype: expected a torch dtype .*found 'auto'"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"expected a tokenizer .*found none"),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "model: expected a tokenizer: "),
    "no unknown token": (without_unknown, "expected a tokenizer for any text, found that 'a' fails"),
    "silent tokenizer": (drop_characters, "found that 'é' gives no token"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_with_path_and_cause(folder, damage):
    inflict, message = DAMAGES[damage]
    inflict(folder)
    with pytest.raises(ModelError, match=message) as refused:
        check_checkpoint(str(folder), WINDOW)
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_whole_checkpoint_passes_and_loads_with_its_own_weights(folder):
    stored = load_file(folder / "model.safetensors")
    check_checkpoint(str(folder), WINDOW)
    loaded = load_model(folder).state_dict()
    assert {name: bool(torch.equal(loaded[name], values)) for name, values in stored.items()} == dict.fromkeys(
        stored, True
    )


@pytest.mark.parametrize("damage", ["missing", "headless", "left over", "prefixed", "another shape"])
def test_loading_refuses_what_is_not_the_whole_model(folder, damage):
    inflict, _ = DAMAGES[damage]
    inflict(folder)
    with pytest.raises(ModelError, match=str(folder)):
        load_model(folder)


def test_tensors_that_old_checkpoints_hold_beside_their_weights_pass(folder):
    change_weights(folder, lambda weights: {**weights, KEPT_UNREAD: torch.ones(4)})
    check_checkpoint(str(folder), WINDOW)


def test_names_without_the_base_models_prefix_pass(tmp_path, tokenizer):
    shape = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": WINDOW, "bos_token_id": 0, "eos_token_id": 0}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    extra = {"h.0.attn.bias": torch.ones(1, 1, WINDOW, WINDOW)}
    change_weights(tmp_path, lambda w: {k.removeprefix("transformer."): v for k, v in w.items()} | extra)
    check_checkpoint(str(tmp_path), WINDOW)
    with pytest.raises(ModelError, match=f"expected at most {WINDOW}, the positions that {tmp_path} has learned"):
        check_checkpoint(str(tmp_path), WINDOW + 1)


def test_an_unsupported_architecture_is_named_before_its_weights_are_looked_at(tmp_path, tokenizer):
    BloomForCausalLM(BloomConfig(vocab_size=300, hidden_size=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    cut(tmp_path)
    with pytest.raises(UnsupportedLayer, match="'bloom' is not in the table"):
        check_checkpoint(str(tmp_path), WINDOW)


def test_a_loaded_model_is_checked_as_its_files_are(folder):
    model = load_model(folder)
    check_values("m", model_tensors(model))
    model.get_parameter(UP_PROJECTION).data.zero_()
    with pytest.raises(ModelError, match=f"m: expected trained weights, found nothing but zeros in {UP_PROJECTION}"):
        check_values("m", model_tensors(model))


def test_a_bias_may_be_zero():
    check_values("m", iter([("a.bias", torch.zeros(3), True), ("b.weight", torch.zeros(3), False)]))


def test_a_path_that_is_no_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    for path, message in ((tmp_path / "file", "found the file"), (tmp_path / "none", "found no such folder")):
        with pytest.raises(ModelError, match=message):
            find_folder(str(path))
