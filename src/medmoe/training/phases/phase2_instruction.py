"""Phase 2, instruction tuning (paper, section 3.2): projector and language model learn to answer.

The result is the dense model: what phase 3 upcycles, and what `train_sft` fine-tunes further for
the comparison row (paper, Table 4).
"""

from __future__ import annotations

from medmoe.training.packed import PhaseContext, train_packed
from medmoe.training.trainer import PhaseResult


def train_instruction(context: PhaseContext) -> PhaseResult:
    """Train projector and language model in place on questions and captions."""
    return train_packed(context, "phase2_instruction")


def train_sft(context: PhaseContext) -> PhaseResult:
    """Fine-tune the dense model in place on phase 3's data, the comparison for MoE tuning."""
    return train_packed(context, "sft")
