"""Make pools of made-up text in which the truth is known: what lies in them is planted.

Text is drawn from Markov chains over made-up words: a word depends on the one before it alone, so that cutting a text
loses a single transition. Each domain has words and a chain of its own. Owns the text; refuses to say what a run should
make of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

SYLLABLES = ("ba", "de", "fi", "go", "hu", "ka", "le", "mi", "no", "pu", "ra", "se", "ti", "vo", "wu", "za")
WORD_SYLLABLES = 2
DOMAIN_WORDS = 40
"""Words of a domain; those of six domains are a BPE vocabulary of a few hundred."""
SUCCESSORS = 6
"""Words that may follow a word."""
Record = dict[str, str]


@dataclass(frozen=True)
class Planted:
    """Records of a run's inputs, as lines of its files.

    Attributes:
        pool: candidate documents.
        reference: what the direction is made from.
        measured: what the gain is measured on.
        leaked: ids of pool documents that hold a measured text.
    """

    pool: list[Record]
    reference: list[Record]
    measured: list[Record]
    leaked: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Domain:
    """A Markov chain over the words of a domain.

    Attributes:
        name: of the domain.
        words: its own.
        following: by word, the numbers of those that may follow it, equally likely.
    """

    name: str
    words: tuple[str, ...]
    following: tuple[tuple[int, ...], ...]


def make_domains(n_domains: int, generator: np.random.Generator) -> list[Domain]:
    """Make domains that share no word."""
    syllables = np.array(SYLLABLES)
    n_words = n_domains * DOMAIN_WORDS
    numbers = generator.choice(len(SYLLABLES) ** WORD_SYLLABLES, n_words, replace=False)
    spelled = np.stack([numbers // len(SYLLABLES) ** place % len(SYLLABLES) for place in range(WORD_SYLLABLES)])
    words = ["".join(syllables[column]) for column in spelled.T]
    domains = []
    for number in range(n_domains):
        chain = [tuple(map(int, generator.permutation(DOMAIN_WORDS)[:SUCCESSORS])) for _ in range(DOMAIN_WORDS)]
        own = words[number * DOMAIN_WORDS : (number + 1) * DOMAIN_WORDS]
        domains.append(Domain(f"domain-{number}", tuple(own), tuple(chain)))
    return domains


def draw_text(domain: Domain, n_words: int, generator: np.random.Generator) -> list[str]:
    """Draw a text of this many words."""
    steps = generator.integers(SUCCESSORS, size=n_words)
    word, text = int(generator.integers(DOMAIN_WORDS)), []
    for step in steps.tolist():
        text.append(domain.words[word])
        word = domain.following[word][step]
    return text


def cut_text(text: Sequence[str], n_words: int) -> list[str]:
    """Cut a text into documents of this many words, without a rest.

    Raises:
        ValueError: the text's length is not a multiple of the documents'.
    """
    if len(text) % n_words:
        raise ValueError(f"expected a text whose words are a multiple of {n_words}, found {len(text)}")
    return [" ".join(text[start : start + n_words]) for start in range(0, len(text), n_words)]


def leak_text(text: str, around: Sequence[str], kind: int) -> str:
    """Hide a measured text in a pool document: as it is, in capitals, or between other words."""
    half = len(around) // 2
    return (text, text.upper(), " ".join([*around[:half], text, *around[half:]]))[kind % 3]


def name_records(texts: Sequence[str], source: str) -> list[Record]:
    """Make records of texts, each with an id of its own and its source."""
    return [{"id": f"{source}-{number}", "text": text, "source": source} for number, text in enumerate(texts)]
