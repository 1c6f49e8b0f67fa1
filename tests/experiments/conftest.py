"""A testbed small enough for a test: sixty short texts of three kinds, a Llama of one layer."""

import json

import pytest

from quad_tasks.config.schema import HeldoutConfig, PoolConfig, ReferenceConfig, RunConfig, SelectionConfig
from quad_tasks.experiments.lab.corpus_sample import Size
from quad_tasks.experiments.lab.testbed import build_testbeds, open_testbed

TINY = Size(
    documents=60,
    reference_documents=8,
    measured_documents=6,
    documents_per_domain=4,
    factor_documents=24,
    trained_documents=60,
    window_tokens=24,
    batch_tokens=256,
    vocabulary=300,
    width=16,
    layers=1,
    heads=2,
    arms=4,
    budget_tokens=300,
    seeds=2,
)
KINDS = {
    "sea": "the captain sailed ship number {} out to sea with a crew of {} men",
    "sums": "{} plus {} equals the sum of both numbers as everyone knows",
    "law": "section {} of the act shall apply to paragraph {} hereof",
}


def write_lines(path, texts, prefix):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": f"{prefix}-{i}", "text": t}) + "\n" for i, t in enumerate(texts)))
    return str(path)


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory):
    """Inputs of a tiny pool: 25 texts of each kind and copies of some; the sea is the reference."""
    folder = tmp_path_factory.mktemp("tiny")
    pool = [
        write_lines(folder / f"pool/{k}.jsonl", [t.format(n, 3 * n) for n in range(25)], k) for k, t in KINDS.items()
    ]
    pool.append(write_lines(folder / "pool/copies.jsonl", [KINDS["sea"].format(n, 3 * n) for n in range(5)], "copy"))
    reference = write_lines(folder / "reference.jsonl", [KINDS["sea"].format(n, n) for n in range(40, 60)], "reference")
    heldout = [
        write_lines(folder / f"heldout/{k}.jsonl", [KINDS[k].format(n, n) for n in range(70, 76)], f"held-{k}")
        for k in ("sums", "law")
    ]
    return RunConfig(
        pool=PoolConfig(inputs=tuple(pool)),
        reference=ReferenceConfig(inputs=(reference,)),
        heldout=HeldoutConfig(inputs=tuple(heldout)),
        selection=SelectionConfig(budget_tokens=1),
    )


@pytest.fixture(scope="session")
def tiny_testbed(tiny_config, tmp_path_factory, dask_client):
    """The testbed those texts make, in a workspace of its own."""
    workspace = str(tmp_path_factory.mktemp("testbed"))
    return open_testbed(workspace, build_testbeds(workspace, tiny_config, TINY)[0])
