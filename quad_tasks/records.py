"""The records that travel between rooms: plain frozen dataclasses, no behaviour, no dependency but numpy.

Units: tokens are counted by the run's named tokenizer, special tokens included as the tokenizer adds them.
Influence > 0 means: training on the document lowers the reference loss (to first order).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Document:
    """One text of the candidate pool, the reference set or the held-out set.

    Attributes:
        id: stable name, unique in its pool: given by the source, or derived from the content.
        text: the text itself, valid Unicode.
        source: what the shard says of its origin, or the shard's file name.
        metadata: the record's further fields, JSON values only.
    """

    id: str
    text: str
    source: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SetAside:
    """A document that did not enter the pool, and why.

    Attributes:
        input: URI of the file it stood in.
        line: 1-based line (JSONL) or row (Parquet) in that file.
        reason: one of the readers' or ingest's reason words, e.g. ``invalid_json``, ``duplicate_text``.
        detail: what was expected and what was found.
        id: the document's id where one could be read, else the empty string.
    """

    input: str
    line: int
    reason: str
    detail: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Pull:
    """One draw from one arm, scored: the next ``n_documents`` of the arm from ``cursor`` on.

    Attributes:
        arm: the arm's number.
        cursor: documents of the arm already drawn before this pull.
        n_documents: documents drawn.
        n_targets: target tokens scored.
        reward: mean over the drawn documents of influence per target token.
        reward_variance: variance of that quantity over the drawn documents (population, 0 for one document).
    """

    arm: int
    cursor: int
    n_documents: int
    n_targets: int
    reward: float
    reward_variance: float


@dataclass(frozen=True, slots=True)
class BanditState:
    """All a policy knows, K arms; never changed in place.

    Attributes:
        n_documents: [K] int64, documents in each arm.
        cursor: [K] int64, documents drawn so far; an arm is exhausted when it equals ``n_documents``.
        pulls: [K] float64, ``T``: pulls, a pull of fewer documents than usual counting its fraction, plus what
            neighbours passed on, discounted between stages.
        reward_sum: [K] float64, ``S``: rewards weighted as ``pulls`` are; the arm's mean reward is S / T.
        reward_moments: [3] float64: count, sum and sum of squares of all own rewards (weighted), for the pooled
            standard deviation.
        round: number of rounds committed.
    """

    n_documents: npt.NDArray[np.int64]
    cursor: npt.NDArray[np.int64]
    pulls: npt.NDArray[np.float64]
    reward_sum: npt.NDArray[np.float64]
    reward_moments: npt.NDArray[np.float64]
    round: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One input file, as it was when it was looked at.

    Attributes:
        uri: where it is.
        sha256: digest of its bytes.
        size_bytes: its size as stored.
    """

    uri: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Stage:
    """What one stage of a run works on: the names of things in the workspace.

    Attributes:
        run: the run's name.
        number: the stage's number, from 0.
        version: key of the pool version's manifest.
        checkpoint: key of the checkpoint whose data is chosen.
        direction: key of the reference direction (iHVP) at a checkpoint.
    """

    run: str
    number: int
    version: str
    checkpoint: str
    direction: str

    @property
    def prefix(self) -> str:
        """Key prefix of all the stage writes."""
        return f"runs/{self.run}/stage-{self.number:02d}"
