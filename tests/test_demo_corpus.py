"""The demo corpus: reproducible, free of leakage, and rare where it should be."""

import gzip
import json
from pathlib import Path
from random import Random

import pytest
import zstandard

from quad_tasks import demo_corpus


def read_lines(path: Path) -> list[bytes]:
    payload = path.read_bytes()
    if path.suffix == ".gz":
        payload = gzip.decompress(payload)
    elif path.suffix == ".zst":
        payload = zstandard.ZstdDecompressor().decompressobj().decompress(payload)
    return payload.removesuffix(b"\n").split(b"\n")


def read_records(paths: list[Path]) -> list[dict]:
    lines = (line for path in paths for line in read_lines(path) if line not in demo_corpus.DAMAGED_LINES)
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return demo_corpus.build_corpus(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def records(corpus):
    return {split: read_records(paths) for split, paths in corpus.items()}


@pytest.mark.slow
def test_same_seed_writes_the_same_bytes(corpus, tmp_path):
    again = demo_corpus.build_corpus(tmp_path)
    first = {path.name: path.read_bytes() for path in corpus["pool"]}
    assert {path.name: path.read_bytes() for path in again["pool"]} == first


def test_another_seed_splits_otherwise():
    topics = [next(demo_corpus.read_topics(Random(seed)))[0] for seed in range(8)]
    assert len(set(topics)) > 1


def test_splits_share_no_parent_file(records):
    parents = {
        split: {(r["source"], r["metadata"]["file"]) for r in found if r["metadata"]}
        for split, found in records.items()
    }
    assert not parents["reference"] & parents["heldout"]
    assert not parents["reference"] & parents["pool"]
    assert not parents["heldout"] & parents["pool"]


def test_code_and_docstrings_come_from_different_modules(records):
    files = {source: set() for source in ("stdlib_code", "stdlib_docstrings")}
    for record in records["pool"] + records["heldout"]:
        if record["source"] in files:
            files[record["source"]].add(record["metadata"]["file"])
    assert not files["stdlib_code"] & files["stdlib_docstrings"]


def test_texts_are_distinct_but_for_the_planted_copies(records):
    everything = [record["text"] for found in records.values() for record in found]
    assert len(everything) - len(set(everything)) == demo_corpus.DUPLICATES


def test_ids_are_distinct(records):
    everything = [record["id"] for found in records.values() for record in found]
    assert len(set(everything)) == len(everything)


def test_passages_stay_within_the_length_limits(records):
    lengths = [len(record["text"]) for found in records.values() for record in found]
    assert min(lengths) >= demo_corpus.MIN_CHARS
    assert max(lengths) <= demo_corpus.MAX_CHARS


def test_the_reference_style_is_rare_in_the_pool(records):
    share = sum(record["domain"] == "reference_docs" for record in records["pool"]) / len(records["pool"])
    assert 0.02 < share < 0.2
    assert {record["domain"] for record in records["reference"]} == {"reference_docs"}


def test_every_domain_but_noise_has_a_heldout_file(corpus, records):
    domains = {record["domain"] for record in records["pool"]} - {"noise"}
    assert {path.name.split(".")[0] for path in corpus["heldout"]} == domains


def test_every_damaged_line_is_planted_once(corpus):
    lines = [line for path in corpus["pool"] for line in read_lines(path)]
    assert [lines.count(line) for line in demo_corpus.DAMAGED_LINES] == [1] * len(demo_corpus.DAMAGED_LINES)


def test_the_pool_comes_in_plain_gzip_and_zstandard(corpus):
    assert {path.suffix for path in corpus["pool"]} == {".jsonl", ".gz", ".zst"}


def test_paragraphs_are_packed_up_to_the_limit():
    paragraphs = ["a" * 150, "b" * 150, "c" * 250]
    assert demo_corpus.cut_passages("\n\n".join(paragraphs), 302, set()) == [
        f"{paragraphs[0]}\n\n{paragraphs[1]}",
        "c" * 250,
    ]


def test_a_paragraph_seen_before_is_left_out():
    seen: set[str] = set()
    demo_corpus.cut_passages("x" * 300, 500, seen)
    assert demo_corpus.cut_passages(f"{'x' * 300}\n \n{'y' * 300}", 500, seen) == ["y" * 300]


def test_a_long_paragraph_is_cut_at_line_ends_and_a_long_line_inside():
    text = "\n".join(["d" * 220, "e" * 220, "f" * 300 + "g" * 250])
    assert demo_corpus.cut_passages(text, 300, set()) == ["d" * 220, "e" * 220, "f" * 300, "g" * 250]


def test_an_installation_without_a_domain_is_named():
    empty = demo_corpus.Origin("c_headers", "headers", lambda generator: iter(()), 500, (0, 10, 10), ".jsonl")
    with pytest.raises(FileNotFoundError, match="text for 'c_headers', found none for heldout, pool"):
        demo_corpus.collect(empty, Random(0), set())
