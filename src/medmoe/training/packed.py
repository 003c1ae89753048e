"""What phases 1, 2 and 3 share: next-token training on packed questions about encoded images."""

from __future__ import annotations

from torch import Tensor, nn

from medmoe.data.collate import Packed, PackingCollator
from medmoe.training.ahead import Begin
from medmoe.training.context import PhaseContext
from medmoe.training.on_demand import FeaturesOnDemand
from medmoe.training.samples import packed_schedule
from medmoe.training.trainer import PhaseResult, run_phase


def train_packed(context: PhaseContext, trained: nn.Module | None = None) -> PhaseResult:
    """Train ``context.model`` in place on the context's records; loss on answers only.

    Args:
        trained: What the Trainer sees, where it is the model with something around it.
    """
    schedule = packed_schedule(context)
    collate = PackingCollator(context.features, context.processor.tokenizer.pad_token_id)
    model = context.model if trained is None else trained
    return run_phase(context, model, schedule, collate, _reads_ahead(context.features))


def _reads_ahead(features: Tensor | FeaturesOnDemand) -> Begin | None:
    """Return what starts reading the picture of a sample, where it is not encoded already."""
    if not isinstance(features, FeaturesOnDemand):
        return None

    def begin(sample: Packed) -> None:
        features.begin(sample.image)

    return begin
