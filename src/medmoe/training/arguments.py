"""The Trainer's arguments from a phase's values (paper, Table 11) and the run's settings."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from medmoe.config.phases import PHASE_TABLE
from medmoe.config.schema import PhaseName, PhaseSpec
from medmoe.errors import ConfigError
from medmoe.training.context import PhaseRun
from medmoe.training.parallel import processes, sharding_arguments
from medmoe.training.settings import RunSettings


def training_arguments(run: PhaseRun, model: nn.Module, scratch: str) -> TrainingArguments:
    """Return the Trainer's arguments; nothing is saved, reported or shown by the Trainer itself.

    Args:
        scratch: A folder the Trainer may call its own.

    Raises:
        ConfigError: The batch cannot be divided, or the machine lacks what the settings ask for.
    """
    spec, settings = run.spec, run.settings
    return TrainingArguments(
        output_dir=scratch,
        max_steps=run.steps,
        per_device_train_batch_size=_batch_size(run.phase, spec, settings),
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=spec.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(spec.warmup_ratio * run.steps),
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
        **sharding_arguments(settings),
    )


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
