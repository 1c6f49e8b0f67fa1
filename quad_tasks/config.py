"""The configuration of a run: frozen models, one per stage, every field with its unit and range.

Owns what may be configured and what each key means; `config_file.py` reads a file and explains its mistakes. Refuses
secrets: credentials come from the environment, never from here.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Signature = Literal[
    "budget_not_reached",
    "too_little_diversity",
    "too_much_compute",
    "bandit_collapsed",
    "arms_not_homogeneous",
    "stale_influence",
]
"""Findings of `core.diagnosis`."""


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names file and key."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def _no_credentials(uri: str) -> str:
    authority = uri.split("://", 1)[1].split("/", 1)[0] if "://" in uri else ""
    if "@" in authority:
        raise ValueError("a URI without credentials (they come from the environment or a profile), found user info")
    return uri


Uri = Annotated[str, Field(min_length=1), AfterValidator(_no_credentials)]


class FieldNames(_Frozen):
    """Which columns of the user's records hold what; a dotted path reaches into nested records."""

    id: str = Field("id", description="Stable id; absent in a record: derived from its content.")
    text: str = Field("text", description="The text; required in every record.")
    source: str = Field("source", description="Origin of the document; absent: the file's name.")
    metadata: str = Field("metadata", description="Further fields, kept as they are.")
    domain: str = Field("domain", description="Domain of a held-out document; absent: the file's name.")


class PoolConfig(_Frozen):
    """The candidate pool."""

    name: Name = Field("pool", description="Name under which the pool's tables are kept and reused by later runs.")
    inputs: tuple[Uri, ...] = Field(
        min_length=1, description="Paths, URIs or globs of .jsonl, .jsonl.gz, .jsonl.zst or .parquet shards."
    )
    fields: FieldNames = Field(FieldNames(), description="Names of the records' fields.")


class ReferenceSetConfig(_Frozen):
    """One of several reference sets."""

    inputs: tuple[Uri, ...] = Field(min_length=1, description="Paths, URIs or globs, formats as for the pool.")
    weight: Annotated[float, Field(gt=0)] = Field(1.0, description="What its gradient counts beside the others'.")


class ReferenceConfig(_Frozen):
    """The reference set, or several: what the model should become good at."""

    inputs: tuple[Uri, ...] = Field((), description="Paths, URIs or globs, formats as for the pool.")
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


class HeldoutConfig(_Frozen):
    """Held-out domains: what the gain may cost elsewhere."""

    inputs: tuple[Uri, ...] = Field((), description="Paths, URIs or globs of held-out documents, by domain.")
    fields: FieldNames = Field(FieldNames(), description="Names of the records' fields.")
    documents_per_domain: Positive = Field(100, description="Documents measured per domain.")
    reference_domain: str | None = Field(
        None, description="The held-out domain whose loss is the reference loss; None: a share of the reference."
    )


class FreshModelConfig(_Frozen):
    """The small Llama trained on a sample of the pool when `model.source` is `fresh`."""

    vocabulary: Annotated[int, Field(ge=300)] = Field(2048, description="Entries of the byte-level BPE tokenizer.")
    width: Positive = Field(128, description="Hidden size; a multiple of `heads`.")
    layers: Positive = Field(3, description="Transformer layers.")
    heads: Positive = Field(4, description="Attention heads.")
    key_value_heads: Positive = Field(4, description="Key/value heads; divides `heads`.")
    mlp_width: Positive = Field(344, description="Inner size of the gated MLP.")
    train_tokens: Positive = Field(1_500_000, description="Tokens of pool text it is pretrained on.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(6e-3, description="Peak learning rate of pretraining.")

    @model_validator(mode="after")
    def _heads_divide(self) -> "FreshModelConfig":
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width an even multiple of heads, found width {self.width}, heads {self.heads}")
        if self.heads % self.key_value_heads:
            raise ValueError(
                f"key_value_heads that divide heads, found heads {self.heads}, key_value_heads {self.key_value_heads}"
            )
        return self


class ModelConfig(_Frozen):
    """The checkpoint whose data is chosen."""

    source: str = Field("fresh", min_length=1, description="A Hugging Face id, a local path, or `fresh`.")
    fresh: FreshModelConfig = Field(FreshModelConfig(), description="Size and training of a fresh model.")
    window_tokens: Annotated[int, Field(ge=2)] = Field(
        256, description="Longest sequence scored or trained on; a longer document is split into windows."
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Precision of forward and backward.")
    batch_tokens: Positive = Field(
        2048, description="Tokens, padding included, of a batch that is fitted, scored or measured."
    )


class EmbeddingConfig(_Frozen):
    """How documents become vectors."""

    method: Literal["ngrams", "encoder", "model"] = Field(
        "ngrams", description="Hashed n-grams + TF-IDF + SVD, a Hugging Face encoder, or the model's own mean state."
    )
    dimension: Annotated[int, Field(ge=2, le=4096)] = Field(128, description="Dimension of n-gram embeddings.")
    sample_documents: Positive = Field(10_000, description="Documents the n-gram embedder is fitted on.")
    encoder: str = Field("BAAI/bge-small-en-v1.5", description="Encoder's Hugging Face id or path.")
    pooling: Literal["mean", "cls"] = Field("cls", description="Pooling of the encoder's states.")
    max_tokens: Positive = Field(256, description="Tokens of a document an encoder or the model reads.")


class ClusteringConfig(_Frozen):
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


class FactorsConfig(_Frozen):
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
    rounded_products: bool = Field(
        False,
        description="Compute the fit's products from bfloat16 factors where the CPU or the GPU multiplies those: "
        "faster, and less alike between machines; sums stay in float32.",
    )
    damping_scale: Annotated[float, Field(gt=0)] = Field(
        0.1, description="Damping as a multiple of each block's mean eigenvalue."
    )


class BanditConfig(_Frozen):
    """Rounds of pulls."""

    preset: Literal["paper", "released", "thompson", "contextual"] = Field("paper", description="Arm-choosing policy.")
    alpha: Annotated[float, Field(ge=0)] | None = Field(
        None, description="Weight of the exploration bonus; None: the preset's."
    )
    arms_per_round: Positive = Field(8, description="Arms pulled in a round (k).")
    documents_per_pull: Positive = Field(16, description="Documents drawn by one pull (m).")
    active_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.75,
        description="Share of a round's documents drawn from the whole pool for their predicted influence, near where "
        "the selection ends; the others are the pulled arms' next.",
    )
    threshold: float | None = Field(
        None, description="Influence per token a document must exceed (τ); None: a quantile of the random pilot."
    )
    threshold_quantile: Share = Field(0.75, description="The pilot's quantile that becomes τ.")
    pilot_documents: Annotated[int, Field(ge=2)] = Field(
        256, description="Documents scored at random first, each stage."
    )
    max_rounds: Positive = Field(10_000, description="Rounds of one stage at most.")
    max_scored_share: Share | None = Field(
        None,
        description="Share of the pool's documents that may be scored, all stages; None: 0.1 where unscored documents "
        "may be selected, else all.",
    )
    oversample: Annotated[float, Field(ge=1)] = Field(
        2.0, description="Rounds go on until documents above τ hold this multiple of the stage's token budget."
    )
    propagation: Literal["none", "weights", "released"] | None = Field(
        None, description="What arms near in Wasserstein distance hear of a pull; None: the preset's."
    )
    scorer: Literal["exact", "low_rank", "forward_only"] = Field(
        "exact",
        description="How documents are scored after the pilot; one that is not exact must first rank a part of the "
        "pilot as exact scoring does, or exact scoring goes on.",
    )
    scorer_floor: Share = Field(
        0.999, description="Least rank correlation with exact scoring that lets a scorer be used."
    )
    calibration_documents: Annotated[int, Field(ge=8)] = Field(
        64, description="Pilot documents an approximate scorer is tried on, each stage."
    )
    discount: Share = Field(0.5, description="What arms' statistics of the stage before still count (γ).")


class SelectionConfig(_Frozen):
    """What is published."""

    budget_tokens: Positive = Field(description="Tokens to select, all stages together.")
    mode: Literal["predicted", "instance", "cluster"] = Field(
        "predicted",
        description="Rank scored documents and what a regression predicts of the others, scored documents alone, or "
        "scored documents and then the rest of good arms.",
    )
    states: bool = Field(
        False,
        description="Read the whole pool once with the model it was tokenized for, a third of what scoring it takes, "
        "so that documents' hidden states and losses are candidates among what influence is predicted from; runs on "
        "the same pool and model share them.",
    )
    near_duplicate_cosine: Annotated[float, Field(gt=0, le=1)] | None = Field(
        0.99, description="Drop a document this similar to a better one of its arm; None: keep all."
    )
    near_duplicate_overlap: Annotated[float, Field(gt=0, le=1)] | None = Field(
        0.8,
        description="Drop a document that has this share of five-word sequences (Jaccard similarity) in common with a "
        "better one of any arm; None: keep all.",
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


class TrainingConfig(_Frozen):
    """Continued pretraining on what was selected, beside a random control."""

    stages: Annotated[int, Field(ge=1, le=99)] = Field(1, description="Stages the budget is spent in.")
    seeds: Annotated[int, Field(ge=1, le=99)] = Field(1, description="Training runs per stage, to show an interval.")
    control: bool = Field(True, description="Train a control on random documents of equal tokens.")
    frontier: tuple[Share, ...] = Field(
        (),
        description="Other values of `selection.general_share` to train at as well, for the report's frontier of the "
        "reference's gain against the other domains' loss.",
    )
    refit: Literal["never", "stage", "gated"] = Field(
        "gated",
        description="Whether factors and direction are fitted anew at each stage's checkpoint: never, always, or used "
        "where a short trial of both rankings speaks for the new one.",
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-3, description="Peak learning rate of the one schedule.")
    warmup_share: Share = Field(0.05, description="Share of the schedule spent warming up.")
    batch_tokens: Positive = Field(4096, description="Tokens in one optimizer step.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.01, description="Decoupled weight decay.")


class ComputeConfig(_Frozen):
    """Where it runs; never part of a result's identity."""

    workers: Positive = Field(2, description="Processes of the local Dask cluster.")
    threads_per_worker: Positive = Field(1, description="BLAS threads of each worker.")
    dask_address: str | None = Field(
        None, description="An existing Dask scheduler; None: DASK_SCHEDULER_ADDRESS, or a local one."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where models run; auto: a GPU where there is one."
    )


class DiagnosisConfig(_Frozen):
    """What a run makes of its findings; never part of a result's identity."""

    stop_on: tuple[Signature, ...] = Field(
        (),
        description="Findings at which a run ends as failed, before a stage is trained or after the report is written.",
    )


class RunConfig(_Frozen):
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

    def identity(self) -> dict[str, Any]:
        """Return what determines the result: all but where it runs and where it is kept."""
        return self.model_dump(mode="json", exclude={"compute", "diagnosis", "workspace"})
