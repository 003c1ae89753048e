"""Freezes what does not train in a phase, as `medmoe.config.phases` has it, and counts both."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from medmoe.config.phases import PHASE_TABLE, Part
from medmoe.config.schema import PhaseName, PhaseSpec, Trains
from medmoe.training.parallel import trained_parameters

#: Part of a model → what its parameters' names hold.
PARTS: dict[Part, str] = {
    "everything": r"",
    "projector": r"\bmulti_modal_projector\.",
    "language_model": r"\blanguage_model\.",
    "decoder_layers": r"\blanguage_model\.(?!embed_tokens\.)",
    "lm_head": r"\blm_head\.",
    "router": r"\brouter\.|\.mlp\.gate\.",
    "domain_experts": r"\.mlp\.experts\.",
    "meta_expert": r"\.mlp\.meta_expert\.",
    "new_expert": r"\bnew_experts\.",
    "dense_ffns": r"\blanguage_model\..*\.mlp\.(gate_proj|up_proj|down_proj|fc1|fc2)\.",
    "lora_adapters": r"\.lora_[AB]\.",
}

#: What is not pretrained: the projector, and what phase 0 throws away of an encoder's training.
_NEW = re.compile(
    r"\bmulti_modal_projector\.|^(heads|norm|words|(image|text)_projection|log_temperature)\b"
)
_NUMBERED = re.compile(r"\b(?:layers|blocks)\.(\d+)\.")
_BELOW_LAYERS = re.compile(r"\b(embeddings|embed_tokens|stem|pre_layrnorm)\.")


@dataclass(frozen=True, slots=True)
class TrainableCount:
    """How many weights train and how many are frozen in a phase."""

    phase: PhaseName
    trainable: int
    frozen: int
    trains: Trains = "paper"

    def line(self) -> str:
        """Return the line printed when the phase starts."""
        parts = ", ".join(PHASE_TABLE[self.phase].trains[self.trains])
        return f"{self.phase}: trains {parts} ({self.trainable:,} weights; {self.frozen:,} frozen)"


def set_trainable(model: nn.Module, phase: PhaseName, trains: Trains = "paper") -> TrainableCount:
    """Freeze and unfreeze a model's parameters for a phase and return the counts."""
    parts = PHASE_TABLE[phase].trains[trains]
    pattern = re.compile("|".join(f"(?:{PARTS[part]})" for part in parts))
    counts = {True: 0, False: 0}
    for name, parameter in model.named_parameters():
        chosen = pattern.search(name) is not None
        parameter.requires_grad_(chosen)
        counts[chosen] += parameter.numel()
    assert counts[True], f"nothing trains in {phase}"
    return TrainableCount(phase, counts[True], counts[False], trains)


def rate_factors(model: nn.Module, spec: PhaseSpec) -> dict[str, float]:
    """Return what each trained parameter's learning rate is multiplied by; nothing where by 1.

    Embeddings stand below the first layer, a head above the last.
    """
    if spec.layer_decay == spec.projector_factor == 1:
        return {}
    names = [name for name, _ in trained_parameters(model)]
    depths = {name: int(match[1]) for name in names if (match := _NUMBERED.search(name))}
    depths |= dict.fromkeys(filter(_BELOW_LAYERS.search, names), -1)
    top = max(depths.values(), default=0)
    decayed = {name: spec.layer_decay ** (top - depths.get(name, top)) for name in names}
    return decayed | dict.fromkeys(filter(_NEW.search, names), spec.projector_factor)
