"""Phase 3, domain-specific MoE tuning (paper, section 3.3): experts and meta expert train.

Attention, embeddings and vision encoder are frozen, and by the paper the router and the projector
too. The variants stand in `medmoe.config.phases`: what the reference trains besides, a router
that learns without labels (`load_balance`), and adapters (`lora`).
"""

from __future__ import annotations

from torch import nn

from medmoe.training.packed import PhaseContext, train_packed
from medmoe.training.trainer import PhaseResult


def train_moe(context: PhaseContext, trained: nn.Module | None = None) -> PhaseResult:
    """Train the experts and meta experts of ``context.model`` in place on the questions.

    Args:
        trained: The model inside of what a variant puts around it.
    """
    return train_packed(context, "phase3_moe", trained)
