"""Hashes of tensors: what a proof that weights are the same bytes rests on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def take_in(digest: Any, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Let a hash follow from tensors: name, type, shape and bytes of each."""
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(bytes_of(tensor))


def bytes_of(tensor: Tensor) -> Any:
    """Return the bytes of a tensor of any dtype as a buffer."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
