"""Quad: choose pretraining data by influence and diversity (arXiv 2409.16986).

The names below are pieces of the method for use alone (`quad_tasks.api`); nothing is imported until one is asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quad_tasks.api import (
        Pulled,
        cluster_embeddings,
        fit_text_direction,
        fit_text_factors,
        measure_diversity,
        pull_arms,
        score_texts,
    )

__all__ = [
    "Pulled",
    "cluster_embeddings",
    "fit_text_direction",
    "fit_text_factors",
    "measure_diversity",
    "pull_arms",
    "score_texts",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from quad_tasks import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
