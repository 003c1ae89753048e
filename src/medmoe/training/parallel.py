"""Weights and optimiser state over several processes: whole tensors out, shares in.

FSDP2 keeps a share of each tensor in each process (a ``DTensor``). A checkpoint holds whole ones,
so a run may be resumed with another number of processes. Accelerate shards; nothing here does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from medmoe.errors import ConfigError
from medmoe.training.settings import RunSettings

#: What decoder and encoder layers of transformers have in common: the unit of sharding.
_LAYER = GradientCheckpointingLayer

#: What wrappers of the engine put into parameter names.
_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.", "_fsdp_wrapped_module.")


def processes() -> int:
    """Return how many processes train together (``torchrun``, ``accelerate launch``)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def shards_weights(settings: RunSettings) -> bool:
    """Return whether FSDP2 is asked for, by the settings or by ``accelerate launch``."""
    launched = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in {"1", "true"}
    return settings.sharding == "fsdp2" or launched


def sharding_arguments(model: nn.Module, settings: RunSettings) -> dict[str, Any]:
    """Return the Trainer's arguments for the sharding asked for.

    Raises:
        ConfigError: DeepSpeed is asked for and not installed, or would have to save checkpoints.
    """
    if settings.sharding == "none":
        return {}
    if settings.sharding == "fsdp2":
        layers = {type(m).__name__ for m in model.modules() if isinstance(m, _LAYER)}
        wrap = "TRANSFORMER_BASED_WRAP" if layers else "NO_WRAP"
        config = {"version": 2, "auto_wrap_policy": wrap, "reshard_after_forward": True}
        if layers:
            config["transformer_layer_cls_to_wrap"] = sorted(layers)
        return {"fsdp": True, "fsdp_config": config}
    if settings.checkpoints is not None:
        raise ConfigError(
            f"sharding {settings.sharding}: DeepSpeed writes checkpoints of its own kind only, "
            "which medmoe does not trust; use sharding fsdp2"
        )
    if find_spec("deepspeed") is None:
        raise ConfigError(
            f"sharding {settings.sharding} needs DeepSpeed, which is not installed: "
            "pip install deepspeed, or use sharding fsdp2"
        )
    return {"deepspeed": str(files("medmoe.recipes") / "accelerate" / f"{settings.sharding}.json")}


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
