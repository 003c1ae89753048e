"""A whole training run of a few steps, as a recipe file: too short to learn, long enough to fit.

As a program: ``micro_train.py OUT [CONFIG words of medmoe train …]``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from medmoe.config.schema import PhaseName
from medmoe.experiments.plan import TrainPlan, plan_train
from medmoe.experiments.recipe import Recipe, load_recipe

torch.set_num_threads(1)

SMALL = [
    "data.phantom_images=24",
    "data.phantom_test_images=12",
    "vocab_size=300",
    "router.labels=16",
    "run.save_every=2",
    "run.log_every=1",
    "validation=null",
]


def settings(*more: str, steps: int = 3, batch: int = 4) -> list[str]:
    """Return the changes that make `tiny_phantom` a run of seconds."""
    phases = load_recipe("tiny_phantom").spec.phases
    short = [f"phases.{phase}.steps={steps}" for phase in phases]
    return [*SMALL, *short, *(f"phases.{phase}.batch_size={batch}" for phase in phases), *more]


def micro_recipe(*more: str, steps: int = 3) -> Recipe:
    """Return `tiny_phantom` with a few steps and pictures."""
    return load_recipe("tiny_phantom", settings(*more, steps=steps))


def micro_plan(out: Path, *more: str, phases: tuple[str, ...] = (), **plan: Any) -> TrainPlan:
    """Return the plan of a micro run."""
    return plan_train(micro_recipe(*more), phases, None, out, 7, **plan)


def write_recipe(path: Path, *more: str) -> Path:
    """Write a micro recipe as a file, resolved."""
    path.write_text(yaml.safe_dump(micro_recipe(*more).config, sort_keys=False), encoding="utf-8")
    return path


def silent(phase: PhaseName, step: int, steps: int, loss: float | None) -> None:
    """Report progress to nobody."""
