"""How a phase is run: what the recipe says of it, and what only the run knows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medmoe.config.train_schema import RunSpec


class RunSettings(RunSpec):
    """The recipe's `RunSpec` and what is this run's own; by default it keeps no checkpoint.

    Attributes:
        checkpoints: Folder of this phase's ``step-N`` directories; None writes none. Each phase
            has its own.
        resume: Go on from the newest checkpoint that verifies; from the start where there is none.
        allow_changed: Resume although `facts` or the phase's values differ from the checkpoint's.
        facts: What else must be equal in a run that is resumed, e.g. hashes of config and data.
        logs: Where trackers write, where they write to disk.
        run_name: The run's name in trackers.
        callbacks: Further callbacks of the Trainer, e.g. a live view.
    """

    checkpoints: Path | None = None
    resume: bool = False
    allow_changed: bool = False
    facts: Mapping[str, Any] = {}
    logs: Path | None = None
    run_name: str | None = None
    callbacks: tuple[Any, ...] = ()
