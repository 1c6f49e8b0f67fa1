"""Check the checkpoint a run names before anything is spent on it, mostly from its files' headers.

Owns what is asked of a checkpoint's configuration, tokenizer and weights. Refuses, with one `ModelError` that names the
path and the cause: what is not a checkpoint of a supported model, weights that are not the tensors its configuration
describes (they would be scored on random values), and weights that hold NaN, infinity or nothing but zeros. Headers are
compared by transformers itself, which loads tensors without values: renamed and tied weights are as in a real load.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer
from transformers.utils import is_flash_attn_2_available

from quad_tasks.core.blocks import Attention, find_blocks
from quad_tasks.core.lm.model import ModelError, cause, check_model, check_names
from quad_tasks.core.lm.tokenizer import load_tokenizer

WEIGHTS, INDEX, CONFIG, ADAPTER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "adapter_config.json",
)
OTHER_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "tekken.json", "vocab.json", "vocab.txt")
LFS_POINTER = b"version https://git-lfs"
GGUF_SUFFIX = ".gguf"
READ_BYTES = 2**30
"""Of weights whose values are looked at here; all of them are looked at when they are loaded."""
CHUNK_BYTES = 2**26
UNUSUAL_TEXT = ("a", "é", "日", "🙂")
"""Characters of one, two, three and four bytes of UTF-8."""


def check_checkpoint(source: str, window_tokens: int, attention: Attention = "joint") -> None:
    """Check that a checkpoint can be scored and trained as a run needs it; reads at most `READ_BYTES` of its weights.

    Args:
        source: a folder or a Hugging Face id. Of a checkpoint that is not on this machine yet, configuration and
            tokenizer are fetched and checked; its weights are checked when they are loaded.
        window_tokens: longest sequence that will be scored, measured or trained on.
        attention: the blocks that factors will be fitted of.

    Raises:
        ModelError: it cannot be used; the message names the path and the cause.
        UnsupportedLayer: the model has no block the influence engine supports.
    """
    if source.endswith(GGUF_SUFFIX):
        return
    folder = find_folder(source)
    if folder is not None:
        _check_folder(folder)
    empty = _empty_model(source, folder)
    find_blocks(empty, attention)
    tokenizer = load_tokenizer(source)
    _check_vocabulary(source, tokenizer)
    check_model(empty, tokenizer, window_tokens)
    files = weight_files(folder) if folder is not None else []
    if files:
        _check_headers(source, empty, files)
        check_values(source, _stored_tensors(files))


def find_folder(source: str) -> Path | None:
    """Return the folder of a checkpoint on this machine, a Hugging Face id's cache included; None where there is none.

    Raises:
        ModelError: the source can only be a path, and no folder is there.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"model.source: expected a folder or a Hugging Face id, found the file {path}")
    if source.startswith(("/", ".", "~")) or source.count("/") > 1:
        raise ModelError(f"{path}: expected a causal language model, found no such folder")
    try:
        cached = Path(snapshot_download(source, local_files_only=True))
    except Exception:  # not there, or no name that the Hub could know: loading says which
        return None
    return cached if _has_weights(cached) else None


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors files that hold a checkpoint's weights.

    Raises:
        ModelError: there are none, or one that the index names is missing.
    """
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.exists():
        others = [name for name in OTHER_WEIGHTS if (folder / name).exists()]
        found = f"{others[0]}: convert it with save_pretrained" if others else "none"
        raise ModelError(f"{folder}: expected weights in {WEIGHTS}, found {found}")
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index}: expected a weight_map of tensors to files: {cause(error)}") from None
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise ModelError(f"{index}: expected {len(names)} files of weights, found {', '.join(missing)} missing")
    return [folder / name for name in names]


def check_values(source: str, tensors: Iterator[tuple[str, Tensor, bool]]) -> None:
    """Check that weights hold numbers a model can compute with.

    Args:
        source: names the checkpoint in messages.
        tensors: each tensor's name, its values or a part of them, and whether these are all.

    Raises:
        ModelError: a value is NaN or infinite, or a weight is zero throughout (a bias may be).
    """
    for name, values, whole in tensors:
        if not values.is_floating_point() or values.numel() == 0:
            continue
        low, high = (float(end) for end in torch.aminmax(values))
        if not (math.isfinite(low) and math.isfinite(high)):
            kind = "NaN" if math.isnan(low) or math.isnan(high) else "infinite values"
            raise ModelError(f"{source}: expected finite weights, found {kind} in {name}")
        if whole and low == high == 0 and name.endswith(".weight"):
            raise ModelError(f"{source}: expected trained weights, found nothing but zeros in {name}")


def model_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor, bool]]:
    """Give a loaded model's parameters as `check_values` takes them."""
    return ((name, parameter.detach(), True) for name, parameter in model.named_parameters())


def _has_weights(folder: Path) -> bool:
    return any((folder / name).exists() for name in (WEIGHTS, INDEX, *OTHER_WEIGHTS))


def _check_folder(folder: Path) -> None:
    """Check what a folder's configuration says, in words that transformers has not."""
    if (folder / ADAPTER).exists() and not (folder / CONFIG).exists():
        raise ModelError(f"{folder}: expected a whole model, found an adapter: merge it into its base model first")
    path = folder / CONFIG
    if not path.exists():
        raise ModelError(f"{folder}: expected a checkpoint, found no {CONFIG}")
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: expected JSON: {cause(error)}") from None
    if not isinstance(body, dict) or not body.get("model_type"):
        raise ModelError(f"{path}: expected a model's configuration, found no model_type")
    _check_settings(str(path), body)
    if not any((folder / name).exists() for name in TOKENIZERS):
        raise ModelError(
            f"{folder}: expected a tokenizer beside the weights (tokenizer.json), found none: save it there"
        )


def _check_settings(place: str, body: Mapping[str, Any]) -> None:
    quantised = body.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, Mapping) else quantised
        raise ModelError(
            f"{place}: expected weights in floating point, which influence can differentiate, found them quantised "
            f"({method}): use the checkpoint it was made from"
        )
    implementation = body.get("_attn_implementation") or body.get("attn_implementation")
    if implementation == "flash_attention_2" and not is_flash_attn_2_available():
        raise ModelError(
            f"{place}: expected an attention that is installed here, found {implementation!r} without its package: "
            "take `attn_implementation` out of the file, or install flash-attn"
        )
    for key in ("torch_dtype", "dtype"):
        kind = body.get(key)
        if kind is not None and not isinstance(getattr(torch, str(kind).removeprefix("torch."), None), torch.dtype):
            raise ModelError(f"{place}: {key}: expected a torch dtype such as 'float32', found {kind!r}")


def _empty_model(source: str, folder: Path | None) -> PreTrainedModel:
    """Build the model that a checkpoint's configuration describes, without values."""
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        if folder is None:
            _check_settings(f"{source}: {CONFIG}", config.to_dict())
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except ModelError:
        raise
    except Exception as error:  # the libraries beneath raise of any kind
        raise ModelError(f"{source}: expected a causal language model: {cause(error)}") from None
    model.config.name_or_path = source
    return model


def _check_vocabulary(source: str, tokenizer: FastTokenizer) -> None:
    """Check that the tokenizer finds tokens for any text: by bytes, or by one for what it does not know."""
    for text in UNUSUAL_TEXT:
        try:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        except Exception as error:  # the tokenizers library raises plain exceptions
            raise ModelError(
                f"{source}: expected a tokenizer for any text, found that {text!r} fails: {cause(error)}"
            ) from None
        if not ids:
            raise ModelError(
                f"{source}: expected a tokenizer for any text, found that {text!r} gives no token: give it a token for "
                "unknown characters, or bytes to fall back to"
            )


def _check_headers(source: str, empty: PreTrainedModel, files: Sequence[Path]) -> None:
    """Compare the stored tensors' names and shapes with those the model needs, as a load of them would."""
    state: dict[str, Tensor] = {}
    for path in files:
        _check_file(path)
        try:
            with safe_open(path, "pt") as stored:
                for name in stored.keys():  # noqa: SIM118 -- no mapping
                    state[name] = torch.empty(stored.get_slice(name).get_shape(), device="meta")
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path}: expected a whole safetensors file, found {path.stat().st_size:,} bytes: {cause(error)}: "
                "copy it again"
            ) from None
    try:
        _, report = type(empty).from_pretrained(
            None,
            config=empty.config,
            state_dict=state,
            device_map={"": "meta"},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:  # the libraries beneath raise of any kind
        raise ModelError(f"{source}: expected weights that can be loaded: {cause(error)}") from None
    check_names(source, report)


def _check_file(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ModelError(f"{path}: expected weights, found a Git LFS pointer: fetch the file with `git lfs pull`")


def _stored_tensors(files: Sequence[Path]) -> Iterator[tuple[str, Tensor, bool]]:
    """Read tensors in chunks, of large checkpoints the first rows of each, in proportion."""
    share = min(1.0, READ_BYTES / max(1, sum(path.stat().st_size for path in files)))
    for path in files:
        with safe_open(path, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118 -- no mapping
                rows = stored.get_slice(name)
                shape = rows.get_shape()
                if not shape or math.prod(shape) * 8 <= CHUNK_BYTES:
                    yield name, stored.get_tensor(name), True
                    continue
                step = max(1, CHUNK_BYTES // (8 * math.prod(shape[1:])))
                for start in range(0, math.ceil(share * shape[0]), step):
                    yield name, rows[start : start + step], False
