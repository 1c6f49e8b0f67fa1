"""The peer's side of the influence benchmark: kronfluence 1.0.1 under its own interface, aligned with ours.

Aligned means: summed losses, the data's own labels (empirical Fisher), an attention mask that drops each sequence's
last position, damping None (0.1 of the mean corrected eigenvalue), float32, decoder layers only.
"""

import logging
from collections.abc import Sequence
from tempfile import TemporaryDirectory

import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from kronfluence.utils.dataset import DataLoaderKwargs
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import PreTrainedModel

ModelBatch = dict[str, Tensor]


class Rows(Dataset[ModelBatch]):
    """Rows of tokens, as the peer's loader takes them."""

    def __init__(self, ids_NT: Tensor) -> None:
        """Keep the rows."""
        self.ids_NT = ids_NT

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.ids_NT)

    def __getitem__(self, row: int) -> ModelBatch:
        """Give one row."""
        return {"input_ids": self.ids_NT[row]}


class LanguageModelling(Task):
    """Summed next-token loss over the decoder layers' linear maps."""

    def __init__(self, modules: Sequence[str]) -> None:
        """Name the modules to track."""
        super().__init__()
        self.modules = list(modules)

    def compute_train_loss(self, batch: ModelBatch, model: nn.Module, sample: bool = False) -> Tensor:
        """Sum the loss over the batch's targets."""
        if sample:
            raise ValueError("expected the data's own labels, got sample=True")
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1]
        return functional.cross_entropy(logits.flatten(0, 1), batch["input_ids"][:, 1:].flatten(), reduction="sum")

    def compute_measurement(self, batch: ModelBatch, model: nn.Module) -> Tensor:
        """Sum the loss of a query."""
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self) -> list[str]:
        """Name the tracked modules."""
        return self.modules

    def get_attention_mask(self, batch: ModelBatch) -> Tensor:
        """Drop each sequence's last position."""
        mask = torch.ones_like(batch["input_ids"])
        mask[:, -1] = 0
        return mask


class Peer:
    """A prepared model and the folder that the peer keeps its results in."""

    def __init__(
        self,
        model: PreTrainedModel,
        modules: Sequence[str],
        dtype: torch.dtype = torch.float32,
        cpu: bool = True,
        strategy: str = "ekfac",
    ) -> None:
        """Wrap the model, which is the peer's from here on; ``dtype`` is that of all sums and products."""
        self.dtype, self.strategy = dtype, strategy
        logging.disable(logging.WARNING)
        self.folder = TemporaryDirectory()
        task = LanguageModelling(modules)
        self.analyzer = Analyzer(
            "benchmark", prepare_model(model, task), task, cpu=cpu, disable_tqdm=True, output_dir=self.folder.name
        )
        self.analyzer.set_dataloader_kwargs(DataLoaderKwargs(num_workers=0))

    def fit(self, ids_NT: Tensor, batch_size: int) -> None:
        """Fit EK-FAC factors."""
        self.analyzer.fit_all_factors(
            "factors",
            Rows(ids_NT),
            per_device_batch_size=batch_size,
            factor_args=FactorArguments(
                strategy=self.strategy,
                use_empirical_fisher=True,
                activation_covariance_dtype=self.dtype,
                gradient_covariance_dtype=self.dtype,
                per_sample_gradient_dtype=self.dtype,
                lambda_dtype=self.dtype,
            ),
            overwrite_output_dir=True,
        )

    def score(self, reference_NT: Tensor, ids_NT: Tensor, batch_size: int) -> Tensor:
        """Score rows [N] against the summed loss of the reference, from its gradient on."""
        self.analyzer.compute_pairwise_scores(
            "scores",
            "factors",
            query_dataset=Rows(reference_NT),
            train_dataset=Rows(ids_NT),
            per_device_query_batch_size=len(reference_NT),
            per_device_train_batch_size=batch_size,
            score_args=ScoreArguments(
                damping_factor=None,
                aggregate_query_gradients=True,
                per_sample_gradient_dtype=self.dtype,
                precondition_dtype=self.dtype,
                score_dtype=self.dtype,
            ),
            overwrite_output_dir=True,
        )
        scores: Tensor = self.analyzer.load_pairwise_scores("scores")["all_modules"]
        return scores.sum(dim=0)
