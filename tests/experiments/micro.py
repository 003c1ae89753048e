"""A whole demonstration of a few steps, and a program that runs one: ``micro.py OUT [SEED]``.

Too short to learn anything: it proves that all parts fit, not that they are good.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from medmoe.config.schema import PhaseName
from medmoe.experiments.demo import plan_demo, score_demo, train_demo
from medmoe.experiments.plan import TrainPlan
from medmoe.experiments.recipe import load_recipe
from medmoe.training.context import Progress

# Sums of floats depend on the number of threads: one everywhere, so that runs can be compared.
torch.set_num_threads(1)

#: Those of a demonstration: all but what needs a pretrained encoder.
PHASES = tuple(load_recipe("demo_phantom").spec.phases)
TRAIN_IMAGES, TEST_IMAGES, STEPS = 24, 8, 3
#: Small batches, few pictures and a few steps of every phase; everything else is the recipe's.
SETTINGS = [
    "vocab_size=300",
    "router.labels=16",
    f"data.phantom_images={TRAIN_IMAGES}",
    f"data.phantom_test_images={TEST_IMAGES}",
    *(
        f"phases.{phase}.{value}"
        for phase in PHASES
        for value in (f"steps={STEPS}", "batch_size=4", "max_questions=2")
    ),
]


def silent(phase: PhaseName, step: int, steps: int, loss: float | None) -> None:
    """Report progress to nobody."""


def unasked(name: str, done: int, total: int) -> None:
    """Report answers to nobody."""


def micro_plan(
    out: Path,
    *settings: str,
    seed: int = 7,
    root: Path | None = None,
    split: str = "standard",
) -> TrainPlan:
    """Return a demonstration with a few steps."""
    return plan_demo(root, out, split, 2, seed, [*SETTINGS, *settings])


def run_demo(plan: TrainPlan, progress: Progress) -> dict[str, Any]:
    """Train and score as `medmoe demo` does, without its printing."""
    train_demo(plan, progress)
    return score_demo(plan, unasked)


def comparable(summary: dict[str, Any]) -> dict[str, Any]:
    """Return a summary as JSON reads it, less what a clock or a checkout says."""
    copy: dict[str, Any] = json.loads(json.dumps(summary))
    del copy["seconds"], copy["commit"]
    for phase in copy["phases"].values():
        del phase["seconds"]
    return copy


if __name__ == "__main__":
    words = sys.argv[1:]
    seeds = {"seed": int(words[1])} if len(words) > 1 else {}
    run_demo(micro_plan(Path(words[0]), **seeds), silent)
