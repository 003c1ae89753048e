"""What is handed from room to room while a phase trains: the run, its model, its records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from medmoe.config.schema import PhaseName, PhaseSpec
from medmoe.data.schema import Record
from medmoe.data.tokenize import ConversationTokenizer
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.training.on_demand import FeaturesOnDemand
from medmoe.training.settings import RunSettings
from medmoe.training.validation import Validation

#: Called with (phase, step, steps, loss); loss is None between logs.
Progress = Callable[[PhaseName, int, int, float | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseRun:
    """One phase to train: its values, its length, its seed, and how it is run.

    Attributes:
        steps: Optimiser steps.
        progress: Is told every step.
        validation: What is measured on the way.
    """

    phase: PhaseName
    spec: PhaseSpec
    steps: int
    seed: int
    progress: Progress
    settings: RunSettings = field(default_factory=RunSettings)
    validation: Validation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseContext(PhaseRun):
    """A phase to train, with its model and everything that it needs around it.

    Attributes:
        model: Trained in place.
        features: (N, P, D_vision) float32, the frozen encoder's output for every image, or what
            encodes them when they are asked for.
        rows: Row of each image id in ``features``.
        records: Training records, all of the phase's tasks.
        repeats: How often a data set's images come in one epoch, once where not named.
        max_questions: Questions packed behind one image.
        max_length: Longest sample in tokens; None sets no limit.
    """

    model: MedMoeForConditionalGeneration
    processor: Any
    tokenizer: ConversationTokenizer
    features: Tensor | FeaturesOnDemand
    rows: Mapping[str, int]
    records: Sequence[Record]
    repeats: Mapping[str, int]
    max_questions: int
    max_length: int | None = None
