"""What the regression predicts and refuses, which features it uses, and what a selection gains by it."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quad_tasks.core.selection.prediction import (
    Predictor,
    _variance_ratio,
    fit_predictor,
    nearest_to_cut,
    predict,
    selection_cut,
    shrunken_means,
)

N_ARMS = 12


def pool(n: int, seed: int = 0, arms_only: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, influence and arms; influence depends on arms, and unless `arms_only` on the features inside them."""
    generator = np.random.default_rng(seed)
    arm_N = generator.integers(0, N_ARMS, n).astype(np.int32)
    arm_mean_K = generator.normal(size=N_ARMS)
    x_ND = generator.normal(size=(n, 5))
    inside_N = np.zeros(n) if arms_only else x_ND[:, 0] + np.sin(2 * x_ND[:, 1])
    return x_ND, arm_mean_K[arm_N] + inside_N + 0.5 * generator.normal(size=n), arm_N


def fitted(n: int = 300, seed: int = 0, arms_only: bool = False) -> Predictor:
    return fit_predictor(*pool(n, seed, arms_only), N_ARMS, np.random.default_rng(0))


def test_shrunken_means_left_out_equal_those_without_the_document() -> None:
    generator = np.random.default_rng(0)
    value_N, arm_N = generator.normal(size=30) + 5, generator.integers(0, 4, 30).astype(np.int32)
    value_N += arm_N
    mean_K, leave_one_out_N = shrunken_means(value_N, arm_N, 5)
    count_K, sum_K = np.bincount(arm_N, minlength=5), np.bincount(arm_N, value_N, minlength=5)
    mean = value_N.mean()
    ratio = (sum_K[0] - count_K[0] * mean_K[0]) / (mean_K[0] - mean)
    assert mean_K == pytest.approx((sum_K + ratio * mean) / (count_K + ratio))
    assert leave_one_out_N[3] == pytest.approx(
        (sum_K[arm_N[3]] - value_N[3] + ratio * mean) / (count_K[arm_N[3]] - 1 + ratio)
    )


def test_the_ratio_of_variances_of_uneven_arms_is_that_worked_by_hand() -> None:
    """Within: (2 + 20) / 4; between: 2 (2 - 28/3)² + 4 (13 - 28/3)² = 484/3; of six documents, 6 - (4 + 16) / 6."""
    value_N, arm_N = np.array([1.0, 3.0, 10.0, 12.0, 14.0, 16.0]), np.array([0, 0, 1, 1, 1, 1], dtype=np.int32)
    ratio = _variance_ratio(value_N, arm_N, np.array([2, 4]), np.array([4.0, 52.0]))
    assert ratio == pytest.approx(5.5 * (8 / 3) / (484 / 3 - 5.5))


def test_arms_that_do_not_differ_share_one_mean() -> None:
    value_N = np.tile([0.0, 1.0], 50)
    mean_K, _ = shrunken_means(value_N, np.repeat(np.arange(10), 10).astype(np.int32), 11)
    assert mean_K == pytest.approx(np.full(11, 0.5), abs=1e-3)


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 2.0, 2.0]])
def test_arms_of_one_document_and_arms_of_none_have_finite_means(values: list[float]) -> None:
    mean_K, leave_one_out_N = shrunken_means(np.array(values), np.arange(4, dtype=np.int32), 6)
    assert np.concatenate((mean_K, leave_one_out_N)) == pytest.approx(np.full(10, np.mean(values)), abs=1e-4)


def test_documents_equal_inside_arms_keep_their_arms_mean() -> None:
    mean_K, leave_one_out_N = shrunken_means(np.array([1.0, 1.0, 5.0, 5.0]), np.array([0, 0, 1, 1], dtype=np.int32), 3)
    assert mean_K == pytest.approx([1, 5, 3], abs=1e-4)
    assert leave_one_out_N == pytest.approx([1, 1, 5, 5], abs=1e-4)


def test_a_regression_that_beats_the_arm_means_is_accepted_and_predicts_new_documents() -> None:
    predictor = fitted()
    x_ND, y_N, arm_N = pool(3000)
    explained = 1 - np.var(y_N[300:] - predict(predictor, x_ND, arm_N)[300:]) / np.var(y_N[300:])
    assert predictor.accepted
    assert explained > predictor.quality.baseline_explained + 0.2


def test_predictions_do_not_depend_on_where_features_lie_or_on_their_unit() -> None:
    x_ND, influence_N, arm_N = pool(400)
    there_ND = 3 * x_ND + 20
    predicted = []
    for features_ND in (x_ND, there_ND):
        predictor = fit_predictor(features_ND[:300], influence_N[:300], arm_N[:300], N_ARMS, np.random.default_rng(0))
        assert predictor.accepted
        predicted.append(predict(predictor, features_ND[300:], arm_N[300:]))
    assert predicted[1] == pytest.approx(predicted[0], rel=1e-6, abs=1e-6)


def test_out_of_sample_quality_agrees_with_new_documents() -> None:
    x_ND, y_N, arm_N = pool(4000)
    predictor = fit_predictor(x_ND[:400], y_N[:400], arm_N[:400], N_ARMS, np.random.default_rng(0))
    explained = 1 - np.mean((y_N[400:] - predict(predictor, x_ND[400:], arm_N[400:])) ** 2) / np.var(y_N[400:])
    assert explained == pytest.approx(predictor.quality.explained, abs=0.06)


def test_features_that_tell_nothing_are_not_accepted_and_arm_means_are_predicted() -> None:
    predictor = fitted(arms_only=True)
    arms = np.arange(N_ARMS, dtype=np.int32)
    assert not predictor.accepted
    assert predict(predictor, np.zeros((N_ARMS, 5)), arms).tolist() == predictor.arm_mean_K.tolist()


def test_constant_influence_is_predicted_as_it_is() -> None:
    x_ND, _, arm_N = pool(50)
    predictor = fit_predictor(x_ND, np.full(50, 0.25), arm_N, N_ARMS, np.random.default_rng(0))
    assert predict(predictor, x_ND, arm_N) == pytest.approx(np.full(50, 0.25))


def test_a_constant_feature_and_equal_documents_do_no_harm() -> None:
    y_N = np.array([0.1, 0.2, 0.3])
    predictor = fit_predictor(np.ones((3, 2)), y_N, np.zeros(3, dtype=np.int32), 1, np.random.default_rng(0))
    assert np.isfinite(predict(predictor, np.ones((1, 2)), np.zeros(1, dtype=np.int32))).all()


def test_one_wild_document_does_not_turn_the_predictions() -> None:
    x_ND, y_N, arm_N = pool(300)
    wild_N = y_N.copy()
    wild_N[0] = 1e3
    tame, wild = (fit_predictor(x_ND, y, arm_N, N_ARMS, np.random.default_rng(0)) for y in (y_N, wild_N))
    assert np.corrcoef(predict(tame, x_ND, arm_N), predict(wild, x_ND, arm_N))[0, 1] > 0.99


def test_the_same_generator_gives_the_same_predictor() -> None:
    x_ND, _, arm_N = pool(300)
    assert predict(fitted(), x_ND, arm_N).tolist() == predict(fitted(), x_ND, arm_N).tolist()


def test_arms_means_come_from_documents_drawn_at_random_alone() -> None:
    generator = np.random.default_rng(0)
    y_N, arm_N = generator.normal(size=400), generator.integers(0, 4, 400).astype(np.int32)
    y_N += arm_N
    at_random_N = generator.random(400) < 0.5
    biased_N = np.where(at_random_N, y_N, 3.0)  # what was drawn for its prediction lies near the cut
    x_ND = generator.normal(size=(400, 2))
    args = (arm_N, 4, np.random.default_rng(0))
    told = fit_predictor(x_ND, biased_N, *args, at_random_N=at_random_N)
    alone = fit_predictor(x_ND[at_random_N], y_N[at_random_N], arm_N[at_random_N], 4, np.random.default_rng(0))
    assert told.arm_mean_K == pytest.approx(alone.arm_mean_K, abs=0.05)
    assert not np.allclose(fit_predictor(x_ND, biased_N, *args).arm_mean_K, alone.arm_mean_K, atol=0.3)


def test_one_scored_document_is_refused() -> None:
    with pytest.raises(ValueError, match="scored documents: expected at least 2 to fit on, got 1"):
        fit_predictor(np.ones((1, 2)), np.ones(1), np.zeros(1, dtype=np.int32), 1, np.random.default_rng(0))


def test_groups_that_tell_nothing_are_left_out_and_no_longer_looked_at() -> None:
    generator = np.random.default_rng(0)
    x_ND = generator.normal(size=(400, 40))
    y_N, arm_N = x_ND[:, 4] + 0.1 * generator.normal(size=400), np.zeros(400, dtype=np.int32)
    groups = {"noise": slice(0, 4), "told": slice(4, 5), "more_noise": slice(5, 40)}
    predictor = fit_predictor(x_ND, y_N, arm_N, 1, np.random.default_rng(1), groups)
    assert predictor.groups == ("told",)
    other_ND = generator.normal(size=(400, 40))
    other_ND[:, 4] = x_ND[:, 4]
    assert predict(predictor, other_ND, arm_N).tolist() == predict(predictor, x_ND, arm_N).tolist()
    everything = fit_predictor(x_ND, y_N, arm_N, 1, np.random.default_rng(1))
    assert predictor.quality.explained > everything.quality.explained


def test_groups_that_tell_different_things_are_both_kept() -> None:
    generator = np.random.default_rng(0)
    x_ND = generator.normal(size=(300, 6))
    y_N = x_ND[:, 0] + x_ND[:, 3]
    groups = {"one": slice(0, 3), "other": slice(3, 6)}
    predictor = fit_predictor(x_ND, y_N, np.zeros(300, dtype=np.int32), 1, np.random.default_rng(1), groups)
    assert predictor.groups == ("one", "other")


def test_the_cut_is_the_influence_of_the_last_document_that_fits() -> None:
    influence_N, n_tokens_N = np.array([0.1, 0.4, 0.3, 0.2]), np.array([10, 10, 10, 10])
    assert [selection_cut(influence_N, n_tokens_N, budget) for budget in (0, 10, 25, 99)] == [0.4, 0.4, 0.3, 0.1]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40), st.integers(0, 50), st.integers(0, 2**32 - 1))
def test_as_many_documents_as_wanted_none_twice_and_none_farther_from_the_cut_than_one_left(
    n: int, count: int, seed: int
) -> None:
    predicted_N = np.random.default_rng(seed).normal(size=n)
    rows = nearest_to_cut(predicted_N, 0.25, count)
    distance_N = np.abs(predicted_N - 0.25)
    assert rows.tolist() == np.argsort(distance_N, kind="stable")[:count].tolist()
    left = np.setdiff1d(np.arange(n), rows)
    assert len(rows) == len(set(rows.tolist())) == min(n, count)
    assert distance_N[rows].max(initial=0) <= distance_N[left].min(initial=np.inf)


def test_documents_nearest_the_cut_come_first_and_the_earlier_of_equals() -> None:
    predicted_N = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    assert nearest_to_cut(predicted_N, 3.2, 3).tolist() == [3, 4, 2]
    assert nearest_to_cut(predicted_N, 2.5, 2).tolist() == [2, 3]


def test_features_that_tell_only_of_documents_drawn_near_the_cut_are_not_accepted() -> None:
    """The pool is like the random quarter, of which the feature tells nothing; of those near the cut it tells all."""
    generator = np.random.default_rng(0)
    x_ND, arm_N = generator.normal(size=(400, 3)), generator.integers(0, 4, 400).astype(np.int32)
    at_random_N = np.arange(400) % 4 == 0
    y_N = np.where(at_random_N, generator.normal(size=400), x_ND[:, 0])
    predictor = fit_predictor(x_ND, y_N, arm_N, 4, np.random.default_rng(1), at_random_N=at_random_N)
    assert not predictor.accepted
    assert predictor.quality.explained < 0.05
    assert abs(predictor.quality.spearman) < 0.3


def test_groups_and_the_average_are_chosen_on_documents_drawn_at_random() -> None:
    """A pool where the first feature tells all; near the cut the second seems to."""
    generator = np.random.default_rng(0)
    x_ND, arm_N = generator.normal(size=(800, 2)), np.zeros(800, dtype=np.int32)
    at_random_N = np.arange(800) % 4 == 0
    y_N = np.where(at_random_N, x_ND[:, 0], 5 * x_ND[:, 1])
    groups = {"true": slice(0, 1), "seeming": slice(1, 2)}
    predictor = fit_predictor(x_ND, y_N, arm_N, 1, np.random.default_rng(1), groups, at_random_N)
    assert predictor.groups == ("true",)


def test_the_average_s_weights_are_chosen_on_documents_drawn_at_random() -> None:
    """Near the cut, which lies elsewhere, an interaction only the kernel fits; in the pool a line beneath noise."""
    for seed in range(2):
        generator = np.random.default_rng(seed)
        at_random_N = np.arange(1200) % 4 == 0
        x_ND, arm_N = generator.normal(size=(1200, 6)), np.zeros(1200, dtype=np.int32)
        x_ND[~at_random_N, 5] += 4
        y_N = np.where(at_random_N, x_ND[:, 0] + generator.normal(size=1200), 5 * np.sign(x_ND[:, 0] * x_ND[:, 1]))
        linear = [
            fit_predictor(x_ND, y_N, arm_N, 1, np.random.default_rng(0), at_random_N=judges_N).linear_D.any()
            for judges_N in (at_random_N, None)
        ]
        assert linear == [True, False]


def test_the_reported_quality_is_that_of_the_pools_other_documents() -> None:
    """Features are noise; arms differ. Three quarters are drawn nearest a cut by what a first sample says of arms."""
    reported, true = [], []
    for seed in range(8):
        generator = np.random.default_rng(seed)
        x_ND, arm_N = generator.normal(size=(4000, 4)), generator.integers(0, N_ARMS, 4000).astype(np.int32)
        y_N = generator.normal(scale=0.6, size=N_ARMS)[arm_N] + generator.normal(size=4000)
        first = fit_predictor(x_ND[:150], y_N[:150], arm_N[:150], N_ARMS, np.random.default_rng(0))
        guess_N = predict(dataclasses.replace(first, accepted=True), x_ND[150:], arm_N[150:])
        rows = np.concatenate([np.arange(150), 150 + nearest_to_cut(guess_N, float(np.quantile(guess_N, 0.9)), 450)])
        args = (arm_N[rows], N_ARMS, np.random.default_rng(0))
        predictor = fit_predictor(x_ND[rows], y_N[rows], *args, at_random_N=rows < 150)
        rest = np.setdiff1d(np.arange(4000), rows)
        arm_means_N = predictor.arm_mean_K[arm_N[rest]]
        true.append(1 - np.mean((y_N[rest] - arm_means_N) ** 2) / y_N[rest].var())
        reported.append(predictor.quality.baseline_explained)
    assert np.mean(reported) == pytest.approx(np.mean(true), abs=0.04)
