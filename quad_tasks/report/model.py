"""The report of a finished run as one typed object: `report.json` is its dump, the page and the console are made of it.

Units: losses in nats per token, domains in bits per byte, influence per token (> 0: training on the document lowers
the reference loss), times in seconds. A field says nothing of where its number comes from: `collect` does. Reading is
lenient, for reports of older versions: what is absent or null has its field's default.
"""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, JsonValue, ValidationInfo, field_validator

T = TypeVar("T")


def _without_nulls(body: Any) -> Any:
    return {key: value for key, value in body.items() if value is not None} if isinstance(body, Mapping) else body


Named = Annotated[dict[str, T], BeforeValidator(_without_nulls)]
"""Values by a name that is data: a source, a domain, a step."""


class Part(BaseModel):
    """A part of the report."""

    model_config = ConfigDict(frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _read_null_as_absent(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None or info.field_name is None:
            return value
        return cls.model_fields[info.field_name].get_default(call_default_factory=True)


class Amount(Part):
    """Documents and their tokens."""

    documents: int | None = None
    tokens: int | None = None


class Scored(Amount):
    """What was scored; `share` is of the pool's documents."""

    share: float | None = None


class Cost(Part):
    """Model FLOPs of choosing, by what they were for; `share` is theirs of scoring the whole `pool` exactly."""

    reading: float | None = None
    scoring: float | None = None
    calibration: float | None = None
    pool: float | None = None
    share: float | None = None


class Selected(Amount):
    """What was selected; tokens by arm, documents and tokens by source."""

    budget_tokens: int | None = None
    by_arm: Named[int] = {}
    by_source: Named[Amount] | None = None


class Pool(Amount):
    """The candidate pool; `set_aside` counts documents left out, by reason, `fields_dropped` values, by field.

    Those of `held_out_overlap` stand in the pool, and are among its `documents`; the others did not enter it.
    """

    name: str | None = None
    version: str | None = None
    bytes: int | None = None
    set_aside: Named[int] | None = None
    fields_dropped: Named[int] = {}
    arms: int | None = None
    inputs: tuple[str, ...] = ()
    sources: Named[Amount] | None = None


class Tokenizer(Part):
    """The tokenizer that counted."""

    name: str | None = None
    sha256: str | None = None
    vocabulary: int | None = None


class Model(Part):
    """The model that was trained."""

    source: str | None = None
    architecture: str | None = None
    dequantised: Named[int] | None = None
    parameters: int | None = None


class ReferenceSet(Part):
    """A reference set; of several, the mean influence along it of what was scored, and of what was selected of it."""

    name: str = ""
    documents: int | None = None
    weight: float | None = None
    mean_influence: float | None = None
    mean_influence_selected: float | None = None


class Reference(Part):
    """The reference; `domain` names the held-out domain whose loss is the reference loss."""

    key: str | None = None
    domain: str | None = None
    sets: tuple[ReferenceSet, ...] = ()


class Losses(Part):
    """What a model was measured at, mean over seeds, after this many optimizer steps; None: it was only measured."""

    steps: int | None = None
    peak_rate: float | None = None
    target_tokens: int | None = None
    reference_loss: float | None = None
    reference_loss_by_seed: tuple[float, ...] = ()
    references: Named[float] = {}
    domains: Named[float] = {}


class FrontierPoint(Part):
    """What a share of the budget drawn from the rest of the pool gave; `other_domains` is their mean."""

    general_share: float | None = None
    reference_loss: float | None = None
    other_domains: float | None = None


class Pilot(Part):
    """What the random pilot measured of arms; `documents_per_pull` would tell them apart, None: they do not differ."""

    between_arms_deviation: float | None = None
    documents_per_pull: int | None = None
    influence_deviation: float | None = None
    wanted_standard_error: float | None = None
    within_arms_deviation: float | None = None


class Prediction(Part):
    """How well influence was predicted, out of sample; the baseline is the mean of a document's arm."""

    accepted: bool | None = None
    baseline_explained: float | None = None
    baseline_spearman: float | None = None
    explained: float | None = None
    features: tuple[str, ...] = ()
    predicted_documents: int | None = None
    spearman: float | None = None


class Finding(Part):
    """A failure signature that applies, what was measured, and what to change."""

    signature: str = "unnamed"
    severity: str = "info"
    evidence: Named[int | float | str] = {}
    remedy: str = ""


class Round(Part):
    """A committed round; `cost_share` is the run's so far, `left` of its gain what scoring everything would add."""

    round: int | None = None
    kind: str | None = None
    arms: int | None = None
    documents: int | None = None
    tokens: int | None = None
    mean_reward: float | None = None
    effective_arms: float | None = None
    accepted_tokens: int | None = None
    cost_share: float | None = None
    left: float | None = None
    left_low: float | None = None
    left_high: float | None = None


class Gain(Part):
    """Reference loss saved against the random control; the 95 % interval is over documents and seeds, none of one."""

    mean: float | None = None
    low: float | None = None
    high: float | None = None
    documents: int | None = None
    seeds: int | None = None


class Stage(Part):
    """A stage; `random` is absent where no control was trained, `prediction` in the last stage (the report's own).

    Its documents are ranked along `direction` and pass `threshold`: an earlier stage's where a gate did not accept the
    refit (`refit_accepted`; None: no gate). `scored_by` says how documents were scored after the pilot, and why.
    """

    stage: int | None = None
    direction: str | None = None
    threshold: float | None = None
    refit_accepted: bool | None = None
    budget_tokens: int | None = None
    prediction: Prediction | None = None
    seeds: tuple[int, ...] = ()
    before: Losses = Losses()
    selected: Losses = Losses()
    random: Losses | None = None
    gain: Gain | None = None
    frontier: tuple[FrontierPoint, ...] = ()
    pilot: Pilot | None = None
    scored_by: str | None = None
    findings: tuple[Finding, ...] = ()
    rounds: tuple[Round, ...] = ()


class Example(Part):
    """A scored document; its text may be cut."""

    id: str = "no id"
    source: str | None = None
    arm: int | None = None
    influence: float | None = None
    n_tokens: int | None = None
    text: str = ""
    characters_left_out: int = 0


class Examples(Part):
    """Documents of the highest influence, nearest the threshold, and of the lowest influence."""

    best: tuple[Example, ...] = ()
    borderline: tuple[Example, ...] = ()
    worst: tuple[Example, ...] = ()


class ArmTexts(Part):
    """An arm's best, borderline and worst document, as far as it has as many."""

    best: Example | None = None
    borderline: Example | None = None
    worst: Example | None = None


class Arm(Part):
    """An arm; `quantiles` of influence, at 5, 25, 50, 75 and 95 %, are of random draws; `sources` are in tokens."""

    arm: int | None = None
    documents: int | None = None
    tokens: int | None = None
    pulls: float | None = None
    mean_reward: float | None = None
    ucb_score: float | None = None
    scored: int | None = None
    selected_tokens: int | None = None
    quantiles: tuple[float, ...] | None = None
    terms: tuple[str, ...] = ()
    texts: ArmTexts | None = None
    sources: Named[int] = {}


class ScoreRange(Part):
    """The upper confidence bounds of a round's arms, by which the presets `paper` and `released` choose them."""

    low: float | None = None
    median: float | None = None
    high: float | None = None


class Pulls(Part):
    """The most pulled arms, and documents drawn from each by group of rounds; `ucb_score` is by round."""

    arms: tuple[int, ...] = ()
    arms_pulled: int | None = None
    first_round: tuple[int, ...] = ()
    documents: tuple[tuple[int, ...], ...] = ()
    ucb_score: tuple[ScoreRange | None, ...] = ()


class Histogram(Part):
    """Documents drawn at random that were scored, and those of them that were selected, by influence."""

    bin_edges: tuple[float, ...] = ()
    scored: tuple[int, ...] = ()
    selected: tuple[int, ...] = ()


class DocumentMap(Part):
    """A sample of the pool on a plane; influence is None where a document was not scored."""

    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()
    arm: tuple[int | None, ...] = ()
    influence: tuple[float | None, ...] = ()
    selected: tuple[bool, ...] = ()


class Identity(Part):
    """What names a stored thing."""

    uuid: str | None = None
    manifest: str | None = None
    digest: str | None = None


class Inputs(Part):
    """The pool's files: a digest over all, and the sha256 of the first."""

    files: int | None = None
    digest: str | None = None
    sha256: Named[str] = {}


class Weights(Part):
    """Digest of a model's weights."""

    weights_sha256: str | None = None


class StageKeys(Part):
    """Keys of what a stage was made of; by the `scorer` conditional_loss `direction` is the adapted copies'."""

    stage: int | None = None
    checkpoint: str | None = None
    factors: str | None = None
    direction: str | None = None
    scorer: str | None = None


class Machine(Part):
    """What the report was written on."""

    python: str | None = None
    system: str | None = None
    cores: int | None = None


class Provenance(Part):
    """Digests of what a run read and made, and what it ran on."""

    selection: Identity = Identity()
    pool: Identity = Identity()
    inputs: Inputs = Inputs()
    reference_inputs: Named[str] = {}
    model: Weights = Weights()
    stages: tuple[StageKeys, ...] = ()
    packages: Named[str] = {}
    machine: Machine = Machine()


class Report(Part):
    """All that is known of a finished run.

    Attributes:
        rejected: documents scored and not selected, by reason.
        unpulled: documents of the pool never scored or selected.
        threshold: of influence per token, by which the last stage's documents were selected.
        diversity: by how documents were chosen, each measure.
        time_s: by step, all attempts together.
        peak_memory_bytes: sum of the processes' peak resident sizes when a step ended, the largest of any step.
        peak_gpu_memory_bytes: most memory that one worker held on a GPU; None where none used one.
    """

    format: int = 0
    run: str = ""
    created: str = ""
    quad_version: str | None = None
    config_digest: str | None = None
    config: dict[str, JsonValue] = {}
    pool: Pool = Pool()
    scored: Scored = Scored()
    cost: Cost = Cost()
    rejected: Named[int] | None = None
    unpulled: int | None = None
    selected: Selected = Selected()
    tokenizer: Tokenizer = Tokenizer()
    model: Model = Model()
    reference: Reference = Reference()
    threshold: float | None = None
    stages: tuple[Stage, ...] = ()
    arms: tuple[Arm, ...] = ()
    pulls: Pulls = Pulls()
    influence: Histogram = Histogram()
    examples: Examples = Examples()
    map: DocumentMap = DocumentMap()
    diversity: Named[Named[float]] = {}
    prediction: Prediction | None = None
    findings: tuple[Finding, ...] | None = None
    provenance: Provenance = Provenance()
    time_s: Named[float] = {}
    peak_memory_bytes: int | None = None
    peak_gpu_memory_bytes: int | None = None
