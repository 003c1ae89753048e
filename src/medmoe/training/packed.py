"""What phases 1, 2 and 3 share: next-token training on packed questions about encoded images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from medmoe.config.phases import PHASE_TABLE
from medmoe.config.schema import PhaseName, PhaseSpec
from medmoe.data.collate import Packed, PackingCollator
from medmoe.data.schema import Record, Task
from medmoe.data.tokenize import ConversationTokenizer
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.training.ahead import Begin
from medmoe.training.on_demand import FeaturesOnDemand
from medmoe.training.samples import packed_schedule
from medmoe.training.settings import RunSettings
from medmoe.training.trainer import PhaseResult, Progress, run_phase


@dataclass(frozen=True, slots=True)
class PhaseContext:
    """A model and everything a phase needs around it.

    Attributes:
        model: Trained in place.
        features: (N, P, D_vision) float32, the frozen encoder's output for every image, or what
            encodes them when they are asked for.
        rows: Row of each image id in ``features``.
        records: Training records; each phase picks its tasks.
        repeats: How often a data set's images come in one epoch.
        specs: Optimisation by phase.
        steps: Optimiser steps by phase.
        max_questions: Questions packed behind one image.
        settings: How the phases are run: checkpoints, precision, processes.
        max_length: Longest sample in tokens; None sets no limit.
    """

    model: MedMoeForConditionalGeneration
    processor: Any
    tokenizer: ConversationTokenizer
    features: Tensor | FeaturesOnDemand
    rows: dict[str, int]
    records: Sequence[Record]
    repeats: dict[str, int]
    specs: dict[PhaseName, PhaseSpec]
    steps: dict[PhaseName, int]
    max_questions: int
    seed: int
    progress: Progress
    settings: RunSettings = field(default_factory=RunSettings)
    max_length: int | None = None

    def with_model(self, model: MedMoeForConditionalGeneration) -> PhaseContext:
        """Return the same surroundings for another model."""
        return replace(self, model=model)

    def with_settings(self, settings: RunSettings) -> PhaseContext:
        """Return the same surroundings, run in another way; each phase has its own checkpoints."""
        return replace(self, settings=settings)


def tasks_of(phase: PhaseName, records: Iterable[Record]) -> tuple[Task, ...]:
    """Return the tasks whose records a phase trains on; without captions phase 1 takes the rest."""
    tasks = PHASE_TABLE[phase].tasks
    if tasks == ("caption",) and not any(record.task == "caption" for record in records):
        return ("vqa", "classification")
    return tasks


def train_packed(
    context: PhaseContext,
    phase: PhaseName,
    trained: nn.Module | None = None,
) -> PhaseResult:
    """Train ``context.model`` in place on the records of a phase's tasks; loss on answers only.

    Args:
        trained: What the Trainer sees, where it is the model with something around it.
    """
    spec, steps = context.specs[phase], context.steps[phase]
    schedule = packed_schedule(
        phase,
        context.records,
        tasks_of(phase, context.records),
        context.rows,
        context.tokenizer,
        spec,
        steps,
        context.max_questions,
        context.repeats,
        context.seed,
        context.max_length,
    )
    collate = PackingCollator(context.features, context.processor.tokenizer.pad_token_id)
    return run_phase(
        phase,
        context.model if trained is None else trained,
        schedule,
        collate,
        spec,
        steps,
        context.seed,
        context.progress,
        context.settings,
        _reads_ahead(context.features),
    )


def _reads_ahead(features: Tensor | FeaturesOnDemand) -> Begin | None:
    """Return what starts reading the picture of a sample, where it is not encoded already."""
    if not isinstance(features, FeaturesOnDemand):
        return None

    def begin(sample: Packed) -> None:
        features.begin(sample.image)

    return begin
