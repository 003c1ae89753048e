"""Phase 3, domain-specific MoE tuning (paper, section 3.3): experts and meta expert train.

Router, attention, embeddings, projector and vision encoder are frozen; there is no load-balancing
loss. The reference code also trains the projector and the dense layers' FFNs; this does not.
"""

from __future__ import annotations

from medmoe.training.packed import PhaseContext, train_packed
from medmoe.training.trainer import PhaseResult


def train_moe(context: PhaseContext) -> PhaseResult:
    """Train the experts and meta experts of ``context.model`` in place on the questions."""
    return train_packed(context, "phase3_moe", ("vqa", "classification"))
