"""Planted text is what it says: domains share no word, cuts lose none, a leak holds its text whole."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from quad_tasks.experiments.lab import planted


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def test_domains_share_no_word(generator):
    domains = planted.make_domains(6, generator)
    words = Counter(word for domain in domains for word in domain.words)
    assert len(words) == 6 * planted.DOMAIN_WORDS
    assert set(words.values()) == {1}


def test_a_text_follows_its_chain_and_all_of_it(generator):
    (domain,) = planted.make_domains(1, generator)
    text = planted.draw_text(domain, 20_000, generator)
    seen = Counter((domain.words.index(one), domain.words.index(next_one)) for one, next_one in pairwise(text))
    allowed = {(word, after) for word, following in enumerate(domain.following) for after in following}
    assert set(seen) == allowed
    assert len(allowed) == planted.DOMAIN_WORDS * planted.SUCCESSORS


def test_cut_documents_hold_the_text_word_by_word():
    text = [f"w{number}" for number in range(144)]
    for n_words in (24, 72):
        documents = planted.cut_text(text, n_words)
        assert [len(document.split()) for document in documents] == [n_words] * (144 // n_words)
        assert " ".join(documents).split() == text


def test_a_text_that_leaves_a_rest_is_refused():
    with pytest.raises(ValueError, match="a multiple of 24, found 25"):
        planted.cut_text(["w"] * 25, 24)


@pytest.mark.parametrize("kind", range(4))
def test_a_leak_holds_the_text_whole(kind):
    leaked = planted.leak_text("held out text", ["before", "after"], kind)
    assert "held out text" in leaked.lower()
    assert leaked == ["held out text", "HELD OUT TEXT", "before held out text after", "held out text"][kind]
