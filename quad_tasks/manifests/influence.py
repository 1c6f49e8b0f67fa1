"""Manifests of models, references, factors and directions."""

from typing import Any, ClassVar

from pydantic import Field

from quad_tasks.manifests.base import Frozen, Manifest


class TokenizerInfo(Frozen):
    """A tokenizer: its name, the digest of its file, its number of entries."""

    name: str
    sha256: str
    vocabulary: int


class TrainingInfo(Frozen):
    """What a training took: optimizer steps, targets it was trained on, tokens of all passes, padding included.

    `peak_rate` is its schedule's peak learning rate; None where it was not noted. A trainer of the user's may not say
    how many steps it took: 0.
    """

    steps: int
    target_tokens: int
    padded_tokens: int
    peak_rate: float | None = None


class Checkpoint(Manifest):
    """A model with its tokenizer: `files` kept here with their digests, or the `source` it is loaded from.

    `trained_steps` and `trained_tokens` count what stages have trained it on so far: optimizer steps and targets.
    `training` is the last of these trainings, `optimizer_sha256` the digest of the optimizer state it left.
    `dequantised` counts the tensors that the source held quantised, by type. `bfloat16_sha256` is the digest of a
    source's weights as they are loaded in bfloat16; it follows from the weights, and earlier versions wrote none.
    """

    FORMAT: ClassVar[int] = 3
    VOLATILE: ClassVar[frozenset[str]] = frozenset({"bfloat16_sha256"})

    name: str
    architecture: str
    parameters: int
    weights_sha256: str
    tokenizer: TokenizerInfo
    trained_steps: int = 0
    trained_tokens: int = 0
    training: TrainingInfo | None = None
    files: dict[str, str] | None = None
    source: str | None = None
    bfloat16_sha256: str | None = None
    optimizer_sha256: str | None = None
    dequantised: dict[str, int] | None = None

    @classmethod
    def upgrade(cls, body: dict[str, Any], found: int) -> dict[str, Any] | None:
        """Read format 2, without the optimizer's digest, and format 1 of a checkpoint that no stage has trained.

        The schedule of format 1 ran by tokens.
        """
        return None if found == 1 and body.get("trained_tokens") else body


class ReferenceSet(Frozen):
    """A reference set's documents of the direction, and what its gradient counts beside the others'."""

    name: str
    documents: int
    weight: float


class TableInfo(Frozen):
    """A small table: its rows, and the digest of its bytes."""

    documents: int
    sha256: str


class ReferenceTable(TableInfo):
    """The table of documents the direction is made from, set by set in this order."""

    sets: tuple[ReferenceSet, ...]


class ReferenceManifest(Manifest):
    """Reference and held-out tables: for the direction, for the reference loss, for the other domains.

    `overlapping` counts the documents left out of the direction because they hold text of the measured ones.
    """

    inputs: dict[str, str]
    reference: ReferenceTable
    measured: TableInfo
    heldout: TableInfo
    reference_domain: str | None
    overlapping: int = 0


class DiagonalParts(Frozen):
    """A wide covariance kept as diagonal parts: its width, their number, bytes kept and bytes of the whole."""

    width: int
    parts: int
    size_bytes: int
    whole_bytes: int


class FactorsManifest(Manifest):
    """EK-FAC factors at a checkpoint, fitted on a sample of a pool version's documents."""

    checkpoint: str
    pool_tables: str
    settings: dict[str, Any]
    sample_documents: int
    eigenvalue_documents: int
    sha256: str
    blocks: tuple[str, ...]
    diagonal_parts: dict[str, DiagonalParts]


class DirectionSet(Frozen):
    """A reference set's targets, and its share of the weight of all sets."""

    n_targets: int
    share: float


class DirectionManifest(Manifest):
    """The reference direction v = (F + λI)^-1 g_r of each reference set, by the factors and at the checkpoint named.

    Or, in place of directions, factors and damping: `adapted`, by set the key of a copy of the checkpoint that was
    trained on it, whose losses documents are scored by.
    """

    factors: str | None
    checkpoint: str
    reference: str
    damping_scale: float | None
    sets: dict[str, DirectionSet]
    sha256: str | None
    adapted: dict[str, str] = Field(default_factory=dict)
