"""The dtype that matrix products are computed in where less than float32 will do.

A CPU with AVX512-BF16 or AMX, or a GPU, multiplies bfloat16 matrices several times faster than float32 ones, summing in
float32. What may use it: a bfloat16 model, whose numbers are rounded already; a scorer that is gated by a measurement
against the exact; a fit where asked for, which another sample moves more. A float64 model never does.
Rejected: torch's switch for float32 products of lower precision (`fp32_precision`): a CPU heeds it with AMX only.
"""

from contextlib import AbstractContextManager, nullcontext

import torch


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Name the dtype in which sums are kept: float64 for a float64 model, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def product_dtype(dtype: torch.dtype, device: torch.device, rounded: bool) -> torch.dtype:
    """Name the dtype for the factors of a product.

    Args:
        dtype: the model's.
        device: where it is.
        rounded: whether a float32 model's numbers may be rounded.

    Returns:
        bfloat16 where they are or may be of that precision and the device multiplies it, else `accumulation_dtype`.
    """
    may = dtype == torch.bfloat16 or (rounded and dtype == torch.float32)
    return torch.bfloat16 if may and has_bfloat16_products(device) else accumulation_dtype(dtype)


def lower_precision(dtype: torch.dtype, device: torch.device, rounded: bool) -> AbstractContextManager[object]:
    """Let a float32 model's forward pass, and the backward pass that follows, compute products in `product_dtype`."""
    if dtype == torch.float32 and product_dtype(dtype, device, rounded) == torch.bfloat16:
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def has_bfloat16_products(device: torch.device) -> bool:
    """Tell whether the device multiplies bfloat16 matrices faster than float32 ones."""
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
