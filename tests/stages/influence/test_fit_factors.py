"""How a fit is cut into pieces of work changes no number of the factors, and leaves nothing behind."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_pool import pool_version

from flows.fit_influence import fit_influence
from quad_tasks.config.schema import FactorsConfig
from quad_tasks.core import ekfac
from quad_tasks.core.lm.batching import make_batches
from quad_tasks.core.lm.model import LlamaSize, fresh_llama
from quad_tasks.manifests.pool import Part
from quad_tasks.records import ModelUse
from quad_tasks.runtime.processes.memory import SMALLER_BATCH
from quad_tasks.runtime.run import pinned_pool
from quad_tasks.stages.influence import factor_memory, fit_direction, fit_factors, fit_parts
from quad_tasks.stages.influence.find_overlap import overlap_positions
from quad_tasks.storage.keys import chunk_key, factors_key, manifest_key
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.store import open_store

DOCUMENTS = [[int(t) for t in np.random.default_rng(n).integers(0, 320, 4 + n % 20)] for n in range(50)]


@pytest.fixture
def model(monkeypatch):
    """A model and a pool that a fit reads without a workspace of them."""
    found = fresh_llama(LlamaSize(16, 2, 2, 1, 32), 320, 64, 0)
    part = Part.model_construct(rows=len(DOCUMENTS))

    def chunk_batches(fit, positions):
        seeds = [int(position) for position in positions]
        return found, make_batches([DOCUMENTS[i] for i in seeds], 64, 128, seeds)[0]

    monkeypatch.setattr(fit_factors, "load_checkpoint", lambda *given: (found, None))
    monkeypatch.setattr(fit_factors, "read_version", lambda store, version: pool_version([part]))
    monkeypatch.setattr(fit_factors, "_chunk_batches", chunk_batches)
    monkeypatch.setattr(factor_memory, "CHUNK_DOCUMENTS", 16)
    return found


def begin(tmp_path, key):
    settings = FactorsConfig(sample_documents=40, max_factor_width=None)
    return fit_factors.Fit(open_store(str(tmp_path)), "v", "m", key, settings, ModelUse(64, 128, "float32", "cpu"), 0)


def factors_of(fit):
    return fit_parts.load_named(fit.store, factors_key(fit.key))


def test_factors_are_those_of_one_process_however_blocks_are_grouped(model, dask_client, tmp_path, monkeypatch):
    whole = begin(tmp_path, "factors/whole")
    fit_factors._fit(whole)
    sample, _ = fit_factors._samples(whole.settings, len(DOCUMENTS), 0)
    _, batches = fit_factors._chunk_batches(whole, sample)
    alone = ekfac.fit_factors(model, batches)
    expected = {**alone.eigenvalues}
    found = factors_of(whole)
    inverse = ekfac.apply_inverse(ekfac.factors_from_tensors(found), expected)
    for name, wanted in ekfac.apply_inverse(alone, expected).items():  # eigenvectors themselves are free in sign
        torch.testing.assert_close(inverse[name], wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
    monkeypatch.setattr(factor_memory, "GROUP_BYTES", 1)
    grouped = replace(whole, key="factors/grouped")
    assert fit_factors.covariance_sizes(grouped)[0] == 8  # two layers of four inputs
    fit_factors._fit(grouped)
    again = factors_of(grouped)
    assert again.keys() == found.keys()
    assert all(torch.equal(again[name], found[name]) for name in found)
    assert grouped.store.list(grouped.key) == [factors_key(grouped.key), manifest_key(grouped.key)]


def test_a_fit_that_stopped_between_its_passes_does_not_sum_again(model, dask_client, tmp_path, monkeypatch):
    monkeypatch.setattr(factor_memory, "GROUP_BYTES", 1)
    fit = begin(tmp_path, "factors/stopped")
    seen = []

    def broken(*given):
        seen.append(sorted(fit.store.list(fit.key)))
        raise KeyboardInterrupt("stopped")

    with monkeypatch.context() as stopping:
        stopping.setattr(fit_factors, "eigenvalue_chunk", broken)
        stopping.setattr(fit_factors, "map_tasks", lambda call, items, *rest, **also: [call(*item) for item in items])
        with pytest.raises(KeyboardInterrupt):
            fit_factors._fit(fit)
    assert seen[0] == [chunk_key(fit.key, "basis", group) for group in range(8)]  # the chunks' sums are gone
    monkeypatch.setattr(fit_factors, "covariance_chunk", broken)
    fit_factors._fit(fit)
    assert len(seen) == 1
    assert fit.store.list(fit.key) == [factors_key(fit.key), manifest_key(fit.key)]


def test_only_steps_that_read_batches_ask_for_smaller_ones(model, tmp_path, monkeypatch):
    said = {}

    def run_here(call, items, label, *rest, **also):
        said[label] = also.get("smaller", SMALLER_BATCH)
        return [call(*item) for item in items]

    monkeypatch.setattr(fit_factors, "map_tasks", run_here)
    fit_factors._fit(begin(tmp_path, "factors/said"))
    assert {label for label, remedy in said.items() if "batch_tokens" in remedy} == {
        "fit covariances",
        "fit eigenvalues",
    }


def test_documents_with_held_out_text_are_in_no_sample_of_the_factors(leaking_run):
    store = open_store(leaking_run.workspace)
    documents = read_version(store, pinned_pool(store, leaking_run.run)).documents
    aside = overlap_positions(store, leaking_run.run)
    all_there_are = leaking_run.factors.model_copy(update={"sample_documents": documents})
    direction = fit_influence(leaking_run.model_copy(update={"factors": all_there_are}))
    factors = fit_factors.read_factors(store, fit_direction.read_direction(store, direction).factors)
    assert len(aside) > 0
    assert factors.sample_documents == documents - len(aside)


def test_positions_that_are_not_open_are_drawn_in_neither_pass():
    settings, held_out = FactorsConfig(sample_documents=20, eigenvalue_documents=25), tuple(range(0, 60, 2))
    first, second = fit_factors._samples(settings, 60, 0, held_out)
    assert (len(first), len(second)) == (20, 25)
    assert not set(held_out) & set([*first, *second])
