"""LoRA by PEFT, merged when the phase ends: on the experts in phase 3 (paper, Table 7), else dense.

Nothing else trains. The merged model is an ordinary model: whatever reads one reads it. Frozen
matrices may be held in 4 bits while the adapters train (QLoRA), by bitsandbytes.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

import torch
from torch import nn

from medmoe.config.train_schema import LoraSpec
from medmoe.errors import ConfigError
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration

_META = r".*\.mlp\.meta_expert\.(gate_proj|up_proj|down_proj|fc1|fc2)"
_DENSE = re.compile(r"\bmulti_modal_projector\.|\blanguage_model\.layers\.")
_STACKS = ("gate_up_proj", "down_proj", "fc1_weight", "fc2_weight")
#: Bytes of a weight in NF4: its 4 bits, and of each 64 weights a scale, kept in 8 bits itself.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


def attach_lora(model: MedMoeForConditionalGeneration, spec: LoraSpec, seed: int) -> Any:
    """Put adapters into a model and return the PEFT model around it.

    Args:
        model: Its modules are wrapped in place: a MoE model's experts; a dense model's projector
            and all linear modules of its decoder's layers.
        seed: Draws the first factors; the second ones start at zero, so nothing changes at first.

    Raises:
        ConfigError: PEFT is not installed.
    """
    try:
        import peft
    except ImportError:
        raise ConfigError(
            "LoRA needs the package peft, which is not installed; run: pip install 'medmoe[train]'"
        ) from None
    stacks: list[str] = []
    modules: str | list[str] = [name for name, _ in _linear(model) if _DENSE.search(name)]
    if blocks := model.moe_blocks:
        experts: Any = next(iter(blocks.values())).experts
        stacks = [name for name in _STACKS if name in dict(experts.named_parameters())]
        modules = _META if model.config.meta_expert else []
    config = peft.LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=modules,
        target_parameters=[f"mlp.experts.{name}" for name in stacks],
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        # PEFT asks for a property under its old name; nothing that a user could change.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        torch.manual_seed(seed)
        return peft.get_peft_model(model, config)


def merge_lora(adapted: Any) -> MedMoeForConditionalGeneration:
    """Return the model with the adapters added to its weights."""
    merged: MedMoeForConditionalGeneration = adapted.merge_and_unload()
    return merged


def hold_in_4_bits(model: MedMoeForConditionalGeneration) -> int:
    """Hold the matrices of the decoder's layers in 4 bits (NF4), in place; return how many weights.

    Routers, and experts, which are stacked, keep theirs: bitsandbytes has no form for stacks.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError:
        raise ConfigError(
            "lora.bits needs the package bitsandbytes, which is not installed; run: "
            "pip install 'medmoe[qlora]'"
        ) from None
    matrices = frozen_matrices(model)
    for name, linear in matrices.items():
        bias, weight = linear.bias is not None, linear.weight.data
        small: Any = Linear4bit(*weight.shape[::-1], bias, quant_type="nf4", device="meta")
        small.weight = Params4bit(weight, quant_type="nf4", module=small).to(weight.device)
        small.bias = linear.bias
        # It would lay the matrices out anew in a pass without gradients, which training cannot use.
        small.support_avx512bf16_for_cpu = False
        model.set_submodule(name, small)
    return sum(linear.weight.numel() for linear in matrices.values())


def frozen_matrices(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear modules of the decoder's layers by name, without the routers."""
    chosen = re.compile(r"\blanguage_model\.layers\.(?!.*\.gate\.)")
    return {name: linear for name, linear in _linear(model) if chosen.search(name)}


def release_from_4_bits(model: nn.Module) -> None:
    """Put what matrices of 4 bits stand for in their place; nothing that is computed changes."""
    for name, small in _linear(model):
        state: Any = getattr(small.weight, "quant_state", None)
        if state is None:
            continue
        from bitsandbytes.functional import dequantize_4bit

        plain = nn.Linear(small.in_features, small.out_features, device="meta")
        plain.weight = nn.Parameter(dequantize_4bit(small.weight.data, state), requires_grad=False)
        plain.bias = small.bias
        model.set_submodule(name, plain)


def _linear(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """Return the linear modules of a model by name."""
    return [
        (name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)
    ]
