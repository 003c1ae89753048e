"""Runs one phase on the transformers Trainer: exactly repeatable, and exactly resumable.

The Trainer's arguments are a phase's values (paper, Table 11) and the run's settings.

The same arguments give the same weights, whatever ran before and however often the run was killed
and resumed on the way (one process, CPU, float32). The Trainer's own checkpoints are not used.
"""

from __future__ import annotations

import copy
import logging
import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, TrainingArguments

from medmoe.config.phases import PHASE_TABLE
from medmoe.config.schema import PhaseName, PhaseSpec
from medmoe.errors import ConfigError, StoppedError
from medmoe.processes import processes
from medmoe.training.context import LOSS, SCORE, PhaseRun, RunSettings
from medmoe.training.engine import PhaseTrainer
from medmoe.training.guards import StopRequest, sigterm_asks
from medmoe.training.parallel import (
    refuse_deepspeed,
    sharding_arguments,
    shards,
    trained_parameters,
    whole,
)
from medmoe.training.saving.checkpoints import CheckpointFolder, refuse_changed
from medmoe.training.saving.state import frozen_hash, read_state
from medmoe.training.schedule import Begin, Schedule
from medmoe.training.trainable import TrainableCount, set_trainable

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
    refuse_deepspeed(settings, run.spec.average)
    _check(run)
    counts = set_trainable(model, phase, run.spec.trains)
    logger.info("%s", counts.line())
    if settings.group_by_length:
        samples = samples.grouped(run.spec.batch_size)
    folder = _folder(settings)
    facts = _facts(run, model, samples) if folder else {}
    resumed = _resumable(folder, facts, settings)
    # A model is sharded for good; the caller's stays whole.
    working = copy.deepcopy(model) if shards(settings) else model
    stop = StopRequest()
    with tempfile.TemporaryDirectory() as scratch, sigterm_asks(stop, listen=folder is not None):
        trainer = PhaseTrainer(
            run=run,
            folder=folder,
            facts=facts,
            stop=stop,
            begin=begin,
            model=working,
            args=training_arguments(run, working, scratch),
            train_dataset=samples,
            data_collator=collate,
            callbacks=list(settings.callbacks),
        )
        trainer.remove_callback(PrinterCallback)
        with closing(trainer):
            trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        kept = None if stop.asked else trainer.keep_best()
    if working is not model:
        _copy_trained(working, model)
    if stop.asked:
        raise StoppedError(
            f"{phase}: stopped by SIGTERM after step {trainer.state.global_step} of {run.steps}; "
            "its checkpoint is saved, go on with --resume"
        )
    model.eval()
    return _result(counts, trainer, kept)


def _check(run: PhaseRun) -> None:
    """Refuse to measure what cannot be measured in this way of running."""
    validation, settings = run.validation, run.settings
    if validation is None:
        return
    if validation.keep_best and settings.checkpoints is None:
        raise ConfigError("the best step is kept as a checkpoint; train with checkpoints")
    if validation.score is not None and shards(settings):
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


def training_arguments(run: PhaseRun, model: nn.Module, scratch: str) -> TrainingArguments:
    """Return the Trainer's arguments; nothing is saved, reported or shown by the Trainer itself.

    Args:
        scratch: A folder the Trainer may call its own.

    Raises:
        ConfigError: The batch cannot be divided, or the machine lacks what the settings ask for.
    """
    spec, settings = run.spec, run.settings
    # What sharding says of the arguments goes last.
    arguments = dict[str, Any](
        output_dir=scratch,
        max_steps=run.steps,
        per_device_train_batch_size=_batch_size(run.phase, spec, settings),
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=spec.learning_rate,
        lr_scheduler_type="cosine",
        # The reference rounds up.
        warmup_steps=(math.ceil if spec.batch_of == "questions" else round)(
            spec.warmup_ratio * run.steps
        ),
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        logging_steps=settings.log_every or max(1, run.steps // 50),
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=list(settings.trackers) or "none",
        run_name=settings.run_name,
        project="medmoe",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        seed=run.seed,
        dataloader_pin_memory=False,
        dataloader_num_workers=settings.loader_workers,
        bf16=settings.precision == "bf16",
        **_checkpointing(model, settings),
    )
    return TrainingArguments(**(arguments | sharding_arguments(settings)))


def _batch_size(phase: PhaseName, spec: PhaseSpec, settings: RunSettings) -> int:
    """Return how many samples one process computes at a time."""
    parts = settings.gradient_accumulation * processes()
    if parts > 1 and PHASE_TABLE[phase].whole_batch:
        raise ConfigError(
            f"{phase}: its loss compares all images of a batch, so a batch cannot be computed in "
            f"{parts} parts; run it in one process with gradient_accumulation=1"
        )
    if spec.batch_size % parts:
        fitting = -(-spec.batch_size // parts) * parts
        raise ConfigError(
            f"{phase}: batch_size ({spec.batch_size}) must be a multiple of "
            f"gradient_accumulation ({settings.gradient_accumulation}) x processes "
            f"({processes()}); use --set phases.{phase}.batch_size={fitting}"
        )
    return spec.batch_size // parts


def _checkpointing(model: nn.Module, settings: RunSettings) -> dict[str, Any]:
    """Return gradient checkpointing under the name that this release of transformers has for it."""
    # The router alone, or an encoder with its heads, has nothing worth it.
    enable = "gradient_checkpointing_enable"
    if not settings.gradient_checkpointing or not hasattr(model, enable):
        return {}
    names = {field.name for field in fields(TrainingArguments)}
    name = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if n in names)
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}
