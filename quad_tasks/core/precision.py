"""Choose the dtype of matrix products: bfloat16 where float32 is not needed.

A CPU with AVX512-BF16 or AMX, or a GPU, multiplies bfloat16 matrices several times faster than float32 ones, and sums
in float32. Three uses are allowed: a bfloat16 model, whose numbers are rounded already; a scorer that was calibrated
against exact scores; a fit on request, since another sample changes it more. A float64 model is never rounded.
Rejected: torch's switch for float32 products of lower precision (`fp32_precision`): a CPU obeys it with AMX only.
"""

from contextlib import AbstractContextManager, nullcontext

import torch


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums: float64 for a float64 model, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def product_dtype(dtype: torch.dtype, device: torch.device, rounded: bool) -> torch.dtype:
    """Return the dtype of the factors of a matrix product.

    Args:
        dtype: the model's dtype.
        device: the model's device.
        rounded: whether the numbers of a float32 model may be rounded to bfloat16.

    Returns:
        bfloat16 where the numbers are or may be rounded and the device is fast at it, else `accumulation_dtype`.
    """
    may = dtype == torch.bfloat16 or (rounded and dtype == torch.float32)
    return torch.bfloat16 if may and has_bfloat16_products(device) else accumulation_dtype(dtype)


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add the product of two matrices of one dtype to a sum in place, whose dtype may be wider."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def lower_precision(dtype: torch.dtype, device: torch.device, rounded: bool) -> AbstractContextManager[object]:
    """Run a float32 model's forward pass, and the backward pass that follows, with products in `product_dtype`."""
    if dtype == torch.float32 and product_dtype(dtype, device, rounded) == torch.bfloat16:
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def has_bfloat16_products(device: torch.device) -> bool:
    """Test whether the device multiplies bfloat16 matrices faster than float32 ones."""
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
