"""Find the curvature blocks of a causal language model: linear maps that share an input.

Owns the table of architectures and the `Block`. Refuses, with `UnsupportedLayer`, every model with a weight matrix that
is not in the table: a skipped layer would silently make influence wrong. A table was chosen over a walk through all
`nn.Linear`: only the architecture tells which maps share an input and how the rows of a fused map are laid out.

Coordinates: a block's gradient is [O, I]. O runs over the outputs of `modules` in order (restricted to `rows`), I over
the input coordinates, the constant one last where the maps have a bias. A `Conv1D` stores [in, out]; its block is
[O, I] all the same.

Shape suffixes: I block inputs (the constant one included), O block outputs.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

Attention = Literal["joint", "split", "none"]
Rows = tuple[tuple[int, int], ...]
"""Half-open ranges [start, stop) of a fused module's outputs."""


class UnsupportedLayer(ValueError):
    """A module whose weights no block covers; the message names it and what is supported."""


@dataclass(frozen=True)
class Block:
    """Linear maps that read the same input and share one Kronecker-factored curvature.

    Attributes:
        name: unique in the model, e.g. ``model.layers.0.self_attn.qkv``.
        modules: qualified module names, in the order in which their outputs are concatenated.
        bias: whether the last input coordinate is the constant one.
        source: name of the block's input: the first module that reads it. Blocks of equal source share ``A``.
        rows: ranges of a fused module's outputs that belong to this block, in order; None: all outputs.
        shape: (O, I).
    """

    name: str
    modules: tuple[str, ...]
    bias: bool
    source: str
    rows: Rows | None
    shape: tuple[int, int]


@dataclass(frozen=True)
class _Architecture:
    """Names of an architecture's linear maps, relative to one decoder layer.

    Attributes:
        layers: name of the list of decoder layers.
        qkv: three modules (query, key, value), or the one that fuses them.
        heads: in a fused qkv, whether the rows are interleaved head by head or stacked [q; k; v].
        output: the attention output projection.
        mlp: for each input inside the MLP, the modules that read it.
        halves: names of the two stacked halves of a fused MLP module.
    """

    layers: str
    qkv: tuple[str, ...]
    output: str
    mlp: tuple[tuple[str, ...], ...]
    heads: Literal["stacked", "interleaved"] = "stacked"
    halves: Mapping[str, tuple[str, str]] | None = None


_LLAMA = _Architecture(
    layers="model.layers",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    output="self_attn.o_proj",
    mlp=(("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",)),
)
_ARCHITECTURES: Mapping[str, _Architecture] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _LLAMA),
    "opt": _Architecture(
        layers="model.decoder.layers",
        qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        output="self_attn.out_proj",
        mlp=(("fc1",), ("fc2",)),
    ),
    "gpt2": _Architecture(
        layers="transformer.h",
        qkv=("attn.c_attn",),
        output="attn.c_proj",
        mlp=(("mlp.c_fc",), ("mlp.c_proj",)),
    ),
    "gpt_neox": _Architecture(
        layers="gpt_neox.layers",
        qkv=("attention.query_key_value",),
        heads="interleaved",
        output="attention.dense",
        mlp=(("mlp.dense_h_to_4h",), ("mlp.dense_4h_to_h",)),
    ),
    "phi3": _Architecture(
        layers="model.layers",
        qkv=("self_attn.qkv_proj",),
        output="self_attn.o_proj",
        mlp=(("mlp.gate_up_proj",), ("mlp.down_proj",)),
        halves={"mlp.gate_up_proj": ("gate", "up")},
    ),
}
_LINEAR_TYPES = (nn.Linear, Conv1D)


def find_blocks(model: PreTrainedModel, attention: Attention = "joint") -> list[Block]:
    """Find the curvature blocks of a model, in the order of its layers; embeddings and lm_head are not tracked.

    Args:
        model: a causal language model of a supported architecture.
        attention: ``joint``: query, key and value form one block; ``split``: one block each; ``none``: MLP blocks only.

    Returns:
        The blocks.

    Raises:
        ValueError: ``attention`` is none of the three.
        UnsupportedLayer: unknown architecture, or a weight matrix that no block covers (experts, quantised layers).
    """
    if attention not in ("joint", "split", "none"):
        raise ValueError(f"attention: expected 'joint', 'split' or 'none', got {attention!r}")
    architecture = _architecture(model)
    blocks: list[Block] = []
    for prefix in _layer_names(model, architecture):
        _check_covered(model, prefix, architecture)
        if attention != "none":
            blocks += _attention_blocks(model, prefix, architecture, attention)
        blocks += _mlp_blocks(model, prefix, architecture)
    return blocks


def matching_blocks(model: PreTrainedModel, names: Collection[str]) -> list[Block]:
    """Find the blocks whose names are a direction's keys, under any attention setting.

    Raises:
        ValueError: no attention setting gives exactly these names.
        UnsupportedLayer: as `find_blocks`.
    """
    settings: tuple[Attention, ...] = ("joint", "split", "none")
    for attention in settings:
        blocks = find_blocks(model, attention)
        if {block.name for block in blocks} == set(names):
            return blocks
    raise ValueError(f"direction: expected the block names of this model, got {sorted(names)[:3]} and so on")


def shared_inputs(blocks: Sequence[Block]) -> list[tuple[Block, ...]]:
    """Group neighbouring blocks that read the same input."""
    return [tuple(group) for _, group in groupby(blocks, key=lambda block: block.source)]


def blocks_to_tensor(blocks: Sequence[Block]) -> Tensor:
    """Encode blocks as JSON in a uint8 tensor, so that a tensor file describes itself."""
    return torch.frombuffer(bytearray(json.dumps([asdict(block) for block in blocks]).encode()), dtype=torch.uint8)


def blocks_from_tensor(encoded: Tensor) -> tuple[Block, ...]:
    """Decode blocks from `blocks_to_tensor`."""
    return tuple(
        Block(
            name=fields["name"],
            modules=tuple(fields["modules"]),
            bias=fields["bias"],
            source=fields["source"],
            rows=None if fields["rows"] is None else tuple((start, stop) for start, stop in fields["rows"]),
            shape=(fields["shape"][0], fields["shape"][1]),
        )
        for fields in json.loads(bytes(encoded.tolist()))
    )


def _architecture(model: PreTrainedModel) -> _Architecture:
    kind = model.config.model_type
    if kind in _ARCHITECTURES:
        return _ARCHITECTURES[kind]
    raise UnsupportedLayer(
        f"architecture {kind!r} is not in the table ({_odd_module(model)}); supported: {', '.join(_ARCHITECTURES)}"
    )


def _odd_module(model: PreTrainedModel) -> str:
    """Describe a module that holds matrices but is neither linear nor an embedding, else the first linear map."""
    owners = [name.rpartition(".")[0] for name, parameter in model.named_parameters() if parameter.ndim >= 2]
    kinds = {owner: type(model.get_submodule(owner)) for owner in owners}
    odd = [owner for owner, kind in kinds.items() if kind not in (*_LINEAR_TYPES, nn.Embedding)]
    linear = [owner for owner, kind in kinds.items() if kind in _LINEAR_TYPES]
    return ", ".join(f"it has {owner}, {kinds[owner].__name__}" for owner in (odd + linear)[:1])


def _layer_names(model: PreTrainedModel, architecture: _Architecture) -> list[str]:
    layers = model.get_submodule(architecture.layers)
    if not isinstance(layers, nn.ModuleList) or len(layers) == 0:
        raise UnsupportedLayer(f"{architecture.layers}: expected a non-empty list of decoder layers, got {layers}")
    return [f"{architecture.layers}.{index}" for index in range(len(layers))]


def _check_covered(model: PreTrainedModel, prefix: str, architecture: _Architecture) -> None:
    """Check that a layer has no weight matrix, or packed weights, outside the table."""
    tracked = {*architecture.qkv, architecture.output, *(name for group in architecture.mlp for name in group)}
    layer = model.get_submodule(prefix)
    for name in sorted(tracked):
        _linear(model, f"{prefix}.{name}")
    for name, parameter in layer.named_parameters():
        owner = name.rpartition(".")[0]
        if parameter.ndim >= 2 and owner not in tracked:
            found = type(layer.get_submodule(owner)).__name__
            raise UnsupportedLayer(f"{prefix}.{owner} ({found}): expected only {sorted(tracked)} to hold matrices")


def _linear(model: PreTrainedModel, name: str) -> nn.Module:
    try:
        module: nn.Module = model.get_submodule(name)
    except AttributeError:
        raise UnsupportedLayer(f"{name}: expected nn.Linear or Conv1D, got no such module") from None
    # Exact types: quantised and adapter layers subclass nn.Linear but keep other weights.
    if type(module) not in _LINEAR_TYPES or not module.get_parameter("weight").is_floating_point():
        raise UnsupportedLayer(f"{name}: expected nn.Linear or Conv1D in floating point, got {type(module).__name__}")
    return module


def _size(module: nn.Module) -> tuple[int, int]:
    """Return the number of outputs and inputs of a linear map."""
    rows, columns = module.get_parameter("weight").shape
    return (columns, rows) if isinstance(module, Conv1D) else (rows, columns)


def _block(model: PreTrainedModel, name: str, modules: tuple[str, ...], source: str, rows: Rows | None = None) -> Block:
    maps = [_linear(model, module) for module in modules]
    has_bias = {module.bias is not None for module in maps}
    if len(has_bias) > 1:
        raise UnsupportedLayer(f"{name}: expected all of {modules} with a bias or none, got a mixture")
    bias = has_bias.pop()
    outputs = sum(_size(module)[0] for module in maps) if rows is None else sum(stop - start for start, stop in rows)
    return Block(name, modules, bias, source, rows, (outputs, _size(maps[0])[1] + int(bias)))


def _attention_blocks(
    model: PreTrainedModel, prefix: str, architecture: _Architecture, attention: Attention
) -> Iterator[Block]:
    modules = tuple(f"{prefix}.{name}" for name in architecture.qkv)
    if attention == "joint":
        yield _block(model, f"{modules[0].rpartition('.')[0]}.qkv", modules, modules[0])
    elif len(modules) == 3:
        for module in modules:
            yield _block(model, module, (module,), modules[0])
    else:
        for part, rows in _fused_attention_rows(model, modules[0], architecture).items():
            yield _block(model, f"{modules[0]}.{part}", modules, modules[0], rows)
    output = f"{prefix}.{architecture.output}"
    yield _block(model, output, (output,), output)


def _mlp_blocks(model: PreTrainedModel, prefix: str, architecture: _Architecture) -> Iterator[Block]:
    for group in architecture.mlp:
        source = f"{prefix}.{group[0]}"
        for name in group:
            module = f"{prefix}.{name}"
            halves = (architecture.halves or {}).get(name)
            if halves is None:
                yield _block(model, module, (module,), source)
                continue
            half = _size(_linear(model, module))[0] // 2
            for index, part in enumerate(halves):
                yield _block(model, f"{module}.{part}", (module,), source, ((index * half, (index + 1) * half),))


def _fused_attention_rows(model: PreTrainedModel, name: str, architecture: _Architecture) -> dict[str, Rows]:
    """Find the rows of query, key and value in a fused map; the head width follows from the map's outputs."""
    config = model.config
    n_heads = config.num_attention_heads
    n_kv_heads = getattr(config, "num_key_value_heads", None) or n_heads
    width = _size(_linear(model, name))[0] // (n_heads + 2 * n_kv_heads)
    if architecture.heads == "interleaved":
        return {
            part: tuple((width * (3 * head + index), width * (3 * head + index + 1)) for head in range(n_heads))
            for index, part in enumerate("qkv")
        }
    ends = (width * n_heads, width * (n_heads + n_kv_heads), width * (n_heads + 2 * n_kv_heads))
    return {"q": ((0, ends[0]),), "k": ((ends[0], ends[1]),), "v": ((ends[1], ends[2]),)}
