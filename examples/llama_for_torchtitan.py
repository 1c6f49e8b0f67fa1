"""What torchtitan 0.3.0 cannot be told on its command line: a checkpoint's shape, and how the selection is read.

`torchtitan.train --module llama_for_torchtitan --config from_checkpoint` imports this file, which is on PYTHONPATH,
and calls the function. torchtitan ships the sizes of Llama 3; any other is built here from the `config.json` in the
folder that TITAN_CHECKPOINT names, as torchtitan's own llama3 module builds its sizes.
"""

import json
import os
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import datasets
import torch.nn as nn
from torchtitan.components.checkpoint import CheckpointManager
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw
from torchtitan.config import TrainingConfig
from torchtitan.distributed.pipeline_parallel import pipeline_llm
from torchtitan.hf_datasets import DatasetConfig
from torchtitan.hf_datasets.text_datasets import DATASETS, HuggingFaceTextDataLoader
from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm
from torchtitan.models.common.config_utils import get_attention_config, make_ffn_config, make_gqa_config
from torchtitan.models.llama3 import Llama3Model, parallelize_llama
from torchtitan.models.llama3.model import Llama3TransformerBlock
from torchtitan.models.llama3.state_dict_adapter import Llama3StateDictAdapter
from torchtitan.protocols.model_spec import ModelSpec
from torchtitan.trainer import Trainer

START = {"weight": partial(nn.init.normal_, std=0.02)}
"""Every weight is then read from the checkpoint; torchtitan asks for a start all the same."""
ONES = {"weight": nn.init.ones_}


def from_checkpoint() -> Trainer.Config:
    """Configure a training of the checkpoint's model; the command line names the rest."""
    shape = json.loads(Path(os.environ["TITAN_CHECKPOINT"], "config.json").read_text())
    DATASETS["selection"] = DatasetConfig(path="", loader=read_documents, sample_processor=itemgetter("text"))
    model = ModelSpec(
        name="llama3",
        flavor="checkpoint",
        model=llama(shape),
        parallelize_fn=parallelize_llama,
        pipelining_fn=pipeline_llm,
        post_optimizer_build_fn=None,
        state_dict_adapter=Llama3StateDictAdapter,
    )
    return Trainer.Config(
        model_spec=model,
        loss=ChunkedLossWrapper.Config(loss_fn=CrossEntropyLoss.Config(global_vocab_size=shape["vocab_size"])),
        optimizer=default_adamw(lr=1e-4, weight_decay=0.01),
        lr_scheduler=LRSchedulersContainer.Config(),
        training=TrainingConfig(),
        dataloader=HuggingFaceTextDataLoader.Config(dataset="selection"),
        metrics=MetricsProcessor.Config(),
        checkpoint=CheckpointManager.Config(),
    )


def read_documents(folder: str) -> datasets.Dataset:
    """Read the folder of `--dataloader.dataset-path`."""
    return datasets.load_dataset("parquet", data_files=str(Path(folder, "*.parquet")), split="train")


def llama(shape: dict[str, Any]) -> Llama3Model.Config:
    """Build torchtitan's model of a `config.json` of LlamaForCausalLM.

    Raises:
        ValueError: torchtitan's Llama computes something else.
    """
    for key, expected in {
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }.items():
        if shape.get(key, expected) != expected:
            raise ValueError(f"config.json: expected {key} {expected!r}, found {shape[key]!r}")
    width, vocabulary = shape["hidden_size"], shape["vocab_size"]
    norm = RMSNorm.Config(normalized_shape=width, eps=shape["rms_norm_eps"], param_init=ONES)
    return Llama3Model.Config(
        dim=width,
        vocab_size=vocabulary,
        enable_weight_tying=shape.get("tie_word_embeddings", False),
        tok_embeddings=Embedding.Config(num_embeddings=vocabulary, embedding_dim=width, param_init=START),
        norm=norm,
        lm_head=Linear.Config(in_features=width, out_features=vocabulary, param_init=START),
        layers=[block(shape) for _ in range(shape["num_hidden_layers"])],
    )


def block(shape: dict[str, Any]) -> Llama3TransformerBlock.Config:
    """Build one layer."""
    width = shape["hidden_size"]
    norm = partial(RMSNorm.Config, normalized_shape=width, eps=shape["rms_norm_eps"], param_init=ONES)
    return Llama3TransformerBlock.Config(
        attention_norm=norm(),
        ffn_norm=norm(),
        attention=make_gqa_config(
            dim=width,
            n_heads=shape["num_attention_heads"],
            n_kv_heads=shape["num_key_value_heads"],
            head_dim=head_width(shape),
            wqkv_param_init=START,
            wo_param_init=START,
            inner_attention=get_attention_config("flex"),
            fuse_qkv=True,
            rope=rope(shape),
        ),
        feed_forward=make_ffn_config(
            dim=width, hidden_dim=shape["intermediate_size"], w1_param_init=START, w2w3_param_init=START
        ),
    )


def head_width(shape: dict[str, Any]) -> int:
    """Give the width of a head, which old files leave out."""
    return shape.get("head_dim") or shape["hidden_size"] // shape["num_attention_heads"]


def rope(shape: dict[str, Any]) -> ComplexRoPE.Config:
    """Build the rotary positions: `rope_parameters` since transformers 5, before it `rope_theta` and `rope_scaling`.

    Raises:
        ValueError: another scaling than none and Llama 3's.
    """
    given = {"rope_theta": shape.get("rope_theta", 10_000.0), **(shape.get("rope_scaling") or {}),
             **(shape.get("rope_parameters") or {})}  # fmt: skip
    plain = ComplexRoPE.Config(
        dim=head_width(shape), max_seq_len=shape["max_position_embeddings"], theta=given["rope_theta"]
    )
    kind = given.get("rope_type", "default")
    if kind == "default":
        return plain
    if kind != "llama3":
        raise ValueError(f"config.json: expected rope_type default or llama3, found {kind!r}")
    plain.scaling = "llama"
    plain.scaling_factor = given["factor"]
    plain.low_freq_factor = given["low_freq_factor"]
    plain.high_freq_factor = given["high_freq_factor"]
    plain.original_max_position_embeddings = given["original_max_position_embeddings"]
    return plain
