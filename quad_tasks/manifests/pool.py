"""Manifests of a pool: shards, vectors, arms, versions."""

from typing import Any, ClassVar

from pydantic import Field

from quad_tasks.manifests.base import Frozen, Manifest


class InputFile(Frozen):
    """An input file as it was when it was read."""

    uri: str
    sha256: str
    size_bytes: int


class InputSpan(InputFile):
    """A part of an input file as it was when it was read: bytes [start, end), after `before` lines or rows."""

    start: int
    end: int
    before: int


class ShardManifest(Manifest):
    """Documents of an input file or a span of it: documents in = `documents` + all that is set aside, by reason.

    `fields_dropped` counts, by field, documents kept without a value that no table can hold. Format 1 had no digest of
    the table of what is set aside.
    """

    FORMAT: ClassVar[int] = 2

    shard: str
    input: InputSpan | InputFile
    fields: dict[str, str]
    tokenizer_sha256: str
    documents_sha256: str
    documents_seal: str | None = None
    set_aside_sha256: str | None
    documents: int
    tokens: int
    bytes: int
    set_aside: dict[str, int]
    fields_dropped: dict[str, int] = Field(default_factory=dict)

    @classmethod
    def upgrade(cls, body: dict[str, Any], found: int) -> dict[str, Any] | None:
        """Read format 1."""
        return body | {"set_aside_sha256": None}

    @property
    def documents_in(self) -> int:
        """Documents that the file or span had: those kept and those set aside."""
        return self.documents + sum(self.set_aside.values())


class EmbedderManifest(Manifest):
    """What turns texts into vectors.

    `sha256` is that of a fitted embedder's arrays, `encoder_sha256` that of an encoder's weights and tokenizer: what
    stands under an encoder's name may change.
    """

    embedding: dict[str, Any]
    model: str
    sha256: str | None = None
    encoder_sha256: str | None = None


class TokenFeaturesManifest(Manifest):
    """Input embeddings of a checkpoint, projected (`sha256`), and the `width` of the features they give a document."""

    weights_sha256: str
    tokenizer_sha256: str
    model: str
    width: int
    sha256: str


class ClusteringManifest(Manifest):
    """Trained centroids: the embedder whose vectors they are of, the shards they were trained on."""

    embedder: str
    clustering: dict[str, Any]
    shards: tuple[str, ...]
    arms: int
    sha256: str


class Part(Frozen):
    """One table of a pool version: consecutive documents in arm order; `seal` is its footer's digest."""

    key: str
    rows: int
    sha256: str
    seal: str | None = None


class Layer(Frozen):
    """What one layout wrote: the next `parts` of a version's parts, with `rows` documents in arm order; its folder."""

    tables: str
    parts: int
    rows: int


class MergedBlock(Frozen):
    """Consecutive positions of a version of several layers: an array of the rows that its `documents` stand in."""

    key: str
    documents: int
    sha256: str


class Drift(Frozen):
    """How far documents lie from where the centroids were trained (`stages.pool.measure_drift`), in shares of them."""

    new_documents: int
    beyond_radius: float
    occupancy_shift: float
    drift: float


class PoolVersion(Manifest):
    """The pool at one time: its documents in arm order, and what was left out of it, by reason and by field.

    `token_features` is the key of the features of their tokens that stand beside the embeddings; None in versions that
    older releases made, which have none. `files` are digests, by key, of all else that it was made from or that stands
    beside its parts: embeddings, assignments, the arms' spread, token features, the arm index and its layers' sums.
    Positions count through `parts` where there is one layer; of several, `merged` says where each stands
    (`storage.positions`). Format 1 had no files, formats 1 and 2 had no layers.
    """

    FORMAT: ClassVar[int] = 3

    pool: str
    tables: str
    model: str
    embedder: str
    clustering: str
    token_features: str | None = None
    seed: int
    shards: tuple[str, ...]
    parts: tuple[Part, ...]
    layers: tuple[Layer, ...] = ()
    merged: tuple[MergedBlock, ...] = ()
    arms: int
    documents: int
    tokens: int
    bytes: int
    set_aside: dict[str, int]
    fields_dropped: dict[str, int] = Field(default_factory=dict)
    recipe: str
    drift: Drift
    files: dict[str, str]

    @classmethod
    def upgrade(cls, body: dict[str, Any], found: int) -> dict[str, Any] | None:
        """Read formats 1 and 2."""
        return {"files": {}} | body


class VersionNumber(Manifest):
    """A number that was given to a version of these tables; `pruned`: the version is gone, the number stays taken."""

    tables: str
    pruned: bool


class StatesManifest(Manifest):
    """Mean hidden states and losses of a pool version's documents at a checkpoint; `width` of a state.

    `files` are the digests of its blocks by key; format 1 had none.
    """

    FORMAT: ClassVar[int] = 2

    checkpoint: str
    documents: int
    width: int
    files: dict[str, str]

    @classmethod
    def upgrade(cls, body: dict[str, Any], found: int) -> dict[str, Any] | None:
        """Read format 1."""
        return body | {"files": {}}
