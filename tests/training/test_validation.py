"""What is measured while a phase trains: it changes nothing, is exact, and survives a resume."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training import toy
from torch import nn

from medmoe.data.collate import PackingCollator
from medmoe.data.phantom import read_phantom
from medmoe.errors import CheckpointError, ConfigError
from medmoe.training.context import LOSS, SCORE, RunSettings, Validation, best_step
from medmoe.training.load_balance import BalancedMoe
from medmoe.training.meter import Measured, Meter, Validated
from medmoe.training.packed import packed_once, train_packed
from medmoe.training.saving.state import load_weights
from medmoe.training.trainable import set_trainable
from medmoe.training.trainer import PhaseResult

STEPS, EVERY = 7, 3
Score = Callable[[nn.Module], float]


def validation(
    context: Any, score: Score | None = None, every: int = EVERY, keep_best: bool = False
) -> Validation:
    """Return a validation on other pictures than those trained on."""
    records = [r for r in read_phantom("validation", 4, seed=9, size=32) if r.task == "vqa"]
    rows = {name: row for row, name in enumerate(dict.fromkeys(r.image.id for r in records))}
    shape = (len(rows), *context.features.shape[1:])
    features = torch.randn(shape, generator=torch.Generator().manual_seed(8))
    collate = PackingCollator(features, context.processor.tokenizer.pad_token_id)
    samples = packed_once(records[:6], rows, context.tokenizer)
    return Validation(samples, collate, every, score, keep_best)


def careless(model: nn.Module) -> float:
    """Draw from every random generator, and leave the model in another mode."""
    random.random()
    np.random.random()  # noqa: NPY002
    torch.rand(3)
    model.train()
    return 50.0


def train(
    folder: Path | None = None, score: Score | None = None, *, measured: bool = True, **changes: Any
) -> tuple[dict[str, torch.Tensor], PhaseResult, nn.Module]:
    model = toy.dense()
    context = toy.context(model, STEPS, phase="phase2_instruction")
    keep_best = changes.pop("keep_best", False)
    settings = RunSettings(checkpoints=folder, save_every=1, keep=9, **changes)
    made = validation(context, score, keep_best=keep_best) if measured else None
    result = train_packed(replace(context, settings=settings, validation=made))
    return toy.weights(model), result, model


def test_measuring_changes_no_weight_and_no_loss() -> None:
    plain, unmeasured, _ = train(measured=False)
    weights, result, _ = train(score=careless)
    assert not toy.changed(plain, weights)
    assert result.curve == unmeasured.curve
    assert [(step, score) for step, _, score in result.validation] == [(3, 50), (6, 50), (7, 50)]


def test_the_loss_is_the_models_own_on_the_samples_after_the_step() -> None:
    _, result, model = train()
    model.requires_grad_(False)
    made = validation(toy.context(toy.dense(), phase="phase2_instruction"))
    batch = toy.SPEC.batch_size
    parts = [made.samples[i : i + batch] for i in range(0, len(made.samples), batch)]
    losses = [float(model(**made.collate(part)).loss) * len(part) for part in parts]
    assert result.validation[-1][:2] == (STEPS, pytest.approx(sum(losses) / len(made.samples)))
    assert result.validation[0][1] > result.validation[-1][1]


@pytest.mark.parametrize("broken_at", [2, 3, 5])
def test_a_resumed_phase_measures_as_an_unbroken_one(tmp_path: Path, broken_at: int) -> None:
    weights, whole, _ = train(tmp_path / "run", careless)
    for step in range(broken_at + 1, STEPS + 1):
        shutil.rmtree(tmp_path / "run" / f"step-{step}")
    again, resumed, _ = train(tmp_path / "run", careless, resume=True)
    assert resumed.resumed_from == broken_at
    assert resumed.validation == whole.validation
    assert not toy.changed(weights, again)


def scripted(*scores: float) -> Score:
    rest = iter(scores)
    return lambda model: next(rest)


@pytest.mark.parametrize(("scores", "kept"), [((10, 90, 20), 6), ((90, 10, 20), 3), ((1, 2, 3), 7)])
def test_the_best_step_s_weights_are_kept(
    tmp_path: Path, scores: tuple[float, ...], kept: int
) -> None:
    plain, _, _ = train(tmp_path / "plain")
    weights, result, _ = train(tmp_path / "best", scripted(*scores), keep_best=True)
    assert result.kept_step == kept
    at_step, _, _ = train(tmp_path / "best", scripted(*scores), keep_best=True, resume=True)
    assert not toy.changed(weights, at_step)  # a phase that had ended keeps the same one
    assert bool(toy.changed(plain, weights)) == (kept != STEPS)
    model = toy.dense()
    model.load_state_dict(plain)
    set_trainable(model, "phase2_instruction")
    load_weights(model, tmp_path / "plain" / f"step-{kept}")
    assert not toy.changed(toy.weights(model), weights)


def test_the_best_checkpoint_outlasts_the_newest_ones_and_a_resume(tmp_path: Path) -> None:
    train(tmp_path, scripted(90, 10, 20), keep_best=True)
    for step in (1, 2, 4, 5, 6, 7):
        shutil.rmtree(tmp_path / f"step-{step}")
    model = toy.dense()
    context = toy.context(model, STEPS, phase="phase2_instruction")
    few = RunSettings(checkpoints=tmp_path, save_every=1, keep=2, resume=True)
    made = validation(context, scripted(10, 20), keep_best=True)
    result = train_packed(replace(context, settings=few, validation=made))
    assert result.kept_step == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-3", "step-6", "step-7"]


def test_a_damaged_best_checkpoint_is_named(tmp_path: Path) -> None:
    train(tmp_path, scripted(90, 10, 20), keep_best=True)
    (tmp_path / "step-3" / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"step-3.*weights\.safetensors"):
        train(tmp_path, scripted(), keep_best=True, resume=True)


def test_of_equal_scores_the_lower_loss_is_best_and_then_the_first() -> None:
    rows = [
        {"step": 1, "loss": 0.1},
        {"step": 2, LOSS: 0.5, SCORE: 70.0},
        {"step": 4, LOSS: 0.4, SCORE: 70.0},
        {"step": 6, LOSS: 0.4, SCORE: 70.0},
        {"step": 8, LOSS: 0.1, SCORE: 60.0},
    ]
    assert best_step(rows) == 4
    assert best_step([{"step": 2, LOSS: 0.5}, {"step": 4, LOSS: 0.4}]) == 4
    assert best_step(rows[:1]) is None


def test_a_wrapped_model_is_measured_too() -> None:
    model = toy.moe()
    context = toy.context(model, 2)
    asked: list[nn.Module] = []

    def score(trained: nn.Module) -> float:
        asked.append(trained)
        return 0.0

    made = validation(context, score, every=2)
    wrapped = BalancedMoe(model, 0.1)
    spec = toy.SPEC.model_copy(update={"trains": "learned_router"})
    context = replace(context, validation=made, spec=spec)
    result = train_packed(context, wrapped)
    assert asked == [wrapped]
    assert [step for step, *_ in result.validation] == [2]


def test_each_measurement_is_a_line_and_counts_as_no_training(tmp_path: Path) -> None:
    points: list[Measured | Validated] = []
    model = toy.dense()
    context = toy.context(model, STEPS, phase="phase2_instruction")
    modalities = {r.image.id: r.image.modality for r in context.records}

    def meter(name: str) -> Meter:
        return Meter("phase2_instruction", tmp_path / name, modalities, (), points.append)

    def tokens(made: Validation | None, name: str) -> list[float]:
        counted = meter(name)
        settings = RunSettings(log_every=1, callbacks=(counted,))
        seen = len(points)
        train_packed(replace(context, settings=settings, validation=made))
        return [p.images_per_second > 0 for p in points[seen:] if isinstance(p, Measured)]

    assert tokens(validation(context, careless), "with.jsonl") == [True] * STEPS
    told = [point for point in points if isinstance(point, Validated)]
    assert [point.step for point in told] == [3, 6, 7]
    assert {point.strict_score for point in told} == {50.0}
    lines = (tmp_path / "with.jsonl").read_text().splitlines()
    assert sum('"validation_loss"' in line for line in lines) == 3
    assert len(lines) == STEPS + 3


def test_what_cannot_be_measured_is_refused() -> None:
    context = toy.context(toy.dense(), 2)
    spread = replace(context, settings=RunSettings(sharding="fsdp2"))
    with pytest.raises(ConfigError, match=r"validation\.score=false"):
        train_packed(replace(spread, validation=validation(context, careless)))
    with pytest.raises(ConfigError, match="train with checkpoints"):
        train_packed(replace(context, validation=validation(context, keep_best=True)))
