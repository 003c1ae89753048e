"""LoRA on the domain and meta experts by PEFT (paper, Table 7), merged when the phase ends.

Nothing else trains. The merged model is an ordinary MoE model: whatever reads one reads it.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from medmoe.config.train_schema import LoraSpec
from medmoe.errors import ConfigError
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration

_META = r".*\.mlp\.meta_expert\.(gate_proj|up_proj|down_proj|fc1|fc2)"
_STACKS = ("gate_up_proj", "down_proj", "fc1_weight", "fc2_weight")


def attach_lora(model: MedMoeForConditionalGeneration, spec: LoraSpec, seed: int) -> Any:
    """Put adapters into the model's experts and return the PEFT model around it.

    Args:
        model: A MoE model; its expert modules are wrapped in place.
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
    experts: Any = next(iter(model.moe_blocks.values())).experts
    stacks = [name for name in _STACKS if name in dict(experts.named_parameters())]
    config = peft.LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=_META if model.config.meta_expert else [],
        target_parameters=[f"mlp.experts.{name}" for name in stacks],
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        # PEFT asks for a property under its old name; nothing that a user could change.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        torch.manual_seed(seed)
        return peft.get_peft_model(model, config)


def merge_lora(adapted: Any) -> MedMoeForConditionalGeneration:
    """Return the MoE model with the adapters added to its experts' weights."""
    merged: MedMoeForConditionalGeneration = adapted.merge_and_unload()
    return merged
