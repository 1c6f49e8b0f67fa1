"""The configuration's section `model`: the checkpoint whose data is chosen, or the fresh model, and how it reads."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from quad_tasks.config.uris import Uri
from quad_tasks.config.values import UNMEASURED_BATCH_TOKENS, BatchTokens, LearningRate, Positive, Section


class FreshModelConfig(Section):
    """The small Llama trained on a sample of the pool when `model.source` is `fresh`."""

    vocabulary: Annotated[int, Field(ge=300)] = Field(2048, description="Entries of the byte-level BPE tokenizer.")
    width: Positive = Field(128, description="Hidden size; a multiple of `heads`.")
    layers: Positive = Field(3, description="Transformer layers.")
    heads: Positive = Field(4, description="Attention heads.")
    key_value_heads: Positive = Field(4, description="Key/value heads; divides `heads`.")
    mlp_width: Positive = Field(344, description="Inner size of the gated MLP.")
    train_tokens: Positive = Field(1_500_000, description="Tokens of pool text it is pretrained on.")
    learning_rate: LearningRate = Field(6e-3, description="Peak learning rate of pretraining.")

    @model_validator(mode="after")
    def _heads_divide(self) -> "FreshModelConfig":
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width an even multiple of heads, found width {self.width}, heads {self.heads}")
        if self.heads % self.key_value_heads:
            raise ValueError(
                f"key_value_heads that divide heads, found heads {self.heads}, key_value_heads {self.key_value_heads}"
            )
        return self


class ModelConfig(Section):
    """The checkpoint whose data is chosen."""

    source: Uri = Field("fresh", description="A Hugging Face id, a local folder, a `.gguf` file, or `fresh`.")
    fresh: FreshModelConfig = Field(FreshModelConfig(), description="Size and training of a fresh model.")
    window_tokens: Annotated[int, Field(ge=2)] = Field(
        256, description="Longest sequence scored or trained on; a longer document is split into windows."
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Precision of forward and backward.")
    batch_tokens: BatchTokens = Field(
        UNMEASURED_BATCH_TOKENS,
        description="Tokens, padding included, of a batch that is fitted, scored or measured. `auto`: as many as a "
        "GPU's memory holds, measured when the run begins and kept to; 2,048 on a CPU.",
    )
