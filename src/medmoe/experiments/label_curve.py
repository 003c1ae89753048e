"""How the router's accuracy grows with the number of labelled images (paper, Figure 6).

The router is scored on the frozen phase-2 model's hidden states, as it is trained; in the finished
model the states of later layers are those of tuned experts, which `medmoe routes` looks at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from medmoe.config.train_schema import RouterSpec
from medmoe.data.schema import ImageRecord
from medmoe.files import csv_text, write_text
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.upcycle import RouterState
from medmoe.training.context import PhaseContext
from medmoe.training.phases.phase2_router import (
    LabelledStates,
    RouterTraining,
    choose_labelled,
    fit_router,
)

Score = dict[str, Any]
FILES = ("label_curve.csv", "label_curve.json")
_TOLD = ("accuracy", "low", "high", "n", "shared_images")


def label_curve(
    context: PhaseContext,
    config: MedMoeConfig,
    spec: RouterSpec,
    images: Sequence[ImageRecord],
    states: LabelledStates,
    score: Callable[[RouterState | list[RouterState]], Score],
    counts: Sequence[int],
    folder: Path | None,
) -> list[Score]:
    """Train a router on each number of labels, score it, and write CSV and JSON.

    Args:
        context: Of ``phase2_router``; each router trains for its steps.
        images: All images that may be chosen; ``states`` holds those of the largest count.
        score: Scores a router on images that none sees, as `router_score` does.
        counts: Numbers of labels; 0 is the router before any training.
        folder: Gets ``label_curve.csv`` and ``label_curve.json``; None writes nothing.

    Returns:
        One row per count: ``labels`` asked for, ``images`` used, accuracy with interval, n.
    """
    rows = []
    for count in sorted(set(counts)):
        chosen: Sequence[ImageRecord] = ()
        if count:
            chosen = choose_labelled(images, config.domains or (), count, context.seed)
            router, _ = fit_router(context, config, states.of(chosen), spec.loss, spec.per_layer)
        else:
            torch.manual_seed(context.seed)
            router = RouterTraining(config, spec.loss, spec.per_layer).states()
        scored = score(router)
        told = {name: scored[name] for name in _TOLD if name in scored}
        rows.append({"labels": count, "images": len(chosen), **told})
    if folder is not None:
        write_text(folder / FILES[0], csv_text(rows))
        write_text(folder / FILES[1], json.dumps(rows, indent=1) + "\n")
    return rows
