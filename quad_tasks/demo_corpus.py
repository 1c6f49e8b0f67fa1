"""A small corpus from text that every Python installation carries, so that a first run needs no download.

Owns the demo's pool, reference and held-out files. Everything is read from the user's own installation (the standard
library, `pydoc`'s language reference, C headers, the descriptions and licences of installed packages) or generated
here; no text is shipped. Refuses leakage: the three splits share no parent file and no paragraph.

The reference is one prose style, the Python language reference, which the pool holds too but rarely: a selection that
works prefers it visibly. Noise has no held-out file: nobody wants a model that is good at it.
"""

import ast
import gzip
import importlib.metadata
import inspect
import json
import os
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from random import Random
from typing import Any, TypeVar

import numpy as np
import zstandard

Record = dict[str, Any]
Parents = Iterator[tuple[str, str]]
T = TypeVar("T")

SPLITS = ("reference", "heldout", "pool")
MAX_CHARS = 1500
MIN_CHARS = 200  # below it a passage says too little to be embedded
PASSAGES_PER_FILE = 60  # no single file shapes a domain
MIN_DOCSTRING_CHARS = 200
DUPLICATES = 24
HEX_DOCUMENTS, HEX_BYTES = 220, 480
SHUFFLED_DOCUMENTS, SHUFFLED_WORDS = 320, 160
# Not the standard library's own code, or (pydoc_data) the text of another domain.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "pydoc_data", "test", "tests", "__pycache__", "lib-dynload"}
DAMAGED_LINES = (
    b'{"id": "damaged/truncated-1", "text": "The line ends before the rec',
    b'{"id": "damaged/truncated-2", "text": ',
    b"not JSON at all",
    b'{"id": "damaged/no-text-1", "source": "stdlib_code", "domain": "code"}',
    b'{"id": "damaged/no-text-2", "text": null, "source": "stdlib_code", "domain": "code"}',
    b'{"id": "damaged/empty-text", "text": "", "source": "stdlib_code", "domain": "code"}',
    b'{"id": "damaged/latin-1", "text": "caf\xe9 cr\xe8me", "source": "stdlib_code", "domain": "code"}',
)


@dataclass(frozen=True)
class Origin:
    """Where one domain's text comes from and how much of it is wanted.

    Attributes:
        source: what the records call their origin.
        domain: the domain, also the name of its files.
        read: yields (parent file, text) in an order drawn from the generator.
        max_chars: length limit of a passage, characters; smaller where the text is scarce.
        wanted: documents wanted in each split, `reference`, `heldout`, `pool`; a parent that would exceed the
            first two goes to the next.
        suffix: format of the pool's file.
    """

    source: str
    domain: str
    read: Callable[[Random], Parents]
    max_chars: int
    wanted: tuple[int, int, int]
    suffix: str


def build_corpus(directory: Path, seed: int = 0) -> dict[str, list[Path]]:
    """Write the demo's pool, reference and held-out files.

    The same installation and seed give the same bytes. The pool also holds a few exact duplicates and damaged lines,
    so that a run shows what it sets aside.

    Args:
        directory: folder to write into; created, and files of the same name replaced.
        seed: decides order, splits and noise.

    Returns:
        The files written, by split: `reference`, `heldout`, `pool`.

    Raises:
        FileNotFoundError: the installation lacks the text of a domain.
    """
    paths: dict[str, list[Path]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    words: list[str] = []
    for origin in ORIGINS:
        splits = collect(origin, Random(f"{seed}/{origin.source}"), seen)
        if origin.domain == "descriptions":
            words = [word for record in splits["pool"] for word in record["text"].split()]
        for split, records in splits.items():
            if not records:
                continue
            lines = _lines(records)
            if split == "pool" and origin.domain == "code":
                lines = _with_damage(lines, records, Random(f"{seed}/damage"))
            path = directory / split / f"{origin.domain}{origin.suffix if split == 'pool' else '.jsonl'}"
            paths[split].append(_write(path, lines))
    noise = noise_records(words, Random(f"{seed}/noise"))
    paths["pool"].append(_write(directory / "pool" / "noise.jsonl.gz", _lines(noise)))
    return paths


def collect(origin: Origin, generator: Random, seen: set[str]) -> dict[str, list[Record]]:
    """Fill one domain's splits, each parent file whole into one of them.

    Args:
        origin: the domain.
        generator: decides the order of the parents.
        seen: paragraphs already used anywhere in the corpus (whitespace squeezed); added to.

    Returns:
        Records by split, in `SPLITS` order.

    Raises:
        FileNotFoundError: a split that is wanted stayed empty.
    """
    wanted = dict(zip(SPLITS, origin.wanted, strict=True))
    splits: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for parent, text in origin.read(generator):
        if len(splits["pool"]) >= wanted["pool"]:
            break
        passages = cut_passages(text, origin.max_chars, seen)[:PASSAGES_PER_FILE]
        fits = (split for split in SPLITS[:2] if len(splits[split]) + len(passages) <= wanted[split])
        records = [_record(origin, parent, number, passage) for number, passage in enumerate(passages)]
        splits[next(fits, "pool")] += records[: wanted["pool"] - len(splits["pool"])]
    missing = [split for split in SPLITS if wanted[split] and not splits[split]]
    if missing:
        raise FileNotFoundError(
            f"demo corpus: expected this Python installation to carry text for {origin.source!r}, "
            f"found none for {', '.join(missing)}"
        )
    return splits


def cut_passages(text: str, max_chars: int, seen: set[str]) -> list[str]:
    """Cut a text into passages at paragraph boundaries, leaving out what was used before.

    Args:
        text: the whole text of one parent file.
        max_chars: length limit of a passage, characters; a longer paragraph is cut at line ends, a longer line inside.
        seen: paragraphs, or pieces of long ones, already used (whitespace squeezed); added to.

    Returns:
        Passages of `MIN_CHARS` to `max_chars` characters, in the text's order.
    """
    passages, current = [], ""
    for piece in _pieces(text, max_chars):
        squeezed = " ".join(piece.split())
        if not squeezed or squeezed in seen:
            continue
        seen.add(squeezed)
        joined = f"{current}\n\n{piece}" if current else piece
        if len(joined) > max_chars:
            passages.append(current)
            joined = piece
        current = joined
    return [passage for passage in [*passages, current] if len(passage) >= MIN_CHARS]


def noise_records(words: Sequence[str], generator: Random) -> list[Record]:
    """Generate documents that no selection should want: hexadecimal bytes and real words in random order.

    Args:
        words: vocabulary with repetition, so that common words stay common.
        generator: source of all randomness.

    Returns:
        `HEX_DOCUMENTS` records of source `hex_noise`, then `SHUFFLED_DOCUMENTS` of `shuffled_words`.
    """
    texts = [("hex_noise", generator.randbytes(HEX_BYTES).hex(" ", 4)) for _ in range(HEX_DOCUMENTS)]
    texts += [
        ("shuffled_words", " ".join(generator.choices(words, k=SHUFFLED_WORDS))[:MAX_CHARS])
        for _ in range(SHUFFLED_DOCUMENTS)
    ]
    return [
        {"id": f"{source}/{number}", "text": text, "source": source, "domain": "noise", "metadata": {}}
        for number, (source, text) in enumerate(texts)
    ]


def read_topics(generator: Random) -> Parents:
    """Yield the topics of `pydoc`, the Python language reference, as (topic, text)."""
    yield from _shuffled(topics.items(), generator)


def read_code(generator: Random) -> Parents:
    """Yield one half of the standard library's modules as (file, source code)."""
    yield from _read_files(_standard_library(half=0), generator)


def read_docstrings(generator: Random) -> Parents:
    """Yield the other half's docstrings as (file, docstrings as paragraphs), since code contains its docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for parent, text in _read_files(_standard_library(half=1), generator):
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, documented)]
        docstrings = [inspect.cleandoc(ast.get_docstring(node) or "") for node in nodes]
        yield parent, "\n\n".join(text for text in docstrings if len(text) >= MIN_DOCSTRING_CHARS)


def read_headers(generator: Random) -> Parents:
    """Yield the C headers of Python, where installed, and of numpy as (file, text)."""
    folders = [Path(sysconfig.get_path("include")), Path(np.get_include())]
    files = {file.relative_to(folder).as_posix(): file for folder in folders for file in folder.rglob("*.h")}
    yield from _read_files(files, generator)


def read_descriptions(generator: Random) -> Parents:
    """Yield the long descriptions of installed packages as (package, Markdown or reStructuredText)."""
    for name, distribution in _shuffled(_distributions().items(), generator):
        yield name, "\n\n".join(distribution.metadata.get_all("Description") or [])


def read_licences(generator: Random) -> Parents:
    """Yield the licence files of installed packages as (package/file, text)."""
    named = re.compile(r"licen[cs]e|copying|notice", re.IGNORECASE)
    files = {
        f"{name}/{file.name}": Path(str(file.locate()))
        for name, distribution in _distributions().items()
        for file in distribution.files or []
        if named.search(file.name) and file.suffix in {"", ".txt", ".md", ".rst"}
    }
    yield from _read_files(files, generator)


ORIGINS = (
    Origin("pydoc_topics", "reference_docs", read_topics, 500, (160, 60, 800), ".jsonl.gz"),
    Origin("stdlib_code", "code", read_code, MAX_CHARS, (0, 60, 2000), ".jsonl"),
    Origin("stdlib_docstrings", "docstrings", read_docstrings, 1000, (0, 60, 900), ".jsonl.zst"),
    Origin("c_headers", "headers", read_headers, 1200, (0, 60, 900), ".jsonl.gz"),
    Origin("package_descriptions", "descriptions", read_descriptions, MAX_CHARS, (0, 60, 1300), ".jsonl.zst"),
    Origin("package_licences", "licences", read_licences, 1000, (0, 60, 700), ".jsonl"),
)


def _standard_library(half: int) -> dict[str, Path]:
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS]
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    return {file.relative_to(root).as_posix(): file for file in sorted(files)[half::2]}


def _distributions() -> dict[str, importlib.metadata.Distribution]:
    named = ((found.metadata["Name"], found) for found in importlib.metadata.distributions())
    return {name.lower(): found for name, found in named if name}  # an interrupted install leaves one without a name


def _read_files(files: dict[str, Path], generator: Random) -> Parents:
    for name, file in _shuffled(files.items(), generator):
        try:
            yield name, file.read_bytes().decode("utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue  # another encoding, or a record of a file since removed


def _shuffled(items: Iterable[tuple[str, T]], generator: Random) -> list[tuple[str, T]]:
    ordered = sorted(items, key=lambda item: item[0])
    generator.shuffle(ordered)
    return ordered


def _pieces(text: str, max_chars: int) -> Iterator[str]:
    for paragraph in re.split(r"\n[ \t\r\f]*\n", text):
        current = ""
        for line in paragraph.strip("\n").rstrip().split("\n"):
            for start in range(0, len(line), max_chars):
                piece = line[start : start + max_chars]
                joined = f"{current}\n{piece}" if current else piece
                if len(joined) > max_chars:
                    yield current
                    joined = piece
                current = joined
        yield current


def _record(origin: Origin, parent: str, number: int, text: str) -> Record:
    return {
        "id": f"{origin.source}/{parent}#{number}",
        "text": text,
        "source": origin.source,
        "domain": origin.domain,
        "metadata": {"file": parent, "passage": number},
    }


def _lines(records: Iterable[Record]) -> list[bytes]:
    return [json.dumps(record, ensure_ascii=False).encode() for record in records]


def _with_damage(lines: list[bytes], records: Sequence[Record], generator: Random) -> list[bytes]:
    copies = [{**record, "id": f"{record['id']}-copy"} for record in generator.sample(records, DUPLICATES)]
    damaged = list(lines)
    for line in [*_lines(copies), *DAMAGED_LINES]:
        damaged.insert(generator.randint(0, len(damaged)), line)
    return damaged


def _write(path: Path, lines: Iterable[bytes]) -> Path:
    payload = b"".join(line + b"\n" for line in lines)
    if path.suffix == ".gz":
        payload = gzip.compress(payload, mtime=0)
    elif path.suffix == ".zst":
        payload = zstandard.compress(payload)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(payload)
    return path
