"""An extension as a stranger would write it: one of every kind, each as small as it can be."""

import io

import numpy as np
import torch

from quad_tasks.commands.export.formats import Exporter, Written
from quad_tasks.core.bandit import exhausted_arms
from quad_tasks.core.clustering.embedders import Embedder
from quad_tasks.core.lm.flops import contracted_flops
from quad_tasks.core.scorers import EXACT, Scorer
from quad_tasks.storage.input_files import Reader, open_input, refuse_other_kind
from quad_tasks.storage.readers import Rejection

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def embed(texts):
    counts_ND = np.array([[text.lower().count(letter) for letter in LETTERS] for text in texts], np.float32)
    counts_ND = counts_ND.reshape(len(texts), len(LETTERS))
    return counts_ND / np.maximum(np.linalg.norm(counts_ND, axis=1, keepdims=True), 1e-9)


letters = Embedder(load=lambda given: embed)


def fewest_first(state, policy, generator, features_KD):
    return np.where(exhausted_arms(state), -np.inf, -state.pulls)


def score_by_largest(model, batches, blocks, directions, settings):
    """Leave out the quarter of each block's numbers that are smallest."""
    kept = [
        {name: torch.where(part.abs() > part.abs().quantile(0.25), part, 0) for name, part in one.items()}
        for one in directions
    ]
    return EXACT.score(model, batches, blocks, kept, settings)


def score_half(model, batches, blocks, directions, settings):
    """Give half of what is expected."""
    influence_NK, n_tokens_N = EXACT.score(model, batches, blocks, directions, settings)
    return influence_NK / 2, n_tokens_N


def flops(size, directions, settings):
    return contracted_flops(size, directions * size.tracked * 0.75)


largest = Scorer(score_by_largest, flops)
half = Scorer(score_half, flops)


def read_pairs(uri, ending, text_field):
    """Read lines of `id=text`."""
    with open_input(uri) as file, io.TextIOWrapper(file, errors="replace") as lines:
        refuse_other_kind(uri, file.read(32), "pairs")
        file.seek(0)
        for number, line in enumerate(lines, start=1):
            key, equals, text = line.rstrip("\n").partition("=")
            yield number, {"id": key, text_field: text} if equals else Rejection("no_equals_sign", f"got {line!r}")


pairs = Reader(read_pairs, compressed=False)


def write_plain(store, stem, tables, form):
    return Written([], [text for table in tables for text in table["text"].to_pylist()])


def join_plain(store, entries, run):
    """Write all texts into one file, a zero byte after each."""
    store.put("data/all.txt", "".join(f"{text}\0" for texts in entries for text in texts).encode())
    return ["data/all.txt"]


plain = Exporter(write_plain, finish=join_plain)
