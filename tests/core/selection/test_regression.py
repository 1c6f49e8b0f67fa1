"""Both regressions against refitting without each document and dense kernel ridge."""

import tracemalloc

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge

from quad_tasks.core.selection.regression import PENALTIES, _fit_kernel_of_width, fit_kernel, fit_ridge


@pytest.mark.parametrize("shape", [(30, 4), (12, 40)])
def test_left_out_predictions_equal_refitting_without_each_document(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    z_NP = generator.normal(size=shape)
    z_NP -= z_NP.mean(axis=0)
    y_N = z_NP[:, 0] + generator.normal(size=shape[0])
    ridge = fit_ridge(z_NP, y_N)
    eigenvalues = np.linalg.eigvalsh(z_NP @ z_NP.T)
    mean_eigenvalue = eigenvalues[eigenvalues > 1e-9].mean()

    def left_out(penalty: float) -> np.ndarray:
        rows = range(len(y_N))
        models = [Ridge(alpha=penalty).fit(np.delete(z_NP, i, 0), np.delete(y_N, i)) for i in rows]
        return np.array([model.predict(z_NP[[i]])[0] for i, model in zip(rows, models, strict=True)])

    trials = [left_out(share * mean_eigenvalue) for share in PENALTIES]
    best = min(trials, key=lambda trial: float(np.mean((trial - y_N) ** 2)))
    assert ridge.leave_one_out_N == pytest.approx(best, rel=1e-6)


def test_the_kernel_regression_with_all_documents_as_landmarks_is_dense_kernel_ridge() -> None:
    generator = np.random.default_rng(0)
    x_ND, y_N = generator.normal(size=(40, 5)), generator.normal(size=40)
    fit = _fit_kernel_of_width(x_ND, y_N, x_ND, squared_width=3.0)
    kernel_NN = np.exp(-((x_ND[:, None] - x_ND[None]) ** 2).sum(-1) / 3.0)
    ours_N = fit.ridge.intercept + kernel_NN @ fit.weights_M
    centred_NN = kernel_NN - kernel_NN.mean(0) - kernel_NN.mean(1)[:, None] + kernel_NN.mean()
    penalties = np.array(PENALTIES) * np.linalg.eigvalsh(centred_NN)[1:].mean()
    theirs = [
        KernelRidge(alpha=a, kernel="precomputed").fit(centred_NN, y_N - y_N.mean()).predict(centred_NN) + y_N.mean()
        for a in penalties
    ]
    assert min(np.abs(ours_N - their_N).max() for their_N in theirs) < 1e-5


def test_a_kernel_regression_holds_one_map_at_a_time() -> None:
    n_documents, n_landmarks = 12_000, 150
    x_ND = np.random.default_rng(0).normal(size=(n_documents, 10))
    tracemalloc.start()
    fit_kernel(x_ND, x_ND[:, 0], x_ND[:n_landmarks])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.6 * 8 * n_documents * n_landmarks
