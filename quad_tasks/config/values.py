"""Kinds of values that keys of a configuration take: their ranges, and the names to choose from."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    TypeAdapter,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema

from quad_tasks.plugins import Kind, one_of, plugin_names


class Section(BaseModel):
    """A part of a configuration: frozen, without unknown keys, and its values never in an error's message."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, hide_input_in_errors=True
    )

    @model_validator(mode="before")
    @classmethod
    def _without_keys(cls, given: Any) -> Any:
        """Read a section whose keys are all left out, which YAML gives as nothing, as an empty one."""
        return {} if given is None else given


NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
AUTO = "auto"
BatchTokens = Positive | Literal["auto"]
UNMEASURED_BATCH_TOKENS = 2048
"""Tokens of a batch where `auto` has no device's memory to measure: a CPU is busy with as many."""
SizeBytes = Annotated[
    ByteSize,
    Field(gt=0),
    WithJsonSchema(
        {"anyOf": [TypeAdapter(ByteSize).json_schema()["anyOf"][0], {"type": "integer", "exclusiveMinimum": 0}]}
    ),
]
"""Bytes, as a number above 0 or with a unit; JSON Schema learns nothing of the bound from pydantic."""


def distinct_shares(shares: tuple[float, ...]) -> tuple[float, ...]:
    """Return shares that differ by the six digits that names of what is trained show.

    Raises:
        ValueError: two are alike.
    """
    shown = [f"{share:g}" for share in shares]
    if twice := [text for text in shown if shown.count(text) > 1]:
        raise ValueError(f"shares that differ in their first six digits, found {twice[0]} twice")
    return shares


Shares = Annotated[tuple[Share, ...], AfterValidator(distinct_shares)]
LearningRate = Annotated[float, Field(ge=1e-8, le=1)]
"""Of AdamW, whose steps are about as large: below, float32 weights stay as they are; above, none of them survives."""
Signature = Literal[
    "budget_not_reached",
    "too_little_diversity",
    "too_much_compute",
    "bandit_collapsed",
    "arms_not_homogeneous",
    "stale_influence",
    "held_out_overlap",
    "training_harmed",
    "too_few_steps",
    "gain_not_shown",
]
"""Findings of `core.evaluation.diagnosis`."""
Features = Literal["embedding", "tokens", "hidden_states"]
"""What influence is predicted from, each choice with all that stands before it."""


@dataclass(frozen=True)
class _Listed:
    """Makes a JSON Schema list the names of a kind of extension, those of installed packages too, and others."""

    kind: Kind
    others: tuple[str, ...] = ()

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(core), "enum": [*plugin_names(self.kind), *self.others]}


EmbedderName = Annotated[str, AfterValidator(one_of("embedders")), _Listed("embedders")]
PolicyName = Annotated[str, AfterValidator(one_of("policies")), _Listed("policies")]
CONDITIONAL_LOSS = "conditional_loss"
"""The scorer that needs no direction: `core.lm.conditional_loss`."""
SCORED_OTHERWISE = ("auto", CONDITIONAL_LOSS)
"""What `bandit.scorer` may be beside a scorer's name: the cheapest that ranks right, and without a direction."""
ScorerName = Annotated[str, AfterValidator(one_of("scorers", *SCORED_OTHERWISE)), _Listed("scorers", SCORED_OTHERWISE)]
