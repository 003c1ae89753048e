"""Weights and optimiser state over several processes: whole tensors out, shares in.

FSDP2 keeps a share of each tensor in each process (a ``DTensor``). A checkpoint holds whole ones,
so a run may be resumed with another number of processes. No sharding of our own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

#: What wrappers of the engine put into parameter names.
_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.", "_fsdp_wrapped_module.")


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor as it is without sharding, on the CPU; every process must call this."""
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.detach().cpu().contiguous()


def share(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor laid out as ``like``: on its device, sharded where it is."""
    if isinstance(like, DTensor) and tensor.shape == like.shape:
        moved = tensor.to(like.device)
        return distribute_tensor(moved, like.device_mesh, like.placements)
    return tensor.to(like.device)


def local(tensor: Tensor) -> Tensor:
    """Return this process's share of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def trained_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters that train, by the names they have in the bare model."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            for wrapper in _WRAPPERS:
                name = name.replace(wrapper, "")
            yield name, parameter


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Return whether this process's shares of all tensors are finite."""
    shares = [share for tensor in tensors if (share := local(tensor)).numel()]
    if not shares:
        return True
    largest = nn.utils.get_total_norm(shares, norm_type=torch.inf)
    return bool(torch.isfinite(largest))


def processes_where(fault: bool, accelerator: Any) -> list[int]:
    """Return the ranks of the processes in which there is a fault; every process must call this."""
    if accelerator.num_processes == 1:
        return [0] if fault else []
    flag = torch.tensor([fault], dtype=torch.int64, device=accelerator.device)
    return [int(rank) for rank in accelerator.gather(flag).nonzero()[:, 0]]
