"""The demo's configuration: the whole method on text every Python installation has, in minutes on two cores."""

from pathlib import Path

from quad_tasks.config.load import parse_config
from quad_tasks.config.schema import RunConfig
from quad_tasks.demo_corpus import build_corpus


def demo_config(directory: Path) -> RunConfig:
    """Build the demo's corpus under `directory` and return the run that uses it."""
    directory = directory.resolve()
    build_corpus(directory / "corpus")
    body = {
        "run": "demo",
        "workspace": str(directory / "workspace"),
        "pool": {"name": "demo", "inputs": [f"{directory}/corpus/pool/*"]},
        "reference": {"inputs": [f"{directory}/corpus/reference/*"]},
        "heldout": {
            "inputs": [f"{directory}/corpus/heldout/*"],
            "documents_per_domain": 60,
            "reference_domain": "reference_docs",
        },
        "model": {
            "fresh": {
                "layers": 2,
                "train_tokens": 500_000,
            }
        },
        "clustering": {"arms": 60},
        "factors": {"sample_documents": 512},
        "bandit": {"pilot_documents": 192},
        "selection": {"budget_tokens": 150_000},
    }
    return parse_config(body, "demo")
