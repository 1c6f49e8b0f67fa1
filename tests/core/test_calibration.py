"""A scorer is used where it ranks documents as exact scoring does; `auto` takes the cheapest that does."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import spearmanr

from quad_tasks.core import calibration, precision
from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.calibration import calibrate
from quad_tasks.core.ekfac import apply_inverse, fit_factors
from quad_tasks.core.influence import reference_gradient, score_documents
from quad_tasks.core.lm import flops
from quad_tasks.core.lm.batching import make_batches
from quad_tasks.core.lm.perturbed_weights import perturb


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.tiny_model("qwen2")


@pytest.fixture(scope="module")
def sample(tiny):
    return [tiny.pad(tiny.random_documents([8] * 24, seed=3))]


@pytest.fixture(scope="module")
def direction(tiny, model):
    factors = fit_factors(model, [tiny.pad(tiny.random_documents([9] * 6))], fisher="empirical")
    reference = [tiny.pad(tiny.random_documents([8] * 4, seed=1))]
    return apply_inverse(factors, reference_gradient(model, reference, find_blocks(model)))


def sample_flops(model, reading):
    return flops.document_flops(reading, np.full(24, 8), 8).sum()


@pytest.mark.parametrize(("scorer", "setting"), [("exact", None), ("low_rank", "energy"), ("forward_only", "step")])
def test_calibration_accepts_a_scorer_that_ranks_like_exact(tiny, model, scorer, setting):
    factors = fit_factors(model, [tiny.pad(tiny.random_documents([9] * 6))], fisher="empirical")
    reference = [tiny.pad(tiny.random_documents([8] * 4, seed=1))]
    direction = apply_inverse(factors, reference_gradient(model, reference, find_blocks(model)))
    sample = [tiny.pad(tiny.random_documents([8] * 24, seed=3))]
    calibration = calibrate(model, sample, np.arange(24), {"": direction}, scorer, floor=0.99)
    assert calibration.accepted
    assert calibration.spearman >= 0.99
    assert set(calibration.settings) == ({setting} - {None})
    scores = score_documents(model, sample, direction, scorer, **calibration.settings).influence
    exact = score_documents(model, sample, direction).influence
    assert np.corrcoef(scores, exact)[0, 1] > 0.99


def test_calibration_refuses_a_scorer_that_ranks_otherwise(tiny, model):
    direction = tiny.random_direction(find_blocks(model))
    sample = [tiny.pad(tiny.random_documents([8] * 24, seed=3))]
    calibration = calibrate(model, sample, np.arange(24), {"": direction}, "forward_only", floor=1.01)
    assert not calibration.accepted


@pytest.mark.parametrize(("times", "plus", "taken"), [(1.2, 0, True), (0.8, 0, True), (0.5, 0, False), (1, 1, False)])
def test_a_scorer_of_other_values_is_refused_though_it_ranks_as_exact_does(
    model, sample, direction, monkeypatch, times, plus, taken
):
    """Values of deviation 1 and mean 0, so that their error is |times - 1|, or `plus`, by hand."""
    exact = np.linspace(-1, 1, 24) / np.linspace(-1, 1, 24).std()
    monkeypatch.setattr(
        calibration, "score_by_losses", lambda *_: ((times * exact + plus)[:, None], np.ones(24, dtype=np.int64))
    )
    monkeypatch.setattr(calibration, "FEW_SHARE", 1.0)
    found = calibrate(model, sample, np.arange(24), {"": direction}, "forward_only", 0.999, None, exact)
    assert found.spearman == pytest.approx(1)
    assert found.error == pytest.approx(abs(times - 1) + plus)
    assert found.accepted is taken


def test_calibration_ranks_documents_and_not_their_windows(tiny):
    """Two long documents among short ones: their windows alone would outvote the documents."""
    model = tiny.tiny_model("llama")
    direction = tiny.random_direction(find_blocks(model))
    documents = [d.tolist() for d in tiny.random_documents([5] * 10 + [200] * 4, seed=3)]
    batches, owner = make_batches(documents, 8, 64)
    found = calibrate(model, batches, owner, {"": direction}, "low_rank", floor=0.0)
    approximate = score_documents(model, batches, direction, "low_rank", **found.settings)
    exact = score_documents(model, batches, direction)
    per_token = [
        [rows.influence[owner == n].sum() / rows.n_tokens[owner == n].sum() for n in range(len(documents))]
        for rows in (exact, approximate)
    ]
    assert found.spearman == pytest.approx(spearmanr(*per_token).statistic, abs=1e-12)
    by_window = spearmanr(*(rows.influence / rows.n_tokens for rows in (exact, approximate))).statistic
    assert found.spearman != pytest.approx(by_window, abs=1e-6)
    assert found.settings == {"energy": 0.9}  # the coarsest: its ranks differ most


def test_auto_takes_the_cheapest_of_all_settings_that_reach_the_floor(model, sample, direction):
    kinds = ("low_rank", "forward_only")
    each = [calibrate(model, sample, np.arange(24), {"": direction}, kind, 0.99) for kind in kinds]
    found = calibrate(model, sample, np.arange(24), {"": direction}, "auto", 0.99)
    best = min(each, key=lambda one: one.cost)
    assert (found.scorer, found.settings, found.cost, found.accepted) == (best.scorer, best.settings, best.cost, True)
    assert found.cost < 1


def test_auto_along_many_directions_scores_by_gradient(tiny, model, sample, direction):
    """Two forward passes a direction cost more than one backward pass for all."""
    several = {name: direction for name in ("a", "b", "c", "d")}
    found = calibrate(model, sample, np.arange(24), several, "auto", 0.99)
    assert found.scorer == "low_rank"
    assert {trial.scorer for trial in found.trials} == {"low_rank"}  # losses cost more than what was accepted


def test_what_a_calibration_cost_is_what_it_tried(model, sample, direction):
    size = flops.model_size(model, find_blocks(model))
    exact = sample_flops(model, flops.exact_flops(size))
    found = calibrate(model, sample, np.arange(24), {"": direction}, "forward_only", 1.01)
    each = sample_flops(model, flops.forward_only_flops(size))
    assert len(found.trials) == 1
    assert found.flops == pytest.approx(exact + each + 4 * each / 3)  # all five steps on 8 of the 24 documents
    known = score_documents(model, sample, direction)
    given = calibrate(model, sample, np.arange(24), {"": direction}, "forward_only", 0.99, None, known.influence / 7)
    assert given.flops == pytest.approx(each)  # the exact scores were known, the first step did
    assert given.cost == pytest.approx(each / exact)


def test_a_step_is_chosen_on_a_few_documents_where_the_first_is_too_long(model, sample, direction, monkeypatch):
    """Of steps a thousand times the usual and the usual itself; all documents are then scored by that one."""
    monkeypatch.setattr(calibration, "STEPS", (3.0, 3e-3))
    found = calibrate(model, sample, np.arange(24), {"": direction}, "forward_only", 0.999)
    assert (found.settings, found.accepted) == ({"step": 3e-3}, True)
    scored, exact = (
        score_documents(model, sample, direction, *how).influence / 7 for how in (["forward_only"], ["exact"])
    )
    assert found.spearman == pytest.approx(spearmanr(scored, exact).statistic)
    size = flops.model_size(model, find_blocks(model))
    each = sample_flops(model, flops.forward_only_flops(size))
    most = 1.2 * each
    assert calibrate(
        model, sample, np.arange(24), {"": direction}, "forward_only", 0.999, None, exact, most_flops=most
    ).settings == {"step": 3.0}  # no second step could be paid for


def test_a_step_that_meets_the_largest_values_alone_is_not_taken(model, sample, direction, monkeypatch):
    """Influence has heavy tails: the first step swaps the two least of 24, at a linear correlation of one."""
    known = np.concatenate([[0.0, 0.05], np.linspace(100, 1e6, 22)])
    swapped = known[[1, 0, *range(2, 24)]]
    scored = {3e-3: swapped, 1e-3: known}
    monkeypatch.setattr(calibration, "FEW_SHARE", 1.0)
    monkeypatch.setattr(
        calibration, "score_by_losses", lambda *given: (scored[given[4]][:, None], np.ones(24, dtype=np.int64))
    )
    found = calibrate(model, sample, np.arange(24), {"": direction}, "forward_only", 0.9999, None, known)
    assert found.settings == {"step": 1e-3}
    assert found.spearman == pytest.approx(1.0)


def test_auto_does_not_score_by_losses_where_bfloat16_products_are_faster(model, sample, direction, monkeypatch):
    half = copy.deepcopy(model).bfloat16()
    for fast, tried in ((True, {"low_rank"}), (False, {"low_rank", "forward_only"})):
        monkeypatch.setattr(precision, "has_bfloat16_products", lambda _, fast=fast: fast)
        found = calibrate(half, sample, np.arange(24), {"": direction}, "auto", 1.01)
        assert {trial.scorer for trial in found.trials} == tried


def test_nothing_is_tried_that_cannot_be_paid_for(model, sample, direction):
    found = calibrate(model, sample, np.arange(24), {"": direction}, "auto", 0.99, None, np.ones(24), most_flops=1.0)
    assert (found.trials, found.accepted, found.flops) == ((), False, 0.0)


def test_auto_does_not_copy_weights_that_memory_has_no_room_for(model, sample, direction, monkeypatch):
    monkeypatch.setattr(calibration, "_has_room_for_copies", lambda *_: False)
    found = calibrate(model, sample, np.arange(24), {"": direction}, "auto", 0.99)
    assert {trial.scorer for trial in found.trials} == {"low_rank"}


def test_copies_are_counted_in_float32(model, sample, direction, monkeypatch):
    """The matrices that `perturb` makes: twice the tracked; of a bfloat16 model the others below the head too, once."""
    kinds = {}
    for name, one in (("float64", model), ("bfloat16", copy.deepcopy(model).bfloat16())):
        [made] = perturb(one, find_blocks(one), [direction], 1e-3)
        copies = {copied.data_ptr(): copied for side in (made.plus, made.minus) for copied in side.values()}
        values = sum(copied.nbytes for copied in copies.values() if copied.ndim == 2)
        taken = calibration._sample(one, find_blocks(one), sample, np.arange(24), {"": direction}, None)
        for free in (2 * values, 2 * values - 2):
            monkeypatch.setattr(calibration.psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free))
            kinds[name, free == 2 * values] = calibration._has_room_for_copies(taken)
    assert kinds == {
        ("float64", True): True,
        ("float64", False): False,
        ("bfloat16", True): True,
        ("bfloat16", False): False,
    }


def test_a_rejected_calibration_names_the_setting_that_came_nearest(model, sample, direction):
    found = calibrate(model, sample, np.arange(24), {"": direction}, "auto", 1.01)
    assert not found.accepted
    assert found.spearman == max(trial.spearman for trial in found.trials)
    assert {trial.scorer for trial in found.trials} == {"forward_only", "low_rank"}
