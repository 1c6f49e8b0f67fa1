"""A direction is the inverse applied to each set's mean gradient; no process that drives a run holds factors."""

import pytest
import torch

from quad_tasks.config.schema import ConfigError, FactorsConfig
from quad_tasks.core import ekfac
from quad_tasks.core.lm.batching import make_batches
from quad_tasks.core.lm.model import LlamaSize, fresh_llama
from quad_tasks.stages.influence import factor_memory, fit_direction, fit_parts
from quad_tasks.storage.keys import factors_key
from quad_tasks.storage.store import open_store
from quad_tasks.storage.tensors import load_tensors

BLOCK = "model.layers.0.mlp.down_proj"


@pytest.fixture
def factors(tmp_path):
    """Factors of a model of one layer, written as a fit writes them."""
    model = fresh_llama(LlamaSize(16, 1, 2, 1, 32), 320, 64, 0)
    generator = torch.Generator().manual_seed(0)
    fitted = ekfac.fit_factors(
        model, make_batches([list(range(3, 30)), list(range(40, 60))], 64, 128)[0], generator=generator
    )
    store = open_store(str(tmp_path))
    return store, fitted, fit_parts.save_named(store, factors_key("factors"), ekfac.factors_to_tensors(fitted))


def write_gradient(store, key, fitted, scale, n_targets):
    sums = {name: torch.full(values.shape, scale) for name, values in fitted.eigenvalues.items()}
    fit_parts.save_named(store, key, {**sums, "n_targets": torch.tensor(n_targets)})


def test_every_sets_direction_is_the_inverse_of_its_mean_gradient_worked_densely(factors):
    store, fitted, sha256 = factors
    write_gradient(store, "a", fitted, 3.0, 4)
    write_gradient(store, "b", fitted, 2.0, 6)
    write_gradient(store, "c", fitted, -1.0, 2)
    parts = {"prose": ["a", "b"], "code": ["c"]}
    digest, n_targets = fit_direction.solve_sets(store, "factors", sha256, parts, "direction", FactorsConfig())
    assert n_targets == {"prose": 10, "code": 2}
    found, _ = load_tensors(store, "direction/direction.safetensors", digest)
    left, right = fitted.basis.gradient[BLOCK].double(), fitted.basis.activation[BLOCK].double()
    values = fitted.eigenvalues[BLOCK].double()
    damping = 0.1 * values.mean()
    for name, mean in (("prose", 0.5), ("code", -0.5)):
        gradient = torch.full(values.shape, mean, dtype=torch.float64)
        expected = left @ ((left.T @ gradient @ right) / (values + damping)) @ right.T
        torch.testing.assert_close(
            torch.from_numpy(found[f"{name}/{BLOCK}"]).double(),
            expected,
            rtol=1e-3,
            atol=1e-3 * float(expected.abs().max()),
        )


def test_a_set_without_a_target_is_refused_by_name(factors):
    store, fitted, sha256 = factors
    write_gradient(store, "a", fitted, 0.0, 0)
    with pytest.raises(ConfigError, match="'prose': expected documents of at least 2 tokens"):
        fit_direction.solve_sets(store, "factors", sha256, {"prose": ["a"]}, "direction", FactorsConfig())


def test_no_chunk_holds_documents_of_two_sets(monkeypatch):
    monkeypatch.setattr(fit_direction, "CHUNK_DOCUMENTS", 4)
    assert fit_direction._set_chunks([5, 3]) == [(0, 0, 4), (0, 4, 1), (1, 5, 3)]
    assert factor_memory.CHUNK_DOCUMENTS > 4
