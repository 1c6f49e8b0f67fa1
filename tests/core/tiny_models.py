"""Two-layer causal language models of every supported family, in float64, with random weights away from symmetry."""

import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from quad_tasks.core.blocks import Block

VOCABULARY = 23
_SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
          "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}  # fmt: skip
_GATED = {**_SHAPE, "intermediate_size": 10, "num_key_value_heads": 2}

_BUILDERS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_GATED)),
    "llama_bias": lambda: LlamaForCausalLM(LlamaConfig(**_GATED, attention_bias=True, mlp_bias=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**_GATED, sliding_window=4)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_GATED)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_GATED, head_dim=4)),
    "opt": lambda: OPTForCausalLM(OPTConfig(**_SHAPE, ffn_dim=10, word_embed_proj_dim=16)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=1
        )
    ),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**_SHAPE, intermediate_size=10)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**_GATED)),
}
FAMILIES = tuple(_BUILDERS)


def tiny_model(family: str, seed: int = 0) -> PreTrainedModel:
    """Build a model in float64 and eval mode; every parameter, biases and norms included, is random.

    RMS norms are torch's own and rotary embeddings `FloatingRotary`: transformers' compute in float32 whatever the
    model's dtype, and a float32 rounding there moves a direction by 1e-6 of its largest entry.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _BUILDERS[family]().double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            norm = torch.nn.RMSNorm(module.weight.shape[0], eps=module.variance_epsilon, dtype=torch.float64)
            norm.weight = module.weight
            model.set_submodule(name, norm)
        elif type(module).__name__.endswith("RotaryEmbedding"):
            model.set_submodule(name, FloatingRotary(module))
    return model


class FloatingRotary(torch.nn.Module):
    """A plain rotary embedding in the model's own dtype: Su et al., RoFormer, arXiv 2104.09864, equation 34."""

    def __init__(self, float32: torch.nn.Module) -> None:
        super().__init__()
        self.register_buffer("inv_freq", float32.inv_freq.double(), persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles_BTD = position_ids[:, :, None].to(x.dtype) * self.inv_freq.to(x.dtype)
        angles_BTD = torch.cat((angles_BTD, angles_BTD), dim=-1)
        return angles_BTD.cos(), angles_BTD.sin()


def random_documents(lengths: list[int], seed: int = 0) -> list[Tensor]:
    """Draw documents of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCABULARY, (length,), generator=generator) for length in lengths]


def pad(
    documents: list[Tensor], side: str = "right", extra: int = 0, seeds: list[int] | None = None
) -> dict[str, Tensor]:
    """Make a batch; pads carry the id of an ordinary token, so that only the mask tells them."""
    width = max(len(document) for document in documents) + extra
    ids = torch.full((len(documents), width), 7)
    mask = torch.zeros(len(documents), width, dtype=torch.int64)
    for row, document in enumerate(documents):
        columns = slice(0, len(document)) if side == "right" else slice(width - len(document), width)
        ids[row, columns] = document
        mask[row, columns] = 1
    batch = {"input_ids": ids, "attention_mask": mask}
    return batch if seeds is None else {**batch, "seed": torch.tensor(seeds)}


def document_loss(model: PreTrainedModel, document: Tensor) -> Tensor:
    """Sum -log p over a document's targets, by the plain path: whole logits, one document, no padding."""
    logits = model(input_ids=document[None]).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, document[1:], reduction="sum")


def dense_gradient(model: PreTrainedModel, document: Tensor) -> dict[str, Tensor]:
    """Differentiate `document_loss` by autograd in every parameter."""
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(document_loss(model, document), list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(parameters.items(), gradients, strict=True)
    }


def dense_block(model: PreTrainedModel, block: Block, parameters: dict[str, Tensor]) -> Tensor:
    """Gather a block's [O, I] matrix, biases last, out of tensors named like the model's parameters."""
    rows = []
    for name in block.modules:
        weight = parameters[f"{name}.weight"]
        weight = weight.T if type(model.get_submodule(name)).__name__ == "Conv1D" else weight
        rows.append(torch.cat([weight, parameters[f"{name}.bias"][:, None]], dim=1) if block.bias else weight)
    whole = torch.cat(rows)
    if block.rows is None:
        return whole
    return whole[torch.cat([torch.arange(start, stop) for start, stop in block.rows])]


def gradient_along(
    model: PreTrainedModel, blocks: list[Block], direction: dict[str, Tensor], document: Tensor
) -> float:
    """Take <direction, gradient of the document's loss> from autograd's weight gradients."""
    gradients = dense_gradient(model, document)
    return sum(float((direction[b.name] * dense_block(model, b, gradients)).sum()) for b in blocks)


def random_direction(blocks: list[Block], seed: int = 0) -> dict[str, Tensor]:
    """Draw a direction over the blocks."""
    generator = torch.Generator().manual_seed(seed)
    return {block.name: torch.randn(block.shape, generator=generator, dtype=torch.float64) for block in blocks}
