"""Sums and factors as named tensors of one object: what the passes of a fit leave for the next one."""

import torch
from torch import Tensor

from quad_tasks.core import covariance
from quad_tasks.storage.store import Store
from quad_tasks.storage.tensors import iterate_tensors, load_tensors, save_tensors


def merge_parts(store: Store, parts: list[str]) -> dict[str, Tensor]:
    """Add up chunks' sums in the chunks' order, holding one set of them and a tensor of the next."""
    total = load_named(store, parts[0])
    for part in parts[1:]:
        covariance.add_tensors(total, ((name, torch.from_numpy(array)) for name, array in iterate_tensors(store, part)))
    return total


def save_named(store: Store, key: str, tensors: dict[str, Tensor]) -> str:
    """Write named tensors as one object; return its digest."""
    return save_tensors(store, key, {name: t.detach().cpu().numpy() for name, t in tensors.items()}, {})


def load_named(store: Store, key: str, sha256: str | None = None) -> dict[str, Tensor]:
    """Read what `save_named` wrote, its digest checked where one is given."""
    arrays, _ = load_tensors(store, key, sha256)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def delete_parts(store: Store, keys: list[str]) -> None:
    """Delete parts that are merged."""
    for key in keys:
        store.delete(key)
