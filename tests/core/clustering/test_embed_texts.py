"""Embeddings against plain second implementations: scikit-learn's, a full SVD, one text at a time without padding."""

import gzip
import json
import math
from collections import Counter
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.metrics import adjusted_mutual_info_score
from transformers import BertConfig, BertModel, PreTrainedModel

from quad_tasks.core.clustering import embed_texts
from quad_tasks.core.clustering.embed_texts import (
    Encoder,
    embed_encoder,
    embed_hidden_states,
    embed_ngrams,
    embedder_from_arrays,
    embedder_to_arrays,
    fit_ngram_embedder,
    load_encoder,
    unit_rows,
)
from quad_tasks.core.clustering.kmeans import assign_arms, train_centroids
from quad_tasks.core.lm.model import FastTokenizer, LlamaSize, ModelError, fresh_llama
from quad_tasks.core.lm.tokenizer import train_tokenizer

CANDIDATES = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "candidate"
FEATURES = 2**12
TEXTS = [
    "for radius in range(1, 9):\n    print(3.14 * radius ** 2)",
    "for i in range(10):\n    print(i, end='')",
    "It was the best of times, it was the worst of times.",
    "She looked at him for a long time, and it was the worst of looks.",
    "Die Würde des Menschen ist unantastbar.",
    "Alle Menschen sind vor dem Gesetz gleich.",
    "人人生而自由，在尊严和权利上一律平等。",
    "人人有资格享有本宣言所载的一切权利和自由。",
]


@pytest.fixture(scope="module")
def tokenizer() -> FastTokenizer:
    return train_tokenizer(TEXTS, vocabulary=300)


@pytest.fixture(scope="module")
def llama(tokenizer: FastTokenizer) -> PreTrainedModel:
    return fresh_llama(LlamaSize(16, 2, 2, 1, 24), len(tokenizer), window_tokens=64, seed=0)


@pytest.fixture(scope="module")
def bert(tokenizer: FastTokenizer) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
        return BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **shape)).eval()


def normalised(vector: torch.Tensor) -> np.ndarray:
    return (vector / vector.norm()).detach().numpy()


def test_every_character_ngram_is_hashed_once() -> None:
    text, padded = "ab  a\n", " ab a "
    ngrams = Counter(padded[i : i + n] for n in (1, 2, 3) for i in range(len(padded) - n + 1))
    hashed = Counter(embed_texts._hash_ngrams(text, 2**32).tolist())
    assert sorted(hashed.values()) == sorted(ngrams.values())


def test_hashes_fill_the_features_evenly() -> None:
    features = {
        int(h) for a in range(32, 96) for h in embed_texts._hash_ngrams(f"{chr(a)}{chr(a + 1)}{chr(a + 2)}", 64)
    }
    assert len(features) == 64


def test_weights_equal_scikit_learns_tf_idf() -> None:
    counts = embed_texts._count_ngrams(TEXTS, FEATURES)
    idf = fit_ngram_embedder(TEXTS, 4, n_features=FEATURES).idf_F
    expected = TfidfTransformer(sublinear_tf=True).fit_transform(counts.astype(np.float64))
    assert embed_texts._tf_idf(counts, idf).toarray() == pytest.approx(expected.toarray(), abs=1e-6)


def test_cosines_equal_those_of_the_full_space_when_no_rank_is_cut() -> None:
    embedder = fit_ngram_embedder(TEXTS, len(TEXTS), n_features=FEATURES)
    vectors = embed_ngrams(embedder, TEXTS)
    weights = embed_texts._tf_idf(embed_texts._count_ngrams(TEXTS, FEATURES), embedder.idf_F).toarray()
    assert vectors @ vectors.T == pytest.approx(weights @ weights.T, abs=1e-5)


def test_the_fitted_subspace_is_that_of_a_full_svd() -> None:
    embedder = fit_ngram_embedder(TEXTS, 3, n_features=FEATURES)
    weights = embed_texts._tf_idf(embed_texts._count_ngrams(TEXTS, FEATURES), embedder.idf_F).toarray()
    left, sizes, _ = np.linalg.svd(weights.astype(np.float64), full_matrices=False)
    expected = left[:, :3] * sizes[:3]
    projected = weights @ embedder.components_FD
    assert projected @ projected.T == pytest.approx(expected @ expected.T, abs=1e-4)


def test_texts_of_a_kind_are_nearest_neighbours() -> None:
    vectors = embed_ngrams(fit_ngram_embedder(TEXTS, 6, n_features=FEATURES), TEXTS)
    cosine = vectors @ vectors.T - 2 * np.eye(len(TEXTS))
    assert cosine.argmax(axis=1).tolist() == [1, 0, 3, 2, 5, 4, 7, 6]


def test_the_same_texts_and_seed_give_the_same_bytes() -> None:
    first, again = (fit_ngram_embedder(iter(TEXTS), 4, seed=7, n_features=FEATURES) for _ in range(2))
    assert first.components_FD.tobytes() == again.components_FD.tobytes()
    assert first.idf_F.tobytes() == again.idf_F.tobytes()


def test_an_ngram_vector_does_not_depend_on_the_other_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = fit_ngram_embedder(TEXTS, 4, n_features=FEATURES)
    whole = embed_ngrams(embedder, TEXTS)
    monkeypatch.setattr(embed_texts, "BLOCK_TEXTS", 3)
    assert np.array_equal(embed_ngrams(embedder, TEXTS), whole)
    assert np.array_equal(embed_ngrams(embedder, TEXTS[::-1])[::-1], whole)


def test_a_sample_smaller_than_the_dimension_leaves_the_last_coordinates_zero() -> None:
    vectors = embed_ngrams(fit_ngram_embedder(TEXTS[:2], 5, n_features=FEATURES), TEXTS)
    assert vectors.shape == (len(TEXTS), 5)
    assert not vectors[:, 2:].any()


def test_an_ngram_embedder_needs_a_text() -> None:
    with pytest.raises(ValueError, match="expected at least one to fit"):
        fit_ngram_embedder([], 4)


def test_an_embedder_comes_back_from_its_arrays() -> None:
    embedder = fit_ngram_embedder(TEXTS, 4, n_features=FEATURES)
    back = embedder_from_arrays(embedder_to_arrays(embedder))
    assert np.array_equal(embed_ngrams(back, TEXTS), embed_ngrams(embedder, TEXTS))


@pytest.mark.parametrize(
    "arrays", [{"idf": np.ones(4)}, {"idf": np.ones(4), "components": np.ones((5, 2))}], ids=["missing", "mismatched"]
)
def test_arrays_that_are_no_embedder_are_refused(arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"expected arrays idf \[F\] and components \[F, D\], found"):
        embedder_from_arrays(arrays)


def test_rows_are_scaled_and_a_row_of_zeros_is_the_first_axis() -> None:
    rows = unit_rows(np.array([[3, 4], [0, 0]], np.float32))
    assert rows.dtype == np.float32
    assert rows == pytest.approx(np.array([[0.6, 0.8], [1, 0]]), abs=1e-7)


@pytest.mark.parametrize("text", ["", " \n\t"], ids=["empty", "blank"])
def test_a_text_without_content_is_the_first_axis_whichever_the_method(
    text: str, tokenizer: FastTokenizer, llama: PreTrainedModel, bert: PreTrainedModel
) -> None:
    ngrams = embed_ngrams(fit_ngram_embedder(TEXTS, 4, n_features=FEATURES), [text])
    assert ngrams.tolist() == [[1, 0, 0, 0]]
    if not text:  # a blank one has tokens
        encoded = embed_encoder(Encoder(bert, tokenizer, torch.float32), [text, TEXTS[0]])
        hidden = embed_hidden_states(llama, tokenizer, [text, TEXTS[0]])
        assert encoded[0].tolist() == hidden[0].tolist() == [1] + [0] * 15
        assert not np.isnan(encoded).any()


@pytest.mark.parametrize("batch_tokens", [1, 50, 10_000])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_encoder_vectors_equal_one_text_at_a_time(
    pooling: embed_texts.Pooling, batch_tokens: int, tokenizer: FastTokenizer, bert: PreTrainedModel
) -> None:
    vectors = embed_encoder(Encoder(bert, tokenizer, torch.float32), TEXTS, pooling, 40, batch_tokens)
    for text, vector in zip(TEXTS, vectors, strict=True):
        states = bert(torch.tensor([tokenizer(text)["input_ids"][:40]])).last_hidden_state[0]
        assert vector == pytest.approx(normalised(states.mean(0) if pooling == "mean" else states[0]), abs=2e-6)


def test_half_precision_keeps_the_vectors_direction(tokenizer: FastTokenizer, bert: PreTrainedModel) -> None:
    half, whole = (embed_encoder(Encoder(bert, tokenizer, d), TEXTS) for d in (torch.bfloat16, torch.float32))
    assert half.dtype == np.float32
    assert (half * whole).sum(axis=1).min() > 0.999
    assert not np.array_equal(half, whole)


@pytest.mark.parametrize("length", [7, 40])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_with_whole_weights_is_the_softmax_of_dense_products(length: int, masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, 2, length, 8, generator=generator).bfloat16() for _ in range(3))
    mask = torch.ones(3, 1, length, length, dtype=torch.bool)
    mask[1, :, :, length - 3 :] = False
    states, _ = embed_texts._attend_at_once(
        torch.nn.Module(), query, key, value, mask if masked else None, scaling=0.3, is_causal=False
    )
    scores = torch.einsum("nhte,nhse->nhts", query.double(), key.double()) * 0.3
    if masked:
        scores = scores.masked_fill(~mask, -torch.inf)
    expected = torch.einsum("nhts,nhse->nthe", scores.softmax(-1), value.double())
    assert states.dtype is torch.bfloat16
    assert states.double() == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("why", ["long", "causal", "grouped heads", "position bias", "float32"])
def test_attention_that_whole_weights_do_not_serve_is_pytorchs(why: str) -> None:
    generator = torch.Generator().manual_seed(0)
    length = 520 if why == "long" else 12
    dtype = torch.float32 if why == "float32" else torch.bfloat16
    query = torch.randn(2, 4, length, 8, generator=generator).to(dtype)
    key, value = (
        torch.randn(2, 2 if why == "grouped heads" else 4, length, 8, generator=generator).to(dtype) for _ in "kv"
    )
    module = torch.nn.Module()
    module.num_key_value_groups = 2 if why == "grouped heads" else 1
    rest = {"scaling": 0.3, "is_causal": why == "causal"}
    bias = torch.randn(1, 4, length, length, generator=generator).to(dtype) if why == "position bias" else None
    states, _ = embed_texts._attend_at_once(module, query, key, value, None, position_bias=bias, **rest)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, scale=0.3, is_causal=why == "causal", enable_gqa=why == "grouped heads"
    )
    assert torch.equal(states, expected.transpose(1, 2))


@pytest.mark.parametrize("layer", [None, 0, 1])
def test_hidden_states_equal_one_text_at_a_time(
    layer: int | None, tokenizer: FastTokenizer, llama: PreTrainedModel
) -> None:
    vectors = embed_hidden_states(llama, tokenizer, TEXTS, max_tokens=40, batch_tokens=100, layer=layer)
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"][:40]])
        states = llama(ids, output_hidden_states=True).hidden_states[-1 if layer is None else layer][0]
        assert vector == pytest.approx(normalised(states.mean(0)), abs=2e-6)


def test_no_texts_give_no_vectors(tokenizer: FastTokenizer, llama: PreTrainedModel) -> None:
    assert embed_hidden_states(llama, tokenizer, []).shape == (0, 16)
    assert embed_ngrams(fit_ngram_embedder(TEXTS, 4, n_features=FEATURES), []).shape == (0, 4)


def test_an_encoder_loads_from_a_directory(tmp_path: Path, tokenizer: FastTokenizer, bert: PreTrainedModel) -> None:
    bert.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path, dtype=torch.float32)
    assert not encoder.model.training
    expected = embed_encoder(Encoder(bert, tokenizer, torch.float32), TEXTS)
    assert np.array_equal(embed_encoder(encoder, TEXTS), expected)
    assert encoder.model.config._attn_implementation == "sdpa"
    half = load_encoder(tmp_path, dtype=torch.bfloat16)
    assert half.model.config._attn_implementation == embed_texts.BATCHED_ATTENTION
    assert (embed_encoder(half, TEXTS, batch_tokens=80) * expected).sum(axis=1).min() > 0.999


def test_an_encoder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere: expected an encoder"):
        load_encoder(tmp_path / "nowhere")


def test_ngram_arms_of_real_text_agree_with_its_domains() -> None:
    if not CANDIDATES.is_dir():
        pytest.skip(f"no shared data at {CANDIDATES}")
    faiss.omp_set_num_threads(1)
    texts, domains = [], []
    for path in sorted(CANDIDATES.glob("*.jsonl.gz")):
        if path.name in {"duplicates.jsonl.gz", "noise_shuffled.jsonl.gz"}:  # made from the other files
            continue
        with gzip.open(path) as lines:
            records = [json.loads(line) for line, _ in zip(lines, range(100), strict=False)]
        texts += [record["text"] for record in records]
        domains += [record["domain"] for record in records]
    vectors = embed_ngrams(fit_ngram_embedder(texts, 64), texts)
    arm, _ = assign_arms(vectors, train_centroids(vectors, 20, seed=0))
    assert adjusted_mutual_info_score(domains, arm) > 0.75
    assert math.isclose(float(np.linalg.norm(vectors, axis=1).min()), 1, rel_tol=1e-5)
