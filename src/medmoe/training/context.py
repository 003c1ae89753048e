"""What is handed from room to room while a phase trains: the run, its model, its records.

With the run go how it is run (`RunSettings`) and what is measured on the way (`Validation`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from medmoe.config.schema import PhaseName, PhaseSpec
from medmoe.config.train_schema import RunSpec
from medmoe.data.schema import Record
from medmoe.data.tokenize import ConversationTokenizer
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.training.features import FeaturesOnDemand, Views


class RunSettings(RunSpec):
    """The recipe's `RunSpec` and what is this run's own; by default it keeps no checkpoint.

    Attributes:
        checkpoints: Folder of this phase's ``step-N`` directories; None writes none. Each phase
            has its own.
        resume: Go on from the newest checkpoint that verifies; from the start where there is none.
        allow_changed: Resume although `facts` or the phase's values differ from the checkpoint's.
        facts: What else must be equal in a run that is resumed, e.g. hashes of config and data.
        callbacks: Further callbacks of the Trainer, e.g. a live view.
    """

    checkpoints: Path | None = None
    resume: bool = False
    allow_changed: bool = False
    facts: Mapping[str, Any] = {}
    run_name: str | None = None
    callbacks: tuple[Any, ...] = ()


#: The Trainer's name of the validation loss, and ours of the score beside it.
LOSS, SCORE = "eval_loss", "eval_strict_score"


@dataclass(frozen=True, slots=True, eq=False)
class Validation:
    """What is measured while a phase trains, on pictures kept apart from it, and how often.

    It changes nothing of what is trained (`engine` puts the random state back), unless the recipe
    asks for the weights of the best step instead of the last.

    Attributes:
        samples: Give the loss, always the same.
        collate: Makes a batch of them, with the features of their own pictures.
        every: Steps between two measurements; the last step is always measured.
        score: Gives a model's strict score in percent; None measures the loss only.
        keep_best: The phase ends with the weights of the best step.
    """

    samples: Sequence[Any]
    collate: Callable[[Sequence[Any]], dict[str, Any]]
    every: int
    score: Callable[[nn.Module], float] | None = None
    keep_best: bool = False


def best_step(history: Iterable[Mapping[str, Any]]) -> int | None:
    """Return the step with the best strict score, of equal scores the lower loss, then the first.

    Args:
        history: The Trainer's log; None where nothing in it was measured.
    """
    measured = [row for row in history if LOSS in row]
    if not measured:
        return None
    best = max(measured, key=lambda row: (row.get(SCORE, 0.0), -row[LOSS]))
    return int(best["step"])


#: Called with (phase, step, steps, loss); loss is None between logs.
Progress = Callable[[PhaseName, int, int, float | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseRun:
    """One phase to train: its values, its length, its seed, and how it is run.

    Attributes:
        steps: Optimiser steps.
        progress: Is told every step.
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
        views: Versions of each picture that ``features`` hold, see `Views`.
        records: Training records, all of the phase's tasks.
        repeats: How often a data set's images come in one epoch, once where not named.
        max_questions: Questions packed behind one image.
        max_length: Longest sample in tokens; None sets no limit.
    """

    model: MedMoeForConditionalGeneration
    processor: Any
    tokenizer: ConversationTokenizer
    features: Tensor | FeaturesOnDemand | Views
    rows: Mapping[str, int]
    records: Sequence[Record]
    repeats: Mapping[str, int]
    max_questions: int
    max_length: int | None = None
    views: int = 1
