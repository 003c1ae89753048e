"""Phase 1, alignment (paper, section 3.1): the projector learns to put pictures into words.

Image-caption pairs, next-token loss on the caption; vision encoder and language model are frozen.
Data without any caption aligns on its questions: better a projector that knows them than none.
"""

from __future__ import annotations

from medmoe.training.packed import PhaseContext, train_packed
from medmoe.training.trainer import PhaseResult


def train_alignment(context: PhaseContext) -> PhaseResult:
    """Train the projector of ``context.model`` in place on the caption records."""
    return train_packed(context, "phase1_alignment")
