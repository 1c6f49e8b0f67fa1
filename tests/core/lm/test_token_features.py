"""Features of documents' tokens against values by hand, and what they do not depend on."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quad_tasks.core.lm import token_features as module
from quad_tasks.core.lm.token_features import project_embeddings, token_features

EMBEDDING_VP = np.array([[3, 4], [1, 0], [0, 2], [-1, 1]], dtype=np.float32)
"""Norms 5, 1, 2 and the root of 2."""


def test_features_are_those_worked_by_hand() -> None:
    features_NF = token_features([[0, 1, 2, 1], [2, 2]], EMBEDDING_VP)
    # means: (3 + 1 + 0 + 1) / 4, (4 + 0 + 2 + 0) / 4; products of neighbours: (3 + 0 + 0) / 3, (0 + 0 + 0) / 3;
    # three distinct of four; norms 5, 1, 2, 1 of mean 2.25 and mean square 7.75
    first = [1.25, 1.5, 1.0, 0.0, 0.75, 2.25, np.sqrt(7.75 - 2.25**2)]
    second = [0.0, 2.0, 0.0, 4.0, 0.5, 2.0, 0.0]
    assert features_NF.dtype == np.float32
    np.testing.assert_allclose(features_NF, [first, second], rtol=1e-6)


def test_a_document_of_one_token_has_no_neighbours() -> None:
    assert token_features([[3]], EMBEDDING_VP)[0, :4].tolist() == [-1, 1, 0, 0]


def test_a_document_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="document 1: expected at least one token, got none"):
        token_features([[0], []], EMBEDDING_VP)


@given(st.integers(1, 23), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_features_equal_a_plain_computation_at_any_size_of_chunk(n_tokens: int, chunk: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    embedding_VP = generator.normal(size=(9, 3)).astype(np.float32)
    ids = generator.integers(0, 9, n_tokens)
    read = embedding_VP[ids].astype(np.float64)
    norms = np.linalg.norm(read, axis=1)
    pairs = [a * b for a, b in itertools.pairwise(read)] or [np.zeros(3)]
    expected = [*read.mean(0), *np.mean(pairs, axis=0), len(set(ids.tolist())) / n_tokens, norms.mean(), norms.std()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_TOKENS", chunk)
        found = token_features([ids.tolist()], embedding_VP)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_documents_features_have_the_same_bits_whatever_stands_beside_it() -> None:
    generator = np.random.default_rng(0)
    embedding_VP = generator.normal(size=(50, 16)).astype(np.float32)
    documents = [generator.integers(0, 50, n).tolist() for n in (700, 1, 33, 5000, 2)]
    together = token_features(documents, embedding_VP)
    alone = np.concatenate([token_features([document], embedding_VP) for document in documents])
    assert together.tobytes() == alone.tobytes()


def test_embeddings_that_fit_the_width_are_kept() -> None:
    assert project_embeddings(EMBEDDING_VP, 2).tolist() == EMBEDDING_VP.tolist()
    assert project_embeddings(EMBEDDING_VP, 5).tolist() == EMBEDDING_VP.tolist()


def test_every_coordinate_is_in_one_projected_coordinate_with_a_sign() -> None:
    sketch_EP = project_embeddings(np.eye(11), 4)
    assert sketch_EP.shape == (11, 4)
    assert set(np.unique(sketch_EP)) == {-1.0, 0.0, 1.0}
    assert np.abs(sketch_EP).sum(axis=1).tolist() == [1] * 11
    assert sorted(np.abs(sketch_EP).sum(axis=0).tolist()) == [2, 3, 3, 3]
    assert project_embeddings(np.eye(11), 4).tobytes() == sketch_EP.tobytes()


def test_projection_is_linear_and_keeps_inner_products_about() -> None:
    generator = np.random.default_rng(0)
    embedding_VE = generator.normal(size=(60, 2048))
    projected_VP = project_embeddings(embedding_VE, 512)
    np.testing.assert_allclose(projected_VP, embedding_VE @ project_embeddings(np.eye(2048), 512), rtol=1e-4, atol=1e-4)
    # a squared norm of about 2048 is kept to a standard deviation of 2048 times the root of 2 / 512
    kept = np.square(projected_VP).sum(axis=1) / np.square(embedding_VE).sum(axis=1)
    assert kept.mean() == pytest.approx(1, abs=4 * np.sqrt(2 / 512 / 60))
