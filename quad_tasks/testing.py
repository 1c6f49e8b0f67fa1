"""The contracts of the extension points, to be called from an extension's own tests.

Each `check_...` takes an extension and asserts what the product relies on; it returns nothing and raises
`AssertionError` with what was expected. `quad_tasks.plugins` says how an extension is registered. Every one of the
product's own passes the same checks.
"""

import dataclasses
import gzip
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from scipy.stats import spearmanr

from quad_tasks.commands.export.formats import OWN_COLUMNS, TOKEN_IDS, ExportedRun, Exporter, ExportForm
from quad_tasks.commands.export.tokens import encode_documents
from quad_tasks.config.load import parse_config
from quad_tasks.config.schema import FieldNames
from quad_tasks.core import bandit, influence
from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.calibration import MOST_ERROR, relative_error
from quad_tasks.core.clustering.embedders import Embedder, EmbedderInputs
from quad_tasks.core.lm.batching import make_batches
from quad_tasks.core.lm.flops import PassFlops, model_size
from quad_tasks.core.lm.model import LlamaSize, fresh_llama
from quad_tasks.core.lm.tokenizer import train_tokenizer
from quad_tasks.core.scorers import Scorer
from quad_tasks.manifests.influence import TokenizerInfo
from quad_tasks.manifests.run import SelectionManifest
from quad_tasks.plugins import load_plugin
from quad_tasks.records import Pull
from quad_tasks.storage.errors import StorageError
from quad_tasks.storage.input_files import digest_spans, find_cuts, find_reader
from quad_tasks.storage.readers import Rejection, read_rows
from quad_tasks.storage.store import open_store

TEXTS = (
    "The ship left the harbour at dawn, with a crew of nine.",
    "def add(a, b):\n    return a + b",
    "A pinch of salt, two eggs and a little flour.",
    "Das Wetter ist heute schön.",
    "x",
)
"""Texts of several kinds, one of them of a single letter."""
UNIT_TOLERANCE = 1e-3
SAME_TOLERANCE = 1e-5


def check_embedder(embedder: Embedder, given: EmbedderInputs, texts: Sequence[str] = TEXTS, seed: int = 0) -> None:
    """Check that an embedder gives unit rows, each by its own text alone, alike every time.

    Args:
        embedder: the extension.
        given: what it is loaded with; `fitted` is replaced where the embedder has a `fit`.
        texts: at least two.
        seed: of the fit.
    """
    if embedder.fit:
        fitted = embedder.fit(texts, given.settings, seed)
        again = embedder.fit(texts, given.settings, seed)
        assert all(np.array_equal(fitted[name], again[name]) for name in fitted), "fit: expected equal arrays each time"
        given = dataclasses.replace(given, fitted=fitted)
    embed = embedder.load(given)
    vectors_ND = embed(texts)
    assert vectors_ND.dtype == np.float32, f"expected float32 vectors, got {vectors_ND.dtype}"
    assert vectors_ND.ndim == 2, f"expected vectors [N, D], got shape {vectors_ND.shape}"
    assert len(vectors_ND) == len(texts), f"expected {len(texts)} rows, got {len(vectors_ND)}"
    assert np.isfinite(vectors_ND).all(), "expected finite vectors"
    norms = np.linalg.norm(vectors_ND, axis=1)
    assert np.all((np.abs(norms - 1) < UNIT_TOLERANCE) | (norms == 0)), f"expected rows of norm 1 (or 0), got {norms}"
    assert embed([]).shape == (0, vectors_ND.shape[1]), f"no text: expected shape (0, D), got {embed([]).shape}"
    backwards_ND = embed(list(texts)[::-1])[::-1]
    alone_ND = np.concatenate([embed([text]) for text in texts])
    for name, other_ND in (("in another order", backwards_ND), ("one by one", alone_ND)):
        assert np.allclose(vectors_ND, other_ND, atol=SAME_TOLERANCE), f"texts {name}: expected the same rows"


def check_scorer(name: str, floor: float = 0.9, seed: int = 0) -> None:
    """Check that a scorer scores each document by itself, along each direction, nearly as exact scoring, and at a cost.

    Args:
        name: the registered name.
        floor: least rank correlation with `exact` on a small fresh Llama; a run asks for more (`bandit.scorer_floor`).
        seed: of the model, the documents and the directions.
    """
    size = LlamaSize(width=16, layers=2, heads=2, key_value_heads=1, mlp_width=32)
    model = fresh_llama(size, 64, 32, seed).eval()
    generator = np.random.default_rng(seed)
    ids = [generator.integers(3, 64, n).tolist() for n in (2, 5, 9, 14, 20, 27, 31, 8, 12, 3, 17, 24)]
    torch_generator = torch.Generator().manual_seed(seed)
    blocks = find_blocks(model, "joint")
    scorer = load_plugin("scorers", name)
    assert isinstance(scorer, Scorer), f"expected a core.scorers.Scorer, got {scorer!r}"
    reading = scorer.flops(model_size(model, blocks), 2, {})
    assert isinstance(reading, PassFlops), f"flops: expected core.lm.flops.PassFlops, got {reading!r}"
    assert reading.token > 0, f"flops: expected some a token, got {reading}"
    directions = {
        direction: {block.name: 0.1 * torch.randn(block.shape, generator=torch_generator) for block in blocks}
        for direction in ("a", "b")
    }
    weights = {key: value.clone() for key, value in model.state_dict().items()}

    def score(documents: Sequence[Sequence[int]], by: str) -> tuple[np.ndarray, np.ndarray]:
        batches, owner_W = make_batches(documents, 32, 64)
        scores = influence.score_directions(model, batches, directions, by)
        order = np.argsort(owner_W.numpy(), kind="stable")
        influence_NK = np.stack([scores[direction].influence for direction in directions], axis=1)
        return influence_NK[order], scores["a"].n_tokens[order]

    influence_NK, n_tokens_N = score(ids, name)
    assert influence_NK.shape == (len(ids), 2), f"expected influence [N, K] = {(len(ids), 2)}, got {influence_NK.shape}"
    assert n_tokens_N.tolist() == [len(one) - 1 for one in ids], "expected a target for every token but the first"
    backwards_NK, _ = score(ids[::-1], name)
    assert np.allclose(influence_NK, backwards_NK[::-1], rtol=1e-3, atol=1e-6), "expected no effect of the batch"
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items()), "weights were changed"
    exact_NK, _ = score(ids, "exact")
    for k in range(2):
        scores_N, exact_N = influence_NK[:, k] / n_tokens_N, exact_NK[:, k] / n_tokens_N
        correlation = spearmanr(scores_N, exact_N).statistic
        assert correlation >= floor, f"expected a rank correlation with exact scoring of {floor}, got {correlation:.3f}"
        error, most = relative_error(scores_N, exact_N), MOST_ERROR
        assert error <= most, f"expected values within {most:.0%} of exact scores' standard deviation, got {error:.0%}"


def check_policy(name: str, rounds: int = 8, arms: int = 12, seed: int = 0) -> None:
    """Check that a policy chooses arms that are not exhausted, by state and seed alone, and ends when all are.

    Args:
        name: the registered name.
        rounds: played.
        arms: of the game, at least 4.
        seed: of the game's rewards.
    """
    policy = bandit.named_policy(name, arms_per_round=3, documents_per_pull=4)
    features_KD = np.random.default_rng(seed).standard_normal((arms, 3))
    rewards = np.random.default_rng(seed + 1)
    state = bandit.initial_state([4, 0, *[4 * rounds] * (arms - 2)])
    for number in range(rounds):
        before = dataclasses.replace(state)
        chosen = bandit.choose_arms(state, policy, np.random.default_rng(number), features_KD)
        again = bandit.choose_arms(state, policy, np.random.default_rng(number), features_KD)
        assert np.array_equal(chosen, again), "expected the same arms from the same state and generator"
        assert all(np.array_equal(a, b) for a, b in zip(vars_of(before), vars_of(state), strict=True)), "state changed"
        assert len(chosen) == len(set(chosen.tolist())) == 3, f"expected 3 distinct arms, got {chosen}"
        assert not bandit.exhausted_arms(state)[chosen].any(), f"expected no exhausted arm, got {chosen}"
        pulls = [Pull(int(arm), int(state.cursor[arm]), 4, 40, float(rewards.normal(arm)), 1.0) for arm in chosen]
        state = bandit.update(state, pulls, policy)
    spent = dataclasses.replace(state, cursor=state.n_documents.copy())
    left = bandit.choose_arms(spent, policy, np.random.default_rng(0), features_KD)
    assert len(left) == 0, f"expected no arm once all are exhausted, got {left}"


def vars_of(state: object) -> list[np.ndarray]:
    """Return a state's arrays and numbers, in the order of its fields."""
    return [np.asarray(getattr(state, name)) for name in state.__dataclass_fields__]  # type: ignore[attr-defined]


def check_reader(name: str, data: bytes, records: Sequence[Mapping[str, Any] | str]) -> None:
    """Check that a reader gives each record once, sets bad ones aside alone, and refuses a file it cannot read whole.

    Args:
        name: the registered name: the suffix of the files, without its dot.
        data: an example, uncompressed; with a bad record between good ones if the format can have one.
        records: what it holds in order: a record's fields, or the reason word of a bad one.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"example.{name}"
        path.write_bytes(data)
        rows = list(read_rows(str(path)))
        numbers = [number for number, _ in rows]
        assert numbers == sorted(set(numbers)), f"expected ascending numbers, each once, got {numbers}"
        assert min(numbers) >= 1, f"expected numbers from 1, got {numbers}"
        found = [record.reason if isinstance(record, Rejection) else dict(record) for _, record in rows]
        assert found == list(records), f"expected the records {list(records)}, got {found}"
        assert list(read_rows(str(path))) == rows, "expected the same records every time"
        for span_bytes in (1, len(data) // 2):
            assert _rows_by_span(str(path), span_bytes) == rows, (
                f"spans of {span_bytes} bytes: expected the same records"
            )
        if find_reader(name).compressed:
            compressed = path.with_name(f"{path.name}.gz")
            compressed.write_bytes(gzip.compress(data))
            assert list(read_rows(str(compressed))) == rows, "compressed: expected the same records"
        for share in (0.3, 0.6, 0.95):
            path.write_bytes(data[: int(share * len(data))])
            got = _rows_or_refused(path)
            whole = rows[: max(len(got) - 1, 0)]
            assert got[:-1] == whole, f"cut at {share:.0%}: expected InputError, or the records before the cut"
        path.write_bytes(gzip.compress(data))
        other = [record for _, record in _rows_or_refused(path) if not isinstance(record, Rejection)]
        assert other == [], f"a gzip file of this name: expected InputError, or no record, got {other}"
        path.unlink()
        assert _rows_or_refused(path) == [], "a missing file: expected InputError"


def _rows_by_span(uri: str, span_bytes: int) -> list[Any]:
    """Read a file's rows span by span, where its reader cuts it."""
    cuts = find_cuts(uri, span_bytes)
    spans = [None] if cuts is None else digest_spans(uri, cuts)[1]
    return [row for span in spans for row in read_rows(uri, span=span)]


def _rows_or_refused(path: Path) -> list[Any]:
    """Read a file's rows; none where it is refused by name."""
    try:
        return list(read_rows(str(path)))
    except StorageError as error:
        refused = str(error)
    assert path.name in refused, f"expected an error that names {path.name}, got {refused}"
    return []


def check_exporter(name: str, read: Callable[[Path], Sequence[Any]]) -> None:
    """Check that an exporter writes every document once, in order, the same bytes each time, and no other file.

    Args:
        name: the registered name.
        read: reads an exported folder back, by the library that defines the format: each document's text, or, where
            the format holds token ids, a list of these.
    """
    exporter: Exporter = load_plugin("exporters", name)
    tokenizer = train_tokenizer(list(TEXTS), vocabulary=300)
    ids = [one.tolist() for one in encode_documents(tokenizer, list(TEXTS))]
    ways = {"never": (None,), "optional": (None, tokenizer), "always": (tokenizer,)}
    for chosen in ways[exporter.tokens]:
        form = ExportForm(FieldNames(), "2026-01-02T03:04:05+00:00", chosen)
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
            files = _export(exporter, Path(one), form)
            assert _export(exporter, Path(two), form) == files, "expected the same bytes each time"
            got = [item if isinstance(item, str) else list(item) for item in read(Path(one))]
        expected = ids if chosen else list(TEXTS)
        assert got == expected, f"expected to read back {expected}, got {got}"


def _export(exporter: Exporter, folder: Path, form: ExportForm) -> dict[str, bytes]:
    """Write the texts in two shards, and what stands beside them; return all files."""
    store = open_store(str(folder))
    named: list[str] = []
    entries: list[Any] = []
    for number, texts in enumerate((TEXTS[:3], TEXTS[3:])):
        stem = f"data/part-{number:05d}"
        written = exporter.write(store, stem, _tables(texts, 3 * number, form), form)
        assert all(file.startswith(stem) for file in written.names), f"expected {stem}..., got {written.names}"
        named += written.names
        entries.append(written.entry)
    named += exporter.finish(store, entries, _exported_run())
    assert sorted(named) == store.list("data"), f"expected the files named, {named}, got {store.list('data')}"
    return {key: store.get(key) for key in store.list()}


def _tables(texts: Sequence[str], first: int, form: ExportForm) -> Iterator[pa.Table]:
    """Yield tables of one document each, as an export gives them."""
    for number, text in enumerate(texts, start=first):
        own = dict(zip(OWN_COLUMNS, (f"id-{number}", text, "here", json.dumps({"number": number})), strict=True))
        known = {"n_tokens": len(text), "arm": number, "stage": 0, "round": 1, "influence": 0.5, "scored": True}
        table = pa.Table.from_pylist([own | known])
        if form.tokenizer:
            ids = encode_documents(form.tokenizer, [text])
            table = table.append_column(TOKEN_IDS, pa.array(ids, pa.large_list(pa.int32())))
        yield table


def _exported_run() -> ExportedRun:
    least = {"pool": {"inputs": ["x"]}, "reference": {"inputs": ["x"]}, "selection": {"budget_tokens": 1}}
    manifest = SelectionManifest(
        documents_in=5, set_aside={}, unpulled=0, rejected={}, selected=5, run="run", config="", pool="",
        pool_digest="", tokenizer=TokenizerInfo(name="made up", sha256="", vocabulary=300), budget_tokens=100,
        n_tokens=50, rows=5,
        parts=(), mixture={}, mixture_sha256=None, manifests={}, uuid="", created="2026-01-02T03:04:05+00:00",
    )  # fmt: skip
    return ExportedRun(parse_config(least, "contract"), manifest, "other")
