"""What a group of documents is about, in a few words: class-based TF-IDF (Grootendorst 2022, arXiv 2203.05794)."""

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

WORD_PATTERN = r"(?u)\b[^\W\d_]{3,}\b"
MAX_WORDS = 20_000


def telling_terms(groups: Sequence[Sequence[str]], n_terms: int) -> list[list[str]]:
    """Name the words that tell each group from the others, most telling first.

    Args:
        groups: texts of each group.
        n_terms: words per group at most.

    Returns:
        For each group its words; none for a group without words.
    """
    joined = ["\n".join(texts) for texts in groups]
    vectorizer = CountVectorizer(token_pattern=WORD_PATTERN, max_features=MAX_WORDS)
    try:
        counts = vectorizer.fit_transform(joined)
    except ValueError:  # scikit-learn's "empty vocabulary": no group has a word
        return [[] for _ in groups]
    weights = TfidfTransformer(sublinear_tf=True).fit_transform(counts).toarray()
    words = vectorizer.get_feature_names_out()
    ranked = np.argsort(-weights, axis=1, kind="stable")[:, :n_terms]
    return [[str(words[j]) for j in row if weights[i, j] > 0] for i, row in enumerate(ranked)]
