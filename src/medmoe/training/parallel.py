"""Weights and optimiser state over several processes: whole tensors out, shares in.

FSDP2 keeps a share of each tensor in each process (a ``DTensor``), and DeepSpeed's ZeRO a share of
the optimiser's state (stage 2) and of each weight (stage 3). A checkpoint holds whole ones, so a
run may be resumed with another number of processes. Accelerate shards; nothing here does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from medmoe.errors import ConfigError
from medmoe.training.context import RunSettings

#: What decoder and encoder layers of transformers have in common: the unit of sharding.
_LAYER = GradientCheckpointingLayer

_TRUE = {"1", "true"}
#: Keys of DeepSpeed's configuration that the Trainer fills in from its own arguments.
_FROM_THE_TRAINER = (
    "gradient_clipping",
    "gradient_accumulation_steps",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
)
#: What wrappers of the engine put into parameter names.
_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.", "_fsdp_wrapped_module.")


def shards(settings: RunSettings) -> bool:
    """Return whether the settings or ``accelerate launch`` ask for sharding."""
    fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in _TRUE
    return settings.sharding == "fsdp2" or fsdp or by_deepspeed(settings)


def by_deepspeed(settings: RunSettings) -> bool:
    """Return whether the settings or ``accelerate launch`` ask for DeepSpeed."""
    launched = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in _TRUE
    return settings.sharding in {"zero2", "zero3"} or launched


def sharding_arguments(settings: RunSettings) -> dict[str, Any]:
    """Return the Trainer's arguments for the sharding asked for.

    Raises:
        ConfigError: As `refuse_deepspeed` does.
    """
    if settings.sharding == "none":
        return {}
    if settings.sharding == "fsdp2":
        return {"fsdp": True, "fsdp_config": {"version": 2, "reshard_after_forward": True}}
    refuse_deepspeed(settings)
    stage = int(settings.sharding[-1])
    # PyTorch's autocast, as without sharding: weights and a router's decision stay in float32.
    autocast = {"enabled": settings.precision == "bf16", "dtype": "bfloat16"}
    return {
        "bf16": False,
        "deepspeed": {
            "zero_optimization": {"stage": stage, "overlap_comm": True},
            "torch_autocast": autocast,
            **dict.fromkeys(_FROM_THE_TRAINER, "auto"),
        },
    }


def refuse_deepspeed(settings: RunSettings, average: float = 0) -> None:
    """Refuse what DeepSpeed cannot do, whether the settings or ``accelerate launch`` ask for it.

    Raises:
        ConfigError: It is not installed, or a mean of weights is asked for.
    """
    if not by_deepspeed(settings):
        return
    if average:
        raise ConfigError(
            f"average ({average}) takes the mean of weights that DeepSpeed keeps in parts; use "
            "sharding fsdp2, or average: 0"
        )
    if find_spec("deepspeed") is None:
        raise ConfigError(
            "DeepSpeed is not installed: pip install 'medmoe[deepspeed]', or use sharding fsdp2"
        )


def fit_to_model(plugin: Any, model: nn.Module) -> None:
    """Settle what FSDP2 must know of a model: its layers, and what it must leave alone.

    A frozen router stays out of the shards: these are computed in the mixed precision's type, and
    the router decides in float32.
    """
    layers = {type(m).__name__ for m in model.modules() if isinstance(m, _LAYER)}
    plugin.transformer_cls_names_to_wrap = sorted(layers)
    if not layers:
        plugin.auto_wrap_policy = None
    routers = [p for name, p in model.named_parameters() if ".mlp.gate." in name]
    if routers and not any(p.requires_grad for p in routers):
        plugin.ignored_modules = r".*\.mlp\.gate"


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor as it is without sharding, on the CPU; every process must call this."""
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    if is_of_deepspeed(tensor):
        from deepspeed.utils import safe_get_full_fp32_param

        tensor = safe_get_full_fp32_param(tensor)
    return tensor.detach().cpu().contiguous()


def share(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor laid out as ``like``: on its device, sharded where it is."""
    if isinstance(like, DTensor) and tensor.shape == like.shape:
        moved = tensor.to(like.device)
        return distribute_tensor(moved, like.device_mesh, like.placements)
    return tensor.to(like.device)


@torch.no_grad()
def put(parameter: Tensor, value: Tensor) -> None:
    """Set a parameter to a whole tensor; every process must call this."""
    if not is_of_deepspeed(parameter):
        parameter.copy_(share(value, parameter))
        return
    import deepspeed
    from deepspeed.utils import safe_set_full_fp32_param

    value = value.to(parameter.device)
    # First what the model computes with, then what the optimiser changes.
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        parameter.copy_(value)
    safe_set_full_fp32_param(parameter, value)


def optimizer_state(optimizer: Any, parameter: Tensor) -> dict[str, Tensor]:
    """Return the optimiser's state of a parameter; every process must call this."""
    if not is_of_deepspeed(parameter):
        return dict(optimizer.state.get(parameter, {}))
    from deepspeed.utils import safe_get_full_optimizer_state

    known = next(iter(optimizer.optimizer.optimizer.state.values()))
    return {
        kind: safe_get_full_optimizer_state(parameter, kind) if value.dim() else value.clone()
        for kind, value in known.items()
    }


def put_optimizer_state(optimizer: Any, parameter: Tensor, state: dict[str, Tensor]) -> None:
    """Set the state that DeepSpeed's optimiser has of a parameter.

    Args:
        state: Whole, as `optimizer_state` returns it.
    """
    from deepspeed.utils import safe_set_full_optimizer_state

    zero = optimizer.optimizer
    if not zero.optimizer.state:  # before its first step
        stage3 = hasattr(zero, "fp32_partitioned_groups_flat")
        name = "fp32_partitioned_groups_flat" if stage3 else "single_partition_of_fp32_groups"
        for flat in getattr(zero, name):
            zero.optimizer.state[flat] = {
                kind: torch.zeros_like(flat) if value.dim() else value.to(flat.device, copy=True)
                for kind, value in state.items()
            }
        if not stage3:
            zero._lazy_init_hp_params_optimizer_state()
    for kind, value in state.items():
        if value.dim():
            safe_set_full_optimizer_state(parameter, value.to(parameter.device), kind)


def is_of_deepspeed(tensor: Tensor) -> bool:
    """Return whether a tensor is a weight that DeepSpeed trains: of stage 3, or of stage 2."""
    return hasattr(tensor, "ds_id") or hasattr(tensor, "_hp_mapping")


def local(tensor: Tensor) -> Tensor:
    """Return this process's share of a tensor."""
    shard: Tensor = getattr(tensor, "ds_tensor", tensor)
    return shard.to_local() if isinstance(shard, DTensor) else shard


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
    # The first norm overflows where all are finite; on a processor it is nine times as fast.
    norms = (nn.utils.get_total_norm(shares, norm_type=kind) for kind in (2.0, torch.inf))
    return not shares or any(bool(torch.isfinite(norm)) for norm in norms)


def processes_where(fault: bool, accelerator: Any) -> list[int]:
    """Return the ranks of the processes in which there is a fault; every process must call this."""
    if accelerator.num_processes == 1:
        return [0] if fault else []
    flag = torch.tensor([fault], dtype=torch.int64, device=accelerator.device)
    return [int(rank) for rank in accelerator.gather(flag).nonzero()[:, 0]]
