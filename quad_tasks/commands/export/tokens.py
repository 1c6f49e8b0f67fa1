"""Token ids of documents, and the two layouts of them that trainers read: Megatron's and MosaicML's.

Owns how a document becomes token ids for training: by its tokenizer's own convention, with the end-of-document token
once at its end; and the bytes of a Megatron pair (`.bin`, `.idx`) and of an MDS shard with its `index.json`. Both are
written in one pass over the documents, in files of the machine's temporary folder, never whole in memory.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast as FastTokenizer

from quad_tasks.config.schema import ConfigError
from quad_tasks.core.lm.tokenizer import encode
from quad_tasks.storage.store import Store

TokenIds = npt.NDArray[np.int32]

MEGATRON_HEADER = b"MMIDIDX\x00\x00" + (1).to_bytes(8, "little")
MEGATRON_CODES = {np.dtype("<i4"): 4, np.dtype("<u2"): 8}
MEGATRON_SMALL_VOCABULARY = 65_500
"""Below this many token ids Megatron writes 16 bits an id."""
MDS_LARGEST_SHARD = 2**32
"""An MDS shard says where its samples stand in 32 bits."""


def encode_documents(tokenizer: FastTokenizer, texts: list[str]) -> list[TokenIds]:
    """Tokenize documents for training: each ends with the end-of-document token, exactly once.

    Args:
        tokenizer: has an end-of-document token, its `eos_token_id`.
        texts: one a document.

    Returns:
        Token ids by document, [tokens].
    """
    end = tokenizer.eos_token_id
    encoded = encode(tokenizer, texts)
    return [np.array(ids if ids[-1:] == [end] else [*ids, end], dtype=np.int32) for ids in encoded]


def megatron_dtype(vocabulary: int) -> np.dtype[Any]:
    """Return the type that Megatron stores ids of a vocabulary of this size in."""
    return np.dtype("<u2") if vocabulary < MEGATRON_SMALL_VOCABULARY else np.dtype("<i4")


def write_megatron(store: Store, stem: str, documents: Iterable[TokenIds], vocabulary: int) -> list[str]:
    """Write documents as a Megatron pair; return the keys of its two files.

    `.bin` holds all token ids, one after the other. `.idx`, little-endian, holds the header, the type's code, the
    numbers of sequences and of document bounds, each sequence's length (int32) and byte offset (int64), and the bounds
    of documents among the sequences (int64). A document is one sequence.

    Args:
        store: written to.
        stem: both files' key without its end.
        documents: token ids, [tokens] each.
        vocabulary: number of ids there are.
    """
    dtype = megatron_dtype(vocabulary)
    lengths = []
    with store.spool(f"{stem}.bin") as path, path.open("wb") as file:
        for ids in documents:
            file.write(ids.astype(dtype).tobytes())
            lengths.append(len(ids))
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)[:-1]]) * dtype.itemsize
    with store.spool(f"{stem}.idx") as path, path.open("wb") as file:
        file.write(MEGATRON_HEADER + bytes([MEGATRON_CODES[dtype]]))
        file.write(np.array([len(lengths), len(lengths) + 1], dtype="<u8").tobytes())
        file.write(np.array(lengths, dtype="<i4").tobytes())
        file.write(offsets.astype("<i8").tobytes())
        file.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())
    return [f"{stem}.bin", f"{stem}.idx"]


def write_mds(
    store: Store, key: str, columns: Mapping[str, str], samples: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """Write an MDS shard; return its entry in `index.json`.

    A shard holds its number of samples (uint32), where each begins and the last ends (uint32), its columns as JSON, and
    the samples: the size of each value (uint32), then the values, in the order of the columns' names.

    Args:
        store: written to.
        key: of the shard.
        columns: encoding by name: `str`, `json` or `ndarray:int32`.
        samples: value by column.

    Raises:
        ConfigError: the shard grew past what its 32-bit offsets reach.
    """
    names = sorted(columns)
    config: dict[str, Any] = {
        "version": 2,
        "format": "mds",
        "compression": None,
        "hashes": [],
        "size_limit": None,
        "column_names": names,
        "column_encodings": [columns[name] for name in names],
        "column_sizes": [None] * len(names),
    }
    described = json.dumps(config, sort_keys=True).encode()
    sizes = []
    with TemporaryFile() as body:
        for sample in samples:
            values = [_mds_value(columns[name], sample[name]) for name in names]
            head = np.array([len(value) for value in values], dtype="<u4").tobytes()
            sizes.append(body.write(b"".join([head, *values])))
        start = 4 + 4 * (len(sizes) + 1) + len(described)
        offsets = start + np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        if offsets[-1] >= MDS_LARGEST_SHARD:
            raise ConfigError(f"--shard-size: expected MDS shards below 4 GiB, found one of {offsets[-1]:,} bytes")
        with store.spool(key) as path, path.open("wb") as file:
            file.write(np.uint32(len(sizes)).tobytes() + offsets.astype("<u4").tobytes() + described)
            _append(file, body)
    raw = {"basename": key.rsplit("/", 1)[-1], "bytes": int(offsets[-1]), "hashes": {}}
    return {**config, "samples": len(sizes), "raw_data": raw, "zip_data": None}


def _append(file: IO[bytes], body: IO[bytes]) -> None:
    body.seek(0)
    shutil.copyfileobj(body, file)


def _mds_value(encoding: str, value: Any) -> bytes:
    if encoding == "str":
        return bytes(value.encode())
    if encoding == "json":
        return json.dumps(value, ensure_ascii=False, sort_keys=True).encode()
    return _mds_array(value)


def _mds_array(ids: TokenIds) -> bytes:
    """Write a vector: its number of axes and the width of its length in one byte, its length, its values."""
    width = next(n for n in range(3) if len(ids) < 1 << (8 << n))
    return bytes([1 << 2 | width]) + len(ids).to_bytes(1 << width, "little") + ids.astype("<i4").tobytes()
