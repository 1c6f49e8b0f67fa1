"""Define the records that modules exchange: frozen dataclasses without behaviour, depending on numpy alone.

Units: tokens are counted by the run's named tokenizer, special tokens included as the tokenizer adds them.
Influence > 0 means: training on the document lowers the reference loss (to first order).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Document:
    """One text of the candidate pool, the reference set or the held-out set.

    Attributes:
        id: stable name, unique in its pool: given by the source, or derived from the content.
        text: the text itself, valid Unicode.
        source: the origin that the shard states, or the shard's file name.
        metadata: the record's other fields, JSON values only.
        dropped: fields of the record that could not be kept as they were: they became null or a string.
    """

    id: str
    text: str
    source: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SetAside:
    """A document that was kept out of the pool, with the reason.

    Attributes:
        input: URI of its input file.
        line: 1-based line (JSONL) or row (Parquet) in that file.
        reason: a reason word of the readers or of ingest, e.g. ``invalid_json``, ``duplicate_text``.
        detail: the expected and the found value.
        id: the document's id if it could be read, else the empty string.
    """

    input: str
    line: int
    reason: str
    detail: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """A failure signature that applies (`core.evaluation.diagnosis`).

    Attributes:
        signature: its name, that of the function that found it.
        severity: `severe` where the run's result should not be used as it is.
        evidence: what was measured, by name; numbers are finite.
        remedy: what to change, naming configuration keys.
    """

    signature: str
    severity: Literal["warning", "severe"]
    evidence: dict[str, int | float | str]
    remedy: str


@dataclass(frozen=True, slots=True)
class Pull:
    """One scored pull: the next ``n_documents`` of an arm, from ``cursor`` on.

    Attributes:
        arm: the arm's number.
        cursor: documents of the arm drawn before this pull.
        n_documents: documents drawn.
        n_targets: target tokens scored.
        reward: mean influence per target token over the drawn documents that are scored.
        reward_variance: variance of influence per target token over them (population, 0 for one document).
        n_scored: documents of them that have a score along the direction; None: all.
    """

    arm: int
    cursor: int
    n_documents: int
    n_targets: int
    reward: float
    reward_variance: float
    n_scored: int | None = None


@dataclass(frozen=True, slots=True)
class BanditState:
    """Statistics of K arms, from which a policy chooses; never changed in place.

    Attributes:
        n_documents: [K] int64, documents in each arm.
        cursor: [K] int64, documents drawn so far; an arm is exhausted when it equals ``n_documents``.
        pulls: [K] float64, ``T``: number of pulls; a smaller pull counts as its fraction, neighbours' pulls are added
            by propagation, and all are discounted between stages.
        reward_sum: [K] float64, ``S``: sum of rewards with the weights of ``pulls``; the arm's mean reward is S / T.
        reward_moments: [3] float64: weighted count, sum and sum of squares of all rewards, propagated ones excluded;
            they give the pooled standard deviation.
        round: number of rounds committed.
    """

    n_documents: npt.NDArray[np.int64]
    cursor: npt.NDArray[np.int64]
    pulls: npt.NDArray[np.float64]
    reward_sum: npt.NDArray[np.float64]
    reward_moments: npt.NDArray[np.float64]
    round: int


@dataclass(frozen=True, slots=True)
class Span:
    """A part of an input file that is read by itself.

    Attributes:
        start: its first byte in the file.
        end: the byte after its last.
        tail: first byte of what is read with every span, a Parquet file's footer; the file's size where there is none.
        before: lines or rows of the file before it.
        sha256: digest of its bytes and the tail's.
    """

    start: int
    end: int
    tail: int
    before: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Shard:
    """One input file, as it was when it was read, or a span of one.

    Attributes:
        uri: the file's address.
        sha256: digest of the file's bytes.
        size_bytes: the file's stored size.
        span: the part that the shard is; None: all.
    """

    uri: str
    sha256: str
    size_bytes: int
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class ModelUse:
    """How a model reads documents.

    Attributes:
        window_tokens: longest sequence; a longer document is split into windows.
        batch_tokens: tokens of a batch, padding included.
        dtype: precision of forward and backward, `float32` or `bfloat16`.
        device: `cpu`, `cuda`, or `auto`: a GPU where the process that loads the model has one.
    """

    window_tokens: int
    batch_tokens: int
    dtype: str
    device: str


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a run: its number and the keys of its inputs in the workspace.

    Attributes:
        run: the run's name.
        number: the stage's number, from 0.
        version: key of the pool version's manifest.
        checkpoint: key of the checkpoint that the selected documents will train.
        direction: key of the reference direction (iHVP) at a checkpoint.
    """

    run: str
    number: int
    version: str
    checkpoint: str
    direction: str

    @property
    def prefix(self) -> str:
        """Return the key prefix of everything that the stage writes."""
        return f"runs/{self.run}/stage-{self.number:02d}"
