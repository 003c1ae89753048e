"""Runs one phase on the transformers Trainer: exactly repeatable, and exactly resumable.

The same arguments give the same weights, whatever ran before and however often the run was killed
and resumed on the way (one process, CPU, float32). The Trainer's own checkpoints are not used.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, TrainerCallback

from medmoe.config.schema import PhaseName
from medmoe.errors import ConfigError, StoppedError
from medmoe.training.ahead import Begin
from medmoe.training.arguments import training_arguments
from medmoe.training.context import PhaseRun, Progress
from medmoe.training.engine import PhaseTrainer
from medmoe.training.guards import StopRequest, sigterm_asks
from medmoe.training.parallel import refuse_deepspeed, shards_weights, trained_parameters, whole
from medmoe.training.saving.checkpoints import CheckpointFolder, refuse_changed
from medmoe.training.saving.state import frozen_hash, read_state
from medmoe.training.schedule import Schedule
from medmoe.training.settings import RunSettings
from medmoe.training.trainable import TrainableCount, set_trainable
from medmoe.training.validation import LOSS, SCORE

logger = logging.getLogger(__name__)

Curve = list[tuple[int, float]]
ValidationCurve = list[tuple[int, float, float | None]]


@dataclass(frozen=True, slots=True)
class PhaseResult:
    """What a phase leaves besides the trained model.

    Attributes:
        validation: (step, loss, strict score in percent or None) as measured on the way.
        kept_step: The step whose weights the model has, where the best is kept; None for the last.
        resumed_from: The step of the checkpoint it went on from, None where it began anew.
        damaged: Newer checkpoints that were passed over, one line each.
    """

    counts: TrainableCount
    curve: Curve
    validation: ValidationCurve = field(default_factory=list)
    kept_step: int | None = None
    resumed_from: int | None = None
    damaged: tuple[str, ...] = ()


class _Watch(TrainerCallback):
    """Reports progress."""

    def __init__(self, phase: PhaseName, progress: Progress) -> None:
        self._phase, self._progress = phase, progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress(self._phase, state.global_step, state.max_steps, None)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        self._progress(self._phase, state.global_step, state.max_steps, loss)


def run_phase(
    run: PhaseRun,
    model: nn.Module,
    samples: Schedule[Any],
    collate: Callable[[Sequence[Any]], dict[str, Any]],
    begin: Begin | None = None,
) -> PhaseResult:
    """Train a model in place for the run's steps and return its learning curve.

    Args:
        begin: Called with each sample a batch ahead, where there are no loader processes.

    Raises:
        CheckpointError: There are checkpoints but none may be resumed, or none should be there.
        ConfigError: The settings do not fit the phase, the batch or the machine.
        GuardError: A loss, gradient or weight is not finite, or a checkpoint cannot be written.
        StoppedError: SIGTERM was received; a checkpoint of the last step is saved.
    """
    phase, settings = run.phase, run.settings
    refuse_deepspeed(settings)
    _check(run)
    counts = set_trainable(model, phase, run.spec.trains)
    logger.info("%s", counts.line())
    if settings.group_by_length:
        samples = samples.grouped(run.spec.batch_size)
    folder = _folder(settings)
    facts = _facts(run, model, samples) if folder else {}
    resumed = _resumable(folder, facts, settings)
    # FSDP2 shards a model for good; the caller's stays whole.
    working = copy.deepcopy(model) if shards_weights(settings) else model
    stop = StopRequest()
    with tempfile.TemporaryDirectory() as scratch, sigterm_asks(stop, listen=folder is not None):
        trainer = PhaseTrainer(
            phase=phase,
            folder=folder,
            facts=facts,
            stop=stop,
            save_every=settings.save_every,
            answers_only=settings.answers_only,
            begin=begin,
            validation=run.validation,
            model=working,
            args=training_arguments(run, working, scratch),
            train_dataset=samples,
            data_collator=collate,
            callbacks=[_Watch(phase, run.progress), *settings.callbacks],
        )
        trainer.remove_callback(PrinterCallback)
        with closing(trainer):
            trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        kept = None if stop.asked else trainer.keep_best()
    if working is not model:
        _copy_trained(working, model)
    if stop.asked:
        raise _stopped(phase, trainer.state.global_step, run.steps)
    model.eval()
    return _result(counts, trainer, kept)


def _check(run: PhaseRun) -> None:
    """Refuse to measure what cannot be measured in this way of running."""
    validation, settings = run.validation, run.settings
    if validation is None:
        return
    if validation.keep_best and settings.checkpoints is None:
        raise ConfigError("the best step is kept as a checkpoint; train with checkpoints")
    if validation.score is not None and (settings.sharding != "none" or shards_weights(settings)):
        raise ConfigError(
            "a model whose weights are spread over processes cannot answer while it trains; use "
            "--set validation.score=false, which leaves the validation loss"
        )


def _result(counts: TrainableCount, trainer: PhaseTrainer, kept: int | None) -> PhaseResult:
    history, folder = trainer.state.log_history, trainer.folder
    curve = [(int(row["step"]), row["loss"]) for row in history if "loss" in row]
    measured = [(int(row["step"]), row[LOSS], row.get(SCORE)) for row in history if LOSS in row]
    damaged = tuple(folder.damaged) if folder else ()
    return PhaseResult(counts, curve, measured, kept, trainer.resumed.get("step"), damaged)


def _stopped(phase: PhaseName, step: int, steps: int) -> StoppedError:
    return StoppedError(
        f"{phase}: stopped by SIGTERM after step {step} of {steps}; "
        "its checkpoint is saved, go on with --resume"
    )


def _folder(settings: RunSettings) -> CheckpointFolder | None:
    if settings.checkpoints is None:
        return None
    folder = CheckpointFolder(settings.checkpoints, settings.keep)
    if not settings.resume:
        folder.refuse_used()
    return folder


def _facts(run: PhaseRun, model: nn.Module, samples: Schedule[Any]) -> dict[str, Any]:
    """Return what must be the same in a run that goes on from a checkpoint of this one."""
    weights = {name: list(weight.shape) for name, weight in trained_parameters(model)}
    return {
        "phase": run.phase,
        "seed": run.seed,
        "steps": run.steps,
        "trained": weights,
        "frozen": frozen_hash(model),
        **run.spec.model_dump(mode="json"),
        **samples.fingerprint(),
        **run.settings.facts,
    }


def _resumable(
    folder: CheckpointFolder | None, facts: dict[str, Any], settings: RunSettings
) -> Path | None:
    """Return the checkpoint to go on from, None to begin anew."""
    if folder is None or not settings.resume:
        return None
    directory = folder.newest()
    for line in folder.damaged:
        logger.warning("%s", line)
    if directory is not None and not settings.allow_changed:
        refuse_changed(read_state(directory)["facts"], facts, directory)
    return directory


@torch.no_grad()
def _copy_trained(source: nn.Module, target: nn.Module) -> None:
    """Copy what was trained in shares into the whole model."""
    into = dict(trained_parameters(target))
    for name, weight in trained_parameters(source):
        into[name].copy_(whole(weight))
