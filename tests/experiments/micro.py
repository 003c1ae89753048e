"""A whole demonstration of a few steps, and a program that runs one: ``micro.py OUT [SEED]``.

Too short to learn anything: it proves that all parts fit, not that they are good.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from medmoe.config.schema import PHASES, DemoSpec, PhaseName, StepPlan
from medmoe.experiments.demo import run_demo
from medmoe.experiments.demo_plan import DemoPlan, plan_demo

# Sums of floats depend on the number of threads: one everywhere, so that runs can be compared.
torch.set_num_threads(1)

TRAIN_IMAGES, TEST_IMAGES, STEPS = 24, 8, 3


def silent(phase: PhaseName, step: int, steps: int, loss: float | None) -> None:
    """Report progress to nobody."""


def micro_spec(spec: DemoSpec) -> DemoSpec:
    """Return a recipe with small batches; everything else is its own."""
    phases = {
        name: phase.model_copy(update={"batch_size": 4}) for name, phase in spec.phases.items()
    }
    return spec.model_copy(update={"phases": phases, "vocab_size": 300, "router_images": 16})


def micro_steps(images: bool = True) -> StepPlan:
    """Return a few steps of every phase; without images where real data is read."""
    return StepPlan(
        train_images=TRAIN_IMAGES if images else 0,
        test_images=TEST_IMAGES if images else 0,
        max_questions=2,
        steps=dict.fromkeys(PHASES, STEPS),
    )


def micro_plan(seed: int = 7) -> DemoPlan:
    """Return the phantom demonstration with a few steps."""
    plan = plan_demo(None, "standard", 1, seed)
    return replace(plan, spec=micro_spec(plan.spec), steps=micro_steps())


def comparable(summary: dict[str, Any]) -> dict[str, Any]:
    """Return a summary as JSON reads it, less what a clock or a checkout says."""
    copy: dict[str, Any] = json.loads(json.dumps(summary))
    del copy["seconds"], copy["commit"]
    return copy


if __name__ == "__main__":
    words = sys.argv[1:]
    run_demo(micro_plan(*map(int, words[1:])), Path(words[0]), silent)
