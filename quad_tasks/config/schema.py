"""The configuration of a run: frozen models, one per stage, every field with its unit and range.

Owns what may be configured and what each key means; `load.py` reads a file and explains its mistakes. Refuses
secrets: credentials come from the environment, never from here.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from quad_tasks.config.command import Command
from quad_tasks.config.compute import ComputeConfig, DiagnosisConfig
from quad_tasks.config.model import ModelConfig
from quad_tasks.config.uris import Uri
from quad_tasks.config.values import (
    UNMEASURED_BATCH_TOKENS,
    EmbedderName,
    Features,
    LearningRate,
    Name,
    PolicyName,
    Positive,
    ScorerName,
    Section,
    Share,
    Shares,
)
from quad_tasks.records import ModelUse


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names file and key."""


class FieldNames(Section):
    """Which columns of the user's records hold what; a dotted path reaches into nested records."""

    id: str = Field("id", description="Stable id; absent in a record: derived from its content.")
    text: str = Field("text", description="The text; required in every record.")
    source: str = Field("source", description="Origin of the document; absent: the file's name.")
    metadata: str = Field("metadata", description="Further fields, kept as they are.")
    domain: str = Field("domain", description="Domain of a held-out document; absent: the file's name.")


class PoolConfig(Section):
    """The candidate pool."""

    name: Name = Field("pool", description="Name under which the pool's tables are kept and reused by later runs.")
    inputs: tuple[Uri, ...] = Field(
        min_length=1,
        description="Paths, URIs or globs of .jsonl, .csv, .tsv or .txt shards, plain or with .gz, .zst, .bz2, .xz, "
        "and of .parquet or .arrow ones.",
    )
    fields: FieldNames = Field(FieldNames(), description="Names of the records' fields.")


class ReferenceSetConfig(Section):
    """One of several reference sets."""

    inputs: tuple[Uri, ...] = Field(min_length=1, description="Paths, URIs or globs, formats as for the pool.")
    weight: Annotated[float, Field(gt=0)] = Field(1.0, description="What its gradient counts beside the others'.")


class ReferenceConfig(Section):
    """The reference set, or several: what the model should become good at."""

    inputs: tuple[Uri, ...] = Field(
        (), description="Paths, URIs or globs, formats as for the pool; this or `reference.sets` is required."
    )
    sets: dict[Name, ReferenceSetConfig] = Field(
        {},
        description="Several reference sets in place of `inputs`: a name to its `inputs` and its `weight` (1 unless "
        "given). The weighted mean of their gradients gives the direction; scores along each are kept.",
    )
    fields: FieldNames = Field(FieldNames(), description="Names of the records' fields.")
    max_documents: Positive | None = Field(None, description="Documents of each set used for the direction; None: all.")
    heldout_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2,
        description="Share of the reference kept out of the direction to measure the reference loss on; "
        "unused when `heldout.reference_domain` names a held-out domain.",
    )

    @model_validator(mode="after")
    def _one_or_several(self) -> "ReferenceConfig":
        if bool(self.inputs) == bool(self.sets):
            raise ValueError(f"either `inputs` or `sets`, found {'both' if self.inputs else 'neither'}")
        return self

    def named_sets(self) -> dict[str, ReferenceSetConfig]:
        """Return the sets by name; `inputs` are one named `reference`."""
        return self.sets or {"reference": ReferenceSetConfig(inputs=self.inputs)}

    def set_key(self, name: str) -> str:
        """Name the key that a set's inputs stand under, for messages."""
        return f"reference.sets.{name}.inputs" if self.sets else "reference.inputs"


class HeldoutConfig(Section):
    """Held-out domains: what the gain may cost elsewhere."""

    inputs: tuple[Uri, ...] = Field((), description="Paths, URIs or globs of held-out documents, by domain.")
    fields: FieldNames = Field(FieldNames(), description="Names of the records' fields.")
    documents_per_domain: Positive = Field(100, description="Documents measured per domain.")
    overlap_words: Positive | None = Field(
        5,
        description="Words of the sequences by which held-out text is found elsewhere. A pool document is never drawn, "
        "scored or selected that shares 80 % of them with a measured document (of the shorter one's); a reference "
        "document that does so with the measured reference gives no direction. None: no search; such documents are "
        "used.",
    )
    reference_domain: str | None = Field(
        None, description="The held-out domain whose loss is the reference loss; None: a share of the reference."
    )


class EmbeddingConfig(Section):
    """How documents become vectors."""

    method: EmbedderName = Field(
        "ngrams", description="Hashed n-grams + TF-IDF + SVD, a Hugging Face encoder, or the model's own mean state."
    )
    dimension: Annotated[int, Field(ge=2, le=4096)] = Field(128, description="Dimension of n-gram embeddings.")
    sample_documents: Positive = Field(10_000, description="Documents the n-gram embedder is fitted on.")
    encoder: Uri = Field("BAAI/bge-small-en-v1.5", description="Encoder's Hugging Face id or path.")
    pooling: Literal["mean", "cls"] = Field("cls", description="Pooling of the encoder's states.")
    max_tokens: Positive = Field(256, description="Tokens of a document an encoder or the model reads.")


class ClusteringConfig(Section):
    """How vectors become arms."""

    arms: Annotated[int, Field(ge=1)] = Field(100, description="Clusters, each an arm of the bandit.")
    sample_documents: Positive = Field(100_000, description="Documents the centroids are trained on.")
    iterations: Positive = Field(20, description="k-means iterations.")
    spherical: bool = Field(False, description="Unit-norm centroids.")
    recluster_drift: Share = Field(
        0.2,
        description="A refresh keeps the pool's embedder and centroids until this share of its documents is new and "
        "outside its arm's radius, or has moved between arms; then it clusters anew.",
    )

    def identity(self) -> dict[str, Any]:
        """Return what determines the centroids: all but when they are trained anew."""
        return self.model_dump(exclude={"recluster_drift"})


class FactorsConfig(Section):
    """The EK-FAC approximation of the training loss's Hessian."""

    attention: Literal["joint", "split", "none"] = Field(
        "joint", description="Query, key and value as one block, one block each, or left out."
    )
    fisher: Literal["true", "empirical"] = Field("true", description="Labels sampled from the model, or the data's.")
    sample_documents: Positive = Field(768, description="Pool documents the factors are fitted on.")
    eigenvalue_documents: Positive | None = Field(
        None,
        description="Pool documents of the second pass, for the corrected eigenvalues, drawn for themselves; None: "
        "those of the first.",
    )
    max_factor_width: Annotated[int, Field(ge=16)] | None = Field(
        None,
        description="Widest covariance kept whole; a wider one, whose square would not fit memory, is kept as diagonal "
        "parts; None: all whole.",
    )
    rounded_products: bool | None = Field(
        None,
        description="Compute the fit's products from bfloat16 factors where the CPU or the GPU multiplies those: "
        "faster, and less alike between machines; sums stay in float32. null: where the model is in bfloat16, whose "
        "numbers are rounded already.",
    )
    damping_scale: Annotated[float, Field(gt=0)] = Field(
        0.1, description="Damping as a multiple of each block's mean eigenvalue."
    )

    def rounds_products(self, dtype: str) -> bool:
        """Return whether a fit may round the factors of its products, of a model in this dtype."""
        return dtype == "bfloat16" if self.rounded_products is None else self.rounded_products


class BanditConfig(Section):
    """Rounds of pulls."""

    preset: PolicyName = Field("paper", description="Arm-choosing policy.")
    alpha: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="Weight of the exploration bonus; `thompson` has none. None: the preset's, 1e-4 with "
        "`released`, else 1.",
    )
    arms_per_round: Positive | None = Field(
        None, description="Arms pulled in a round (k); None: the preset's, 50 with `released`, else 8."
    )
    documents_per_pull: Positive | None = Field(
        None, description="Documents drawn by one pull (m); None: the preset's, 10 with `released`, else 16."
    )
    active_share: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="Share of a round's documents drawn from the whole pool for their predicted influence, near where "
        "the selection ends; the others are the pulled arms' next. None: the preset's, 0 with `released`, else 0.75.",
    )
    threshold: float | None = Field(
        None,
        description="Influence per token a document must exceed (τ), which `released` subtracts from rewards too; "
        "None: a quantile of the random pilot.",
    )
    threshold_quantile: Share = Field(0.75, description="The pilot's quantile that becomes τ.")
    features: Features = Field(
        "tokens",
        description="What influence is predicted from: a document's embedding and length; also means of its tokens' "
        "input embeddings and of neighbours' products, and token statistics, which take no pass of the model; or also "
        "hidden states and losses, for which the model reads the whole pool once, a third of what scoring it takes "
        "(runs on the same pool and model share them).",
    )
    pilot_documents: Annotated[int, Field(ge=2)] = Field(
        256,
        description="Documents drawn at random first, each stage, from those neither scored nor chosen before; at most "
        "half of what the stage may score or spend.",
    )
    max_rounds: Positive = Field(10_000, description="Rounds of one stage at most.")
    max_cost_share: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Model FLOPs that choosing may take, all stages, as a share of scoring the whole pool exactly: the "
        "pilots, rounds, documents scored again, a scorer's calibration, hidden states, an embedding by the model. The "
        "last round is cut to fit. None: 0.1, beside hidden states and embedding, where unscored documents may be "
        "selected and `max_scored_share` is not given; else no cap.",
    )
    stop_when_left: Share | None = Field(
        None,
        description="A stage's rounds end once scoring everything is estimated to add at most this share of full "
        "scoring's gain over random, or by another limit before. None: by the others alone.",
    )
    max_scored_share: Share | None = Field(
        None,
        description="Share of the pool's documents that may be scored, all stages, pilots included, whatever they "
        "cost; documents that a refit scores again are not counted. None: all.",
    )
    oversample: Annotated[float, Field(ge=1)] = Field(
        2.0, description="Rounds go on until documents above τ hold this multiple of the stage's token budget."
    )
    propagation: Literal["none", "weights", "released"] | None = Field(
        None,
        description="How a pull's reward counts for arms near in Wasserstein distance; `contextual` ignores it. None: "
        "the preset's, `released` with `released`, else `none`.",
    )
    scorer: ScorerName = Field(
        "auto",
        description="How documents are scored after the pilot; one that is not exact must first rank a part of the "
        "pilot as exact scoring does, or exact scoring goes on. `auto` takes the cheapest that does, where trying it "
        "costs less than it can save, `forward_only` only where a bfloat16 model's products are no faster than float32 "
        "ones. `conditional_loss` scores everything, the pilot too, by how much less a copy of the model, trained for "
        "a while on the reference, loses on a document: no factors are fitted, no direction.",
    )
    adaptation_passes: Positive = Field(
        4,
        description="Passes over the reference for which `conditional_loss` trains its copy, at the rate of training.",
    )
    scorer_floor: Share = Field(
        0.999, description="Least rank correlation with exact scoring that lets a scorer be used."
    )
    calibration_documents: Annotated[int, Field(ge=8)] = Field(
        64, description="Pilot documents an approximate scorer is tried on, each stage."
    )
    discount: Share = Field(0.5, description="What arms' statistics of the stage before still count (γ).")


class SelectionConfig(Section):
    """What is published."""

    budget_tokens: Positive = Field(description="Tokens to select, all stages together.")
    mode: Literal["predicted", "instance", "cluster"] = Field(
        "predicted",
        description="Rank scored documents and what a regression predicts of the others, scored documents alone, or "
        "scored documents and then the rest of good arms.",
    )
    near_duplicate_cosine: Annotated[float, Field(gt=0, le=1)] | None = Field(
        0.99, description="Drop a document this similar to a better one of its arm; None: keep all."
    )
    near_duplicate_overlap: Annotated[float, Field(gt=0, le=1)] | None = Field(
        0.8,
        description="Drop a document that has this share of five-word sequences (Jaccard similarity) in common with a "
        "better one of any arm; at 0.8 one such pair of 20 million is missed, at 0.6 one of 85. None: keep all.",
    )
    per_arm_share: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Largest share of a stage's targeted tokens from one arm; None: any."
    )
    redundancy: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="What a document loses by its cosine with one taken of its arm (maximal marginal relevance), in "
        "standard deviations of influence; 0: nothing.",
    )
    general_share: Share = Field(
        0.05,
        description="Share of the budget drawn from the rest of the pool, arms in proportion, to hold other domains; 0 "
        "for the highest influence alone.",
    )
    part_bytes: Positive = Field(256 * 2**20, description="Text bytes after which a new output part starts.")


class TrainingConfig(Section):
    """Continued pretraining on what was selected, beside a random control."""

    stages: Annotated[int, Field(ge=1, le=99)] = Field(1, description="Stages the budget is spent in.")
    seeds: Annotated[int, Field(ge=1, le=99)] = Field(
        1,
        description="Trainings of the selection, and of the random control, in each stage; more of them narrow the "
        "gain's interval.",
    )
    control: bool = Field(True, description="Train a control on random documents of equal tokens.")
    frontier: Shares = Field(
        (),
        description="Other values of `selection.general_share` to train at as well, for the report's frontier of the "
        "reference's gain against the other domains' loss.",
    )
    refit: Literal["never", "stage", "gated"] = Field(
        "gated",
        description="Whether factors and direction are fitted anew at each stage's checkpoint: never, always, or used "
        "where a short trial of both rankings speaks for the new one.",
    )
    learning_rate: LearningRate | None = Field(
        None,
        description="The schedule's peak; None: 1e-3 for a fresh model, 1e-4 for a pretrained one, which 1e-3 hurts.",
    )
    warmup_share: Share = Field(0.05, description="Share of the schedule spent warming up.")
    batch_tokens: Positive = Field(4096, description="Target tokens in one optimizer step.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.01, description="Decoupled weight decay.")
    checkpoint_every_s: Positive = Field(
        600, description="Seconds between the states of a training that are kept, for one that is killed to go on from."
    )
    command: Command | None = Field(
        None,
        description="Your own trainer in place of the built-in one: a command line, run without a shell, in which "
        "`{selection}` is a folder of parquet files, `{checkpoint}` the model to start from, `{output}` where to leave "
        "the trained one, `{tokens}` how many target tokens to train on, `{seed}` a number. None: the built-in one.",
    )
    command_timeout_s: Positive | None = Field(None, description="Seconds after which the command is killed.")


class RunConfig(Section):
    """Everything a run needs; the file `quad run` takes."""

    run: Name = Field("run", description="Name of the run.")
    workspace: Uri = Field("workspace", description="Path or URI (s3://bucket/prefix) everything is kept under.")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="Seed of every random choice.")
    pool: PoolConfig
    reference: ReferenceConfig
    heldout: HeldoutConfig = HeldoutConfig()
    model: ModelConfig = ModelConfig()
    embedding: EmbeddingConfig = EmbeddingConfig()
    clustering: ClusteringConfig = ClusteringConfig()
    factors: FactorsConfig = FactorsConfig()
    bandit: BanditConfig = BanditConfig()
    selection: SelectionConfig
    training: TrainingConfig = TrainingConfig()
    compute: ComputeConfig = ComputeConfig()
    diagnosis: DiagnosisConfig = DiagnosisConfig()

    def model_use(self) -> ModelUse:
        """Return how the model reads documents."""
        tokens = self.model.batch_tokens
        batch_tokens = UNMEASURED_BATCH_TOKENS if isinstance(tokens, str) else tokens
        return ModelUse(self.model.window_tokens, batch_tokens, self.model.dtype, self.compute.device)

    def with_batch_tokens(self, tokens: int) -> "RunConfig":
        """Return the configuration with this number of tokens of a batch in place of `auto`."""
        return self.model_copy(update={"model": self.model.model_copy(update={"batch_tokens": tokens})})

    def identity(self) -> dict[str, Any]:
        """Return what determines the result: all but where it runs and where it is kept."""
        return self.model_dump(mode="json", exclude={"compute", "diagnosis", "workspace"})
