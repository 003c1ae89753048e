"""How a phase is run, as apart from what it learns: checkpoints, precision, processes, logs.

Apart from the order of `group_by_length` and the rounding of ``bf16``, nothing here changes what a
phase learns; what does is in the recipe (`PhaseSpec`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from medmoe.errors import ConfigError

Precision = Literal["float32", "bf16"]
#: How weights and optimiser state are spread over the processes of `torchrun`.
Sharding = Literal["none", "fsdp2", "zero2", "zero3"]


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How one phase is run; the defaults are one process in float32 that keeps no checkpoint.

    Attributes:
        checkpoints: Folder of this phase's ``step-N`` directories; None writes none. Each phase
            has its own.
        save_every: Steps between two checkpoints; the last step is always saved.
        keep: How many checkpoints stay; at least two, since the newest may be damaged.
        resume: Go on from the newest checkpoint that verifies; from the start where there is none.
        allow_changed: Resume although `facts` or the phase's values differ from the checkpoint's.
        facts: What else must be equal in a run that is resumed, e.g. hashes of config and data.
        loader_workers: Processes that prepare batches; 0 does it in the training process.
        precision: ``bf16`` computes in bfloat16 and keeps trained weights in float32.
        gradient_accumulation: Parts a step's batch is computed in; the loss is the same.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, more time.
        group_by_length: Draw batches of samples of like length, so that less is padded.
        answers_only: Run the head on the answers' positions only; the loss is the same.
        sharding: Of weights and optimiser state over the processes; ``accelerate launch`` with a
            config of its own needs ``none``.
        trackers: Names for the Trainer's ``report_to``, e.g. ``tensorboard``.
        log_every: Steps between two points of the learning curve; None gives fifty in all.
        logs: Where trackers write, where they write to disk.
        run_name: The run's name in trackers.
        callbacks: Further callbacks of the Trainer, e.g. a live view.
    """

    checkpoints: Path | None = None
    save_every: int = 500
    keep: int = 2
    resume: bool = False
    allow_changed: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    loader_workers: int = 0
    precision: Precision = "float32"
    gradient_accumulation: int = 1
    gradient_checkpointing: bool = False
    group_by_length: bool = False
    answers_only: bool = True
    sharding: Sharding = "none"
    trackers: tuple[str, ...] = ()
    log_every: int | None = None
    logs: Path | None = None
    run_name: str | None = None
    callbacks: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        lowest = {"save_every": 1, "keep": 2, "loader_workers": 0, "gradient_accumulation": 1}
        for name, least in lowest.items():
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"{name} ({value}) must be at least {least}")

    def at(self, checkpoints: Path) -> RunSettings:
        """Return the same settings with another folder of checkpoints."""
        return replace(self, checkpoints=checkpoints)
