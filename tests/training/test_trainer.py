"""The order of samples, and what one phase on the Trainer does to a model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.toy import SPEC, silent
from torch import Tensor, nn

from medmoe.config.schema import PhaseName, PhaseSpec
from medmoe.errors import GuardError
from medmoe.training.context import PhaseRun
from medmoe.training.schedule import Schedule
from medmoe.training.trainer import PhaseResult, run_phase

COUNT, BATCH = 7, 4


def schedule(total: int, seed: int = 1, count: int = COUNT) -> Schedule[tuple[int, float]]:
    """Return samples that show their index and their draw."""
    return Schedule(lambda i, rng: (i, float(rng.random())), count, total, seed)


def items(samples: Schedule[Any]) -> list[Any]:
    return [samples[i] for i in range(len(samples))]


def test_length_is_the_number_of_draws_of_the_phase() -> None:
    assert len(schedule(40)) == 40


def test_every_epoch_is_a_permutation_and_no_two_are_alike() -> None:
    order = [index for index, _ in items(schedule(5 * COUNT))]
    epochs = [tuple(order[k * COUNT : (k + 1) * COUNT]) for k in range(5)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    # Two of five random orders of seven samples are alike once in 500 seeds; this seed is fixed.
    assert len(set(epochs)) == 5


def test_a_phase_may_end_within_an_epoch() -> None:
    order = [index for index, _ in items(schedule(COUNT + 3))]
    assert sorted(order[:COUNT]) == list(range(COUNT))
    assert len(set(order[COUNT:])) == 3


def test_sample_depends_on_seed_epoch_and_position_only() -> None:
    forwards = items(schedule(3 * COUNT))
    again = schedule(3 * COUNT)
    backwards = [again[i] for i in reversed(range(3 * COUNT))][::-1]
    longer = schedule(9 * COUNT)
    assert forwards == backwards == [longer[i] for i in range(3 * COUNT)]


def test_another_seed_gives_another_order_and_other_draws() -> None:
    one, two = items(schedule(4 * COUNT, seed=1)), items(schedule(4 * COUNT, seed=2))
    assert [i for i, _ in one] != [i for i, _ in two]
    assert not {draw for _, draw in one} & {draw for _, draw in two}


def test_one_sample_is_drawn_anew_in_every_epoch() -> None:
    draws = [draw for index, draw in items(schedule(6 * COUNT)) if index == 0]
    assert len(draws) == len(set(draws)) == 6


class _Line(nn.Module):
    """Learns y = 2x; a batch with a marked sample gives a loss that is no number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x: Tensor, y: Tensor, poison: Tensor) -> dict[str, Tensor]:
        loss = (self.layer(x) - y).square().mean()
        return {"loss": loss + poison.sum()}


def _collate(rows: Sequence[tuple[float, float]]) -> dict[str, Tensor]:
    x = torch.tensor([[value] for value, _ in rows])
    return {"x": x, "y": 2 * x, "poison": torch.tensor([bad for _, bad in rows])}


def line_model() -> _Line:
    torch.manual_seed(0)
    return _Line()


def fit(
    model: nn.Module,
    steps: int,
    *,
    seed: int = 1,
    poison_at: int | None = None,
    poison: float = float("nan"),
    progress: Any = silent,
    learning_rate: float = 0.2,
) -> PhaseResult:
    """Train on y = 2x; the batch of step ``poison_at`` makes the loss non-finite."""
    spec = PhaseSpec(**(SPEC.model_dump() | {"learning_rate": learning_rate, "batch_size": BATCH}))

    class Poisoned(Schedule[tuple[float, float]]):
        def __getitem__(self, index: int) -> tuple[float, float]:
            value, bad = super().__getitem__(index)
            return value, poison if poison_at == index // BATCH + 1 else bad

    def draw(index: int, rng: np.random.Generator) -> tuple[float, float]:
        return float(rng.uniform(-1, 1)), 0.0

    samples = Poisoned(draw, COUNT, steps * BATCH, seed)
    run = PhaseRun(phase="phase0_language", spec=spec, steps=steps, seed=seed, progress=progress)
    return run_phase(run, model, samples, _collate)


def test_loss_goes_down_on_a_line() -> None:
    model = line_model()
    curve = fit(model, 60).curve
    assert curve[-1][1] < 0.01 * curve[0][1]
    # AdamW turns around the minimum by about a step of the (decaying) learning rate
    assert model.layer.weight.item() == pytest.approx(2, abs=0.1)


def test_curve_has_the_steps_in_order_and_ends_with_the_last() -> None:
    steps = [step for step, _ in fit(line_model(), 12).curve]
    assert steps == list(range(1, 13))
    long = [step for step, _ in fit(line_model(), 100).curve]
    assert long == sorted(set(long))
    assert long[-1] == 100


def test_same_seed_gives_the_same_weights_whatever_ran_before() -> None:
    first, second, other = line_model(), line_model(), line_model()
    fit(first, 10)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002  (the global state that a phase must not read)
    torch.rand(17)
    fit(second, 10)
    fit(other, 10, seed=2)
    assert torch.equal(first.layer.weight, second.layer.weight)
    assert not torch.equal(first.layer.weight, other.layer.weight)


def test_a_phase_leaves_no_file_and_an_eval_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = line_model()
    fit(model, 3)
    assert os.listdir(tmp_path) == []
    assert not model.training


def test_progress_hears_every_step_and_the_loss() -> None:
    heard: list[tuple[PhaseName, int, int, float | None]] = []
    fit(line_model(), 5, progress=lambda *values: heard.append(values))
    assert {(phase, steps) for phase, _, steps, _ in heard} == {("phase0_language", 5)}
    assert [step for _, step, _, loss in heard if loss is None] == [1, 2, 3, 4, 5]
    assert [step for _, step, _, loss in heard if loss is not None] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_stops_the_phase_at_its_step(value: float) -> None:
    message = rf"^phase0_language: the loss is {value} at step 3; samples of the step: sample \d, "
    with pytest.raises(GuardError, match=message) as caught:
        fit(line_model(), 10, poison_at=3, poison=value)
    assert caught.value.exit_code == 3


def test_a_long_phase_stops_within_one_step_of_a_bad_loss() -> None:
    """Losses of long phases are logged every few steps; the guard must not wait for the log."""
    with pytest.raises(GuardError, match="at step 3;"):
        fit(line_model(), 200, poison_at=3)


class _BadGradient(_Line):
    """A finite loss whose gradient is not: the square root at zero."""

    def __init__(self, bad_step: int) -> None:
        super().__init__()
        self.calls, self.bad_step = 0, bad_step

    def forward(self, x: Tensor, y: Tensor, poison: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        extra = (self.layer.weight * 0).sum().sqrt() if self.calls == self.bad_step else 0
        return {"loss": super().forward(x, y, poison)["loss"] + extra}


@pytest.mark.parametrize("bad_step", [1, 3, 5])
def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_spoilt(bad_step: int) -> None:
    torch.manual_seed(0)
    model = _BadGradient(bad_step)
    message = (
        r"^phase0_language: the gradient is not finite \(first: layer.weight\) "
        rf"at step {bad_step}; samples of the step: sample \d, .*lower the phase's learning_rate"
    )
    with pytest.raises(GuardError, match=message):
        fit(model, 5)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    twin = line_model()
    if bad_step > 1:  # as far as the steps before
        assert not torch.equal(model.layer.weight, twin.layer.weight)
    else:
        assert torch.equal(model.layer.weight, twin.layer.weight)


class _NearTheEdge(nn.Module):
    """A weight that one large step, along a finite gradient, carries out of float32."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3e38]))

    def forward(self, x: Tensor, y: Tensor, poison: Tensor) -> dict[str, Tensor]:
        return {"loss": -1e-3 * self.weight.sum()}


def test_a_weight_that_the_last_step_spoils_stops_the_phase() -> None:
    message = (
        r"^phase0_language: a trained weight is not finite \(first: weight\) at step 1; "
        r"samples of the step: sample \d, .*lower the phase's learning_rate"
    )
    with pytest.raises(GuardError, match=message) as caught:
        fit(_NearTheEdge(), 1, learning_rate=1e38)
    assert caught.value.exit_code == 3
