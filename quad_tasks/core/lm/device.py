"""Bring numbers to the device that computes, without waiting for it.

A GPU works through a queue. Whoever asks it for a number waits until the queue is empty, and the GPU then waits for
whoever asked. So inside a loop over batches nothing is asked of the device: what a batch holds is counted on the host
before it is copied, results stay on the device, and they are moved together when the loop has ended.
"""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; from the host to a GPU out of pinned memory, without waiting for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
