"""The contracts find what breaks them: each fault is planted, and named."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from quad_tasks import plugins, testing
from quad_tasks.commands.export.formats import LINES, Exporter, Written
from quad_tasks.core.clustering.embedders import NGRAMS, Embedder, EmbedderInputs
from quad_tasks.core.scorers import EXACT, Scorer
from quad_tasks.storage.input_files import InputError, Reader

GIVEN = EmbedderInputs({"dimension": 4}, "cpu", {}, lambda: None)


def unit(texts):
    vectors = np.array([[len(text), text.count("e") + 1, 1] for text in texts], np.float32).reshape(len(texts), 3)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("embed", "message"),
    [
        (lambda texts: unit(texts) * 2, "norm 1"),
        (lambda texts: unit(texts).astype(float), "float32"),
        (lambda texts: unit([*texts, "x"]), "rows"),
        (lambda texts: unit([*texts[1:], "x"]) if texts else unit([]), "expected the same rows"),
    ],
)
def test_a_faulty_embedder_is_found(embed, message):
    testing.check_embedder(Embedder(load=lambda given: unit), GIVEN)
    with pytest.raises(AssertionError, match=message):
        testing.check_embedder(Embedder(load=lambda given: embed), GIVEN)


def test_own_ngrams_keep_the_contract():
    testing.check_embedder(NGRAMS, GIVEN)


def _plant(monkeypatch, kind, function):
    monkeypatch.setattr(testing, "PLANTED", function, raising=False)
    monkeypatch.setattr(plugins, "_installed", lambda asked: frozenset({("planted", "quad_tasks.testing:PLANTED")}))


def test_a_policy_that_forgets_its_generator_is_found(monkeypatch):
    _plant(monkeypatch, "policies", lambda state, *rest: np.random.default_rng().standard_normal(len(state.pulls)))
    with pytest.raises(AssertionError, match="the same arms"):
        testing.check_policy("planted")


def test_a_scorer_that_counts_wrong_or_ranks_badly_or_has_no_cost_is_found(monkeypatch):
    def ranks_badly(*arguments):
        influence_NK, n_tokens_N = EXACT.score(*arguments)
        return -influence_NK, n_tokens_N

    def counts_wrong(*arguments):
        influence_NK, n_tokens_N = EXACT.score(*arguments)
        return influence_NK, n_tokens_N + 1

    def halves(*arguments):
        influence_NK, n_tokens_N = EXACT.score(*arguments)
        return influence_NK / 2, n_tokens_N

    for planted, message in (
        (Scorer(ranks_badly, EXACT.flops), "rank correlation"),
        (Scorer(counts_wrong, EXACT.flops), "a target for every token"),
        (Scorer(halves, EXACT.flops), "values within 25% of exact scores' standard deviation"),
        (Scorer(EXACT.score, lambda *shape: 7.0), "PassFlops"),
        (EXACT.score, "core.scorers.Scorer"),
    ):
        _plant(monkeypatch, "scorers", planted)
        with pytest.raises(AssertionError, match=message):
            testing.check_scorer("planted")


EXAMPLE = b"one\ntwo\nthree\n"
TEXTS = [{"text": "one"}, {"text": "two"}, {"text": "three"}]


def lines(uri, ending, text_field):
    try:
        text = Path(uri).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{uri}: {error}") from error
    yield from ((number, {text_field: line}) for number, line in enumerate(text.splitlines(), start=1))


def counts_from_zero(*arguments):
    yield from ((number - 1, record) for number, record in lines(*arguments))


def loses_the_last(*arguments):
    yield from list(lines(*arguments))[:-1]


def takes_any_bytes(uri, ending, text_field):
    if not uri.endswith(".planted"):
        raise InputError(f"{uri}: no")
    text = Path(uri).read_text(errors="replace")
    yield from ((number, {text_field: line}) for number, line in enumerate(text.splitlines(), start=1))


def starts_in_the_middle(*arguments):
    rows = list(lines(*arguments))
    yield from rows if len(rows) == 3 else ((number, {"text": "?"}) for number, _ in [*rows, *rows])


def lets_the_error_pass(uri, ending, text_field):
    yield from ((number, {text_field: line}) for number, line in enumerate(Path(uri).read_text().splitlines(), start=1))


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (counts_from_zero, "numbers from 1"),
        (loses_the_last, "expected the records"),
        (starts_in_the_middle, "cut at 30%"),
        (takes_any_bytes, "a gzip file of this name"),
    ],
)
def test_a_faulty_reader_is_found(monkeypatch, read, message):
    _plant(monkeypatch, "readers", Reader(lines, compressed=False))
    testing.check_reader("planted", EXAMPLE, TEXTS)
    _plant(monkeypatch, "readers", Reader(read, compressed=False))
    with pytest.raises(AssertionError, match=message):
        testing.check_reader("planted", EXAMPLE, TEXTS)


def test_a_reader_that_lets_another_error_pass_is_found(monkeypatch):
    _plant(monkeypatch, "readers", Reader(lets_the_error_pass, compressed=False))
    with pytest.raises(UnicodeDecodeError, match="utf-8"):
        testing.check_reader("planted", EXAMPLE, TEXTS)


def write_texts(store, stem, tables, form):
    texts = [text for table in tables for text in table["text"].to_pylist()]
    store.put(f"{stem}.txt", "\0".join(texts).encode())
    return Written([f"{stem}.txt"])


def read_texts(folder):
    return [text for path in sorted((folder / "data").iterdir()) for text in path.read_text().split("\0")]


def draws_a_name(store, stem, tables, form):
    store.put(f"{stem}.token", str(np.random.default_rng().integers(2**60)).encode())
    return Written([*write_texts(store, stem, tables, form).names, f"{stem}.token"])


def names_nothing(*arguments):
    write_texts(*arguments)
    return Written([])


def turns_around(store, stem, tables, form):
    return write_texts(store, stem, list(tables)[::-1], form)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (draws_a_name, "the same bytes each time"),
        (names_nothing, "expected the files named"),
        (turns_around, "expected to read back"),
    ],
)
def test_a_faulty_exporter_is_found(monkeypatch, write, message):
    _plant(monkeypatch, "exporters", Exporter(write_texts))
    testing.check_exporter("planted", read_texts)
    _plant(monkeypatch, "exporters", dataclasses.replace(LINES, write=write))
    with pytest.raises(AssertionError, match=message):
        testing.check_exporter("planted", read_texts)
