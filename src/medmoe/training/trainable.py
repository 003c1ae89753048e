"""What trains in each phase: the one table (paper, section 3.2 and 3.3)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from medmoe.config.schema import PhaseName, Trains

#: Part of a model → what its parameters' names hold.
PARTS: dict[str, str] = {
    "everything": r"",
    "projector": r"\bmulti_modal_projector\.",
    "language_model": r"\blanguage_model\.",
    "lm_head": r"\blm_head\.",
    "router": r"\brouter\.|\.mlp\.gate\.",
    "domain_experts": r"\.mlp\.experts\.",
    "meta_expert": r"\.mlp\.meta_expert\.",
    "dense_ffns": r"\blanguage_model\..*\.mlp\.(gate_proj|up_proj|down_proj|fc1|fc2)\.",
    "lora_adapters": r"\.lora_[AB]\.",
}

#: Phase → the parts that train, in each variant; everything else is frozen. `paper` is the rule;
#: `reference` is what the reference code's name matching trains in phase 3; `learned_router` is
#: Table 6's alternative; `lora` is Table 7's.
TRAINABLE: dict[PhaseName, dict[Trains, tuple[str, ...]]] = {
    "phase0_encoder": {"paper": ("everything",)},
    "phase0_language": {"paper": ("everything",)},
    "phase1_alignment": {"paper": ("projector",)},
    "phase2_instruction": {"paper": ("projector", "language_model", "lm_head")},
    "phase2_router": {"paper": ("router",)},
    "phase3_moe": {
        "paper": ("domain_experts", "meta_expert"),
        "reference": ("domain_experts", "meta_expert", "projector", "dense_ffns"),
        "learned_router": ("domain_experts", "meta_expert", "router"),
        "lora": ("lora_adapters",),
    },
    "sft": {"paper": ("projector", "language_model", "lm_head")},
}


@dataclass(frozen=True, slots=True)
class TrainableCount:
    """How many weights train and how many are frozen in a phase.

    Attributes:
        trains: The variant: a column of `TRAINABLE`.
    """

    phase: PhaseName
    trainable: int
    frozen: int
    trains: Trains = "paper"

    def line(self) -> str:
        """Return the line printed when the phase starts."""
        parts = ", ".join(TRAINABLE[self.phase][self.trains])
        return f"{self.phase}: trains {parts} ({self.trainable:,} weights; {self.frozen:,} frozen)"


def set_trainable(model: nn.Module, phase: PhaseName, trains: Trains = "paper") -> TrainableCount:
    """Freeze and unfreeze a model's parameters for a phase and return the counts."""
    pattern = re.compile("|".join(f"(?:{PARTS[part]})" for part in TRAINABLE[phase][trains]))
    counts = {True: 0, False: 0}
    for name, parameter in model.named_parameters():
        chosen = pattern.search(name) is not None
        parameter.requires_grad_(chosen)
        counts[chosen] += parameter.numel()
    assert counts[True], f"nothing trains in {phase}"
    return TrainableCount(phase, counts[True], counts[False], trains)
