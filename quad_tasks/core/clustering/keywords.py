"""Find the keywords of groups of documents by class-based TF-IDF (Grootendorst 2022, arXiv 2203.05794)."""

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

WORD_PATTERN = r"(?u)\b[^\W\d_]{3,}\b"
"""Words of three letters and more, of any script that spaces them; no digits."""
MAX_WORDS = 20_000


def keywords(groups: Sequence[Sequence[str]], n_words: int) -> list[list[str]]:
    """Find the words that distinguish each group of texts from the others, best first.

    Args:
        groups: the texts of each group.
        n_words: most words per group.

    Returns:
        The words of each group; none for a group without words.
    """
    joined = ["\n".join(texts) for texts in groups]
    vectorizer = CountVectorizer(token_pattern=WORD_PATTERN, max_features=MAX_WORDS)
    try:
        counts = vectorizer.fit_transform(joined)
    except ValueError:  # scikit-learn's "empty vocabulary": no group has a word
        return [[] for _ in groups]
    weights = TfidfTransformer(sublinear_tf=True).fit_transform(counts).toarray()
    words = vectorizer.get_feature_names_out()
    ranked = np.argsort(-weights, axis=1, kind="stable")[:, :n_words]
    return [[str(words[j]) for j in row if weights[i, j] > 0] for i, row in enumerate(ranked)]
