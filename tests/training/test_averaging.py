"""The mean of a phase's last weights: exact, what is measured, and the same after a resume."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training import toy
from tests.training.test_validation import validation
from torch import Tensor, nn
from transformers import TrainerCallback

from medmoe.training.context import RunSettings
from medmoe.training.packed import train_packed
from medmoe.training.trainer import PhaseResult

STEPS = 6
AVERAGED = "model.multi_modal_projector.linear_1.weight"


class Steps(TrainerCallback):
    """Notes a weight after each step."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(kwargs["model"].state_dict()[AVERAGED].clone())


def train(
    average: float, folder: Path | None = None, *, measure: Any = None, **changes: Any
) -> tuple[dict[str, Tensor], list[Tensor], PhaseResult]:
    model, steps = toy.dense(), Steps()
    context = toy.context(model, STEPS)
    spec = context.spec.model_copy(update={"average": average, "layer_decay": 0.5})
    keep_best = changes.pop("keep_best", False)
    settings = RunSettings(checkpoints=folder, save_every=1, keep=9, callbacks=(steps,), **changes)
    made = validation(context, measure, every=1, keep_best=keep_best) if measure else None
    result = train_packed(replace(context, spec=spec, settings=settings, validation=made))
    return toy.weights(model), steps.seen, result


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-5, atol=1e-7)  # a running mean in float32


def test_a_phase_ends_with_the_mean_of_its_last_steps_and_trains_as_without() -> None:
    plain, last, _ = train(0.0)
    weights, seen, _ = train(0.5)
    assert all(torch.equal(a, b) for a, b in zip(last, seen, strict=True))
    assert torch.equal(plain[AVERAGED], seen[-1])
    assert close(weights[AVERAGED], torch.stack(seen[3:]).mean(dim=0))
    assert not close(weights[AVERAGED], seen[-1])
    assert close(train(0.01)[0][AVERAGED], seen[-1])  # one step at least


def test_the_mean_so_far_is_what_is_measured() -> None:
    measured: list[Tensor] = []

    def score(model: nn.Module) -> float:
        measured.append(model.state_dict()[AVERAGED].clone())
        return 50.0

    _, seen, _ = train(0.5, measure=score)
    assert torch.equal(measured[2], seen[2])
    for step in range(3, STEPS):
        assert close(measured[step], torch.stack(seen[3 : step + 1]).mean(dim=0))


@pytest.mark.parametrize("step", [2, 5, STEPS])
def test_a_resumed_run_ends_with_the_same_mean(tmp_path: Path, step: int) -> None:
    unbroken, _, _ = train(0.5, tmp_path / "run")
    for later in range(step + 1, STEPS + 1):
        shutil.rmtree(tmp_path / "run" / f"step-{later}")
    resumed, _, result = train(0.5, tmp_path / "run", resume=True)
    assert result.resumed_from == step
    assert not toy.changed(unbroken, resumed)


def test_the_best_step_is_kept_with_the_mean_up_to_it(tmp_path: Path) -> None:
    scores = iter([10.0, 20.0, 30.0, 40.0, 90.0, 50.0])
    weights, seen, result = train(
        0.5, tmp_path / "run", measure=lambda model: next(scores), keep_best=True
    )
    assert result.kept_step == 5
    assert close(weights[AVERAGED], torch.stack(seen[3:5]).mean(dim=0))
