import pytest
import torch
from scipy.stats import spearmanr

from quad_tasks.core import precision
from quad_tasks.core.blocks import find_blocks
from quad_tasks.core.ekfac import apply_inverse, fit_factors
from quad_tasks.core.influence import score_documents
from quad_tasks.core.precision import has_bfloat16_products, product_dtype

CPU = torch.device("cpu")
needs_bfloat16 = pytest.mark.skipif(
    not has_bfloat16_products(CPU), reason="this CPU multiplies no bfloat16 matrices (AVX512-BF16 or AMX)"
)


@pytest.mark.parametrize(
    ("dtype", "rounded", "expected"),
    [
        (torch.float64, True, torch.float64),
        (torch.float32, False, torch.float32),
        (torch.float16, True, torch.float32),
    ],
)
def test_numbers_that_may_not_be_rounded_are_not(dtype, rounded, expected):
    assert product_dtype(dtype, CPU, rounded) == expected


@needs_bfloat16
@pytest.mark.parametrize(("dtype", "rounded"), [(torch.float32, True), (torch.bfloat16, False)])
def test_numbers_that_may_be_rounded_are_where_the_hardware_multiplies_them(dtype, rounded):
    assert product_dtype(dtype, CPU, rounded) == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_such_hardware_products_stay_in_float32(monkeypatch, dtype):
    monkeypatch.setattr(precision, "has_bfloat16_products", lambda device: False)
    assert product_dtype(dtype, CPU, rounded=True) == torch.float32
    with precision.lower_precision(dtype, CPU, rounded=True):
        assert not torch.is_autocast_enabled("cpu")


@needs_bfloat16
def test_rounding_moves_a_fit_far_less_than_another_sample_does(tiny):
    model = tiny.tiny_model("llama").float()
    gradient = {name: V.float() for name, V in tiny.random_direction(find_blocks(model)).items()}

    def direction(seed, rounded):
        batches = [tiny.pad(tiny.random_documents([9] * 40, seed))]
        inverse = apply_inverse(fit_factors(model, batches, fisher="empirical", rounded=rounded), gradient)
        return torch.cat([V.flatten() for V in inverse.values()])

    exact = direction(5, rounded=False)
    assert (direction(5, rounded=True) - exact).norm() < 0.1 * (direction(6, rounded=False) - exact).norm()


def test_a_float64_model_is_fitted_and_scored_in_float64_whatever_is_asked(tiny):
    model = tiny.tiny_model("llama")
    batches = [tiny.pad(tiny.random_documents([9] * 4))]
    factors = [fit_factors(model, batches, fisher="empirical", rounded=rounded) for rounded in (False, True)]
    for name, eigenvalues in factors[0].eigenvalues.items():
        assert torch.equal(eigenvalues, factors[1].eigenvalues[name])


def test_bfloat16_scores_rank_as_float32_s(tiny):
    model = tiny.tiny_model("llama").float()
    direction = {name: V.float() for name, V in tiny.random_direction(find_blocks(model)).items()}
    batches = [tiny.pad(tiny.random_documents([9] * 40))]
    single = score_documents(model, batches, direction).influence
    half = score_documents(model.bfloat16(), batches, direction).influence
    assert spearmanr(single, half).statistic > 0.99
