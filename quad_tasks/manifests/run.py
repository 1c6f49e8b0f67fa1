"""Manifests of a run: its configuration, rounds, choices, trainings and published selection."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from quad_tasks.manifests.base import Frozen, Manifest
from quad_tasks.manifests.influence import TokenizerInfo, TrainingInfo
from quad_tasks.records import Finding


class RunRecord(Manifest):
    """A run's identity: its configuration and the versions of what computes; (volatile) where it runs and is kept."""

    FORMAT: ClassVar[int] = 3
    VOLATILE: ClassVar[frozenset[str]] = frozenset({"where"})

    config: dict[str, Any]
    where: dict[str, Any]
    versions: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def upgrade(cls, body: dict[str, Any], found: int) -> dict[str, Any] | None:
        """Read format 2, without versions, and format 1, whose configuration's keys stood beside the manifest's."""
        if found == 2:
            return body
        where = {name: body.pop(name) for name in ("compute", "diagnosis", "workspace") if name in body}
        return {"config": body, "where": where}


class PinnedPool(Manifest):
    """The pool version a run keeps to, and that manifest's digest."""

    version: str
    digest_of_version: str


class PinnedReference(Manifest):
    """The reference tables a run keeps to, and their manifest's digest."""

    reference: str
    digest_of_tables: str


class PinnedBatch(Manifest):
    """Tokens of a batch that a run keeps to where `model.batch_tokens` is `auto`, and the device they were found on."""

    batch_tokens: int
    device: str


class OverlapManifest(Manifest):
    """Pool documents that hold held-out text, found by sequences of `words` words.

    `share` is the least part of the shorter document's sequences that counts; `verbatim` documents have all of them.
    """

    version: str
    reference: str
    words: int
    share: float
    pool_documents: int
    documents: int
    verbatim: int
    sha256: str


class Calibration(Frozen):
    """How an approximate scorer ranks a part of the pilot beside exact scoring, and how the rounds score therefore.

    `used` holds keyword arguments of `core.influence.score_documents`; of `low_rank` also the `numbers` its directions
    hold as factors. `cost` is that of `scorer` as a share of exact scoring's, `flops` what the calibration took of the
    model, `reason` why the rounds score as they do. `spearman` is None where nothing was tried.
    """

    scorer: str
    spearman: float | None
    accepted: bool
    documents: int
    used: dict[str, Any]
    flops: float = 0.0
    cost: float | None = None
    reason: str = ""


class RoundCost(Frozen):
    """Model FLOPs of a round: of `scoring` and `calibration`; of the run `so_far`, with `reading` before any score.

    `pool` is what scoring the whole pool exactly would take: `share` is of it.
    """

    scoring: float
    calibration: float
    reading: float
    so_far: float
    pool: float

    @property
    def share(self) -> float:
        """What the run has cost so far, as a share of scoring the whole pool exactly."""
        return self.so_far / self.pool if self.pool else 0.0


class LeftToGain(Frozen):
    """What scoring everything would add to a selection by the scores so far (`core.selection.remaining`).

    `left` is a share of full scoring's gain over random, with its 95 % interval; gains are influence per token.
    """

    left: float
    low: float
    high: float
    gain: float
    full_gain: float
    held_out: int


class PilotSummary(Frozen):
    """What documents drawn at random tell (`stages.bandit.pilot`); None where arms do not differ."""

    influence_deviation: float
    between_arms_deviation: float | None
    within_arms_deviation: float | None
    wanted_standard_error: float | None
    documents_per_pull: int | None


class RoundInfo(Frozen):
    """What a round cost and found; influence per token along `direction`, τ is `threshold`.

    `cut`: the cap on cost left less than the round was to score. `cost` is None in rounds of older versions,
    `remaining` where no regression was due after the round, or too little was known.
    """

    kind: Literal["pilot", "bandit"]
    threshold: float
    direction: str
    reward_moments: tuple[float, float, float]
    arms: int
    documents: int
    active_documents: int
    tokens: int
    accepted_documents: int
    accepted_tokens: int
    mean_reward: float
    effective_arms: float
    findings: tuple[Finding, ...]
    scorer: dict[str, Any]
    calibration: Calibration | None = None
    pilot: PilotSummary | None = None
    cost: RoundCost | None = None
    cut: bool = False
    remaining: LeftToGain | None = None

    @property
    def scored_by(self) -> str | None:
        """How documents were scored, and why, where that was not exactly, as asked for."""
        if self.calibration is not None:
            return self.calibration.reason
        by_losses = self.scorer["scorer"] == "conditional_loss"
        return "scored, as in the pilot, by the loss of a copy adapted to the reference" if by_losses else None


class PredictionQuality(Frozen):
    """How well the regression does on scored documents it has not seen, and what it was applied to."""

    spearman: float
    explained: float
    baseline_spearman: float
    baseline_explained: float
    accepted: bool
    features: tuple[str, ...]
    predicted_documents: int


class Choice(Manifest):
    """Documents chosen: by a stage, for a trial or the frontier, or (`seed` given) drawn as its random control.

    `rounds` is how many of the stage's rounds it was made from; older releases kept none.
    """

    budget_tokens: int
    documents: int
    tokens: int
    sha256: str
    seed: int | None = None
    threshold: float | None = None
    direction: str | None = None
    general_share: float | None = None
    near_duplicates: tuple[int, ...] = ()
    findings: tuple[Finding, ...] = ()
    prediction: PredictionQuality | None = None
    rounds: int | None = None


class GateTrial(Manifest):
    """Which direction ranks a stage's documents, and the reference's own loss after a trial of either ranking."""

    used: str
    refitted_loss: float | None
    earlier_loss: float | None
    accepted: bool


class DocumentLosses(Frozen):
    """Summed nats and targets of each measured document, in the order of its table; of one token: 0 and 0."""

    nats: tuple[float, ...]
    targets: tuple[int, ...]


class Losses(Manifest):
    """A model measured: reference loss (nats per target token), each reference set's, bits per byte by domain.

    `training` is what the model was trained by; None where it was only measured. `left_out` counts held-out texts of
    one token: nothing in them is predicted. `documents` are the losses of each measured reference document, by set.
    """

    reference_loss: float
    references: dict[str, float]
    domains: dict[str, float]
    training: TrainingInfo | None = None
    left_out: int = 0
    documents: dict[str, DocumentLosses] = Field(default_factory=dict)


class SelectionPart(Frozen):
    """One file of the published selection."""

    name: str
    rows: int
    tokens: int
    sha256: str


class MixtureEntry(Frozen):
    """A source's share of the selection's tokens, its tokens taken and available, and how often each is repeated."""

    weight: float
    tokens: int
    available_tokens: int
    repetition: int


class DocumentCounts(Frozen):
    """Where every document that came in is now: in = set aside + unpulled + rejected + selected."""

    documents_in: int
    set_aside: dict[str, int]
    unpulled: int
    rejected: dict[str, int]
    selected: int

    @property
    def balanced(self) -> bool:
        """Whether every document that came in is in exactly one place."""
        left = sum(self.set_aside.values()) + sum(self.rejected.values())
        return self.documents_in == left + self.unpulled + self.selected


class SelectionManifest(Manifest, DocumentCounts):
    """The published selection: its parts, its mixture, and where every document of the pool went.

    `manifests` are the digests, by key, of every manifest it rests on, `mixture_sha256` that of the mixture's file.
    Format 1 had neither.
    """

    FORMAT: ClassVar[int] = 2
    VOLATILE: ClassVar[frozenset[str]] = frozenset({"created"})

    run: str
    config: str
    pool: str
    pool_digest: str
    tokenizer: TokenizerInfo
    budget_tokens: int
    n_tokens: int
    rows: int
    parts: tuple[SelectionPart, ...]
    mixture: Mapping[str, MixtureEntry]
    mixture_sha256: str | None
    manifests: dict[str, str]
    uuid: str
    created: str

    @classmethod
    def upgrade(cls, body: dict[str, Any], found: int) -> dict[str, Any] | None:
        """Read format 1."""
        return body | {"mixture_sha256": None, "manifests": {}}


class ReportManifest(Manifest):
    """The last report of a run: digests, by key, of its files and of the times it sums up. Each report replaces it."""

    files: dict[str, str]


class ExperimentRecord(Manifest):
    """What an experiment keeps: any JSON values under names of its own; times and kept results are volatile."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())
    VOLATILE: ClassVar[frozenset[str]] = frozenset({"took_s", "time_s", "seconds", "result"})
