"""What trains in each phase: the one table (paper, section 3.2 and 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from medmoe.config.schema import PhaseName

PROJECTOR = "model.multi_modal_projector."
LANGUAGE_MODEL = "model.language_model."
HEAD = "lm_head."

#: Phase → the parts of parameter names that train; everything else is frozen.
TRAINABLE: dict[PhaseName, tuple[str, ...]] = {
    "phase0_encoder": ("",),
    "phase0_language": ("",),
    "phase1_alignment": (PROJECTOR,),
    "phase2_instruction": (PROJECTOR, LANGUAGE_MODEL, HEAD),
    "phase2_router": ("router.",),
    "phase3_moe": (".mlp.experts.", ".mlp.meta_expert."),
    "sft": (PROJECTOR, LANGUAGE_MODEL, HEAD),
}


@dataclass(frozen=True, slots=True)
class TrainableCount:
    """How many weights train and how many are frozen in a phase."""

    phase: PhaseName
    trainable: int
    frozen: int

    def line(self) -> str:
        """Return the line printed when the phase starts."""
        parts = ", ".join(part.strip(".") or "all" for part in TRAINABLE[self.phase])
        return f"{self.phase}: trains {parts} ({self.trainable:,} weights; {self.frozen:,} frozen)"


def set_trainable(model: nn.Module, phase: PhaseName) -> TrainableCount:
    """Freeze and unfreeze a model's parameters for a phase and return the counts."""
    counts = {True: 0, False: 0}
    for name, parameter in model.named_parameters():
        trains = any(part in name for part in TRAINABLE[phase])
        parameter.requires_grad_(trains)
        counts[trains] += parameter.numel()
    assert counts[True], f"nothing trains in {phase}"
    return TrainableCount(phase, counts[True], counts[False])
