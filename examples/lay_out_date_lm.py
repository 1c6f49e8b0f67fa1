"""Lay out what `examples/date_lm.yaml` reads: DATE-LM's pool, its reference and its checkpoint, from a local copy.

    python examples/lay_out_date_lm.py FOLDER BASE CHECKPOINT TOKENIZER

BASE is the base directory of DATE-LM's own scripts (github.com/DataAttributionEval/DATE-LM), which left there
`data/fineweb/train/0`, token ids in LitData's chunks, and `data/lambada_openai/train/train-1024.pt` and `val/val.pt`.
CHECKPOINT is the `lit_model.pth` that is trained on; TOKENIZER is its repository's folder
`checkpoints/EleutherAI/pythia-1b`, with `config.json` and `tokenizer.json`.
"""

import argparse
import itertools
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

SEQUENCES = 1_024_000
SEQUENCE_TOKENS = 2049
"""2,048 targets."""
FILE_SEQUENCES = 4_000
"""Of one file, in memory at once: a few hundred megabytes as Python integers and text."""
COMPARED = 1_000
"""Sequences whose text is encoded again, to say how many give the same tokens."""
TOKEN_TYPES = {"11": np.uint8, "13": np.int16, "15": np.int32, "16": np.int32, "17": np.int64, "20": np.uint16}
"""LitData's numbers of torch's integer types."""
NAMES = {
    "transformer.wte": "gpt_neox.embed_in",
    "transformer.h": "gpt_neox.layers",
    "transformer.ln_f": "gpt_neox.final_layer_norm",
    "lm_head": "embed_out",
    "norm_1": "input_layernorm",
    "norm_2": "post_attention_layernorm",
    "attn.attn": "attention.query_key_value",
    "attn.proj": "attention.dense",
    "mlp.fc": "mlp.dense_h_to_4h",
    "mlp.proj": "mlp.dense_4h_to_h",
}
"""LitGPT 0.4's names of GPT-NeoX's layers, and Hugging Face's."""


def main() -> None:
    """Write the folders `pool`, `reference`, `heldout` and `model`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name in ("folder", "base", "checkpoint", "tokenizer"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--sequences", type=int, default=SEQUENCES, help="of the pool, the first ones")
    parser.add_argument("--sequence-tokens", type=int, default=SEQUENCE_TOKENS, help="of each")
    asked = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(asked.tokenizer / "tokenizer.json"))
    chunks = asked.base / "data" / "fineweb" / "train" / "0"
    sequences = itertools.islice(read_sequences(chunks, asked.sequence_tokens), asked.sequences)
    n = write_pool(sequences, tokenizer, asked.folder / "pool")
    lambada = asked.base / "data" / "lambada_openai"
    write_passages(lambada / "train" / "train-1024.pt", lambada / "val" / "val.pt", tokenizer, asked.folder)
    convert_checkpoint(asked.checkpoint, asked.tokenizer, asked.folder / "model")
    print(f"{n:,} sequences; a tenth of them: selection.budget_tokens={n // 10 * asked.sequence_tokens}")


def read_sequences(folder: Path, sequence_tokens: int) -> Iterator[np.ndarray]:
    """Cut LitData's chunks into sequences, in the order of its `StreamingDataset` with a `TokensLoader`.

    A chunk is a count of documents, their offsets (32 bits each), and their token ids one after another. What is left
    at its end is in no sequence.
    """
    index = json.loads((folder / "index.json").read_text())
    kind, _, number = index["config"]["data_format"][0].partition(":")
    if kind != "no_header_tensor" or number not in TOKEN_TYPES or index["config"]["compression"]:
        sys.exit(f"{folder}: expected uncompressed chunks of token ids, found {index['config']}")
    for chunk in index["chunks"]:
        start = 4 * (chunk["chunk_size"] + 2)
        ids = np.memmap(folder / chunk["filename"], TOKEN_TYPES[number], "r", start, (chunk["dim"],))
        whole = chunk["dim"] // sequence_tokens
        yield from ids[: whole * sequence_tokens].reshape(whole, sequence_tokens)


def write_pool(sequences: Iterator[np.ndarray], tokenizer: Tokenizer, folder: Path) -> int:
    """Write sequences as text, their numbers as ids; return how many. End-of-text tokens inside stay in the text."""
    folder.mkdir(parents=True, exist_ok=True)
    n = 0
    for number in itertools.count():
        block = [ids.tolist() for ids in itertools.islice(sequences, FILE_SEQUENCES)]
        if not block:
            return n
        texts = tokenizer.decode_batch(block, skip_special_tokens=False)
        if number == 0:
            again = tokenizer.encode_batch(texts[:COMPARED], add_special_tokens=False)
            same = sum(one.ids == ids for one, ids in zip(again, block, strict=False))
            print(f"{same} of {len(again)} sequences compared give the same tokens again")
        names = [f"{n + i:07d}" for i in range(len(block))]
        table = pa.table({"id": names, "text": texts, "source": ["fineweb"] * len(block)})
        pq.write_table(table, folder / f"fineweb-{number:03d}.parquet", compression="zstd")
        n += len(block)


def write_passages(reference: Path, every: Path, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the reference's passages, and LAMBADA's others as the held-out domain that the reference loss is of."""
    own, passages = ([one["input_ids"] for one in torch.load(path, weights_only=True)] for path in (reference, every))
    taken = {tuple(ids) for ids in own}
    others = [ids for ids in passages if tuple(ids) not in taken]
    for name, ids in (("reference", own), ("heldout", others)):
        path = folder / name / "lambada.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as out:
            for i, text in enumerate(tokenizer.decode_batch(ids)):
                out.write(json.dumps({"id": f"{name}-{i}", "text": text, "domain": "lambada"}) + "\n")


def convert_checkpoint(checkpoint: Path, tokenizer: Path, folder: Path) -> None:
    """Write LitGPT's checkpoint of a GPT-NeoX in Hugging Face's form."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)["model"]
    renamed = {rename(name): tensor.contiguous() for name, tensor in weights.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    for path in tokenizer.glob("*.json"):
        shutil.copyfile(path, folder / path.name)


def rename(name: str) -> str:
    """Return Hugging Face's name of one of LitGPT's tensors."""
    return re.sub("|".join(map(re.escape, NAMES)), lambda found: NAMES[found[0]], name)


if __name__ == "__main__":
    main()
