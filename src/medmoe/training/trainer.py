"""Runs one phase on the transformers Trainer.

The same arguments give the same weights, whatever ran before.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from medmoe.config.schema import PhaseName, PhaseSpec
from medmoe.errors import GuardError
from medmoe.training.schedule import Schedule
from medmoe.training.settings import RunSettings
from medmoe.training.trainable import TrainableCount, set_trainable

logger = logging.getLogger(__name__)

Curve = list[tuple[int, float]]
#: Called with (phase, step, steps, loss); loss is None between logs.
Progress = Callable[[PhaseName, int, int, float | None], None]


@dataclass(frozen=True, slots=True)
class PhaseResult:
    """What a phase leaves besides the trained model: its counts and learning curve."""

    counts: TrainableCount
    curve: Curve


class _OrderedTrainer(Trainer):
    """Trains in the schedule's order and stops at the first non-finite loss."""

    phase: PhaseName

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
        # the order is the schedule's own
        assert self.train_dataset is not None
        return SequentialSampler(self.train_dataset)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):  # before the optimiser spoils the weights
            raise GuardError(
                f"{self.phase}: the loss is {loss.item()} at step {self.state.global_step + 1}; "
                "lower the phase's learning_rate with --set"
            )
        return loss


class _GradientGuard(TrainerCallback):
    """Stops before the optimiser takes a step along a gradient that is not finite."""

    def __init__(self, phase: PhaseName) -> None:
        self._phase = phase

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any
    ) -> None:
        # After clipping: a norm that is not finite has made not a number of what was infinite.
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        if not torch.isfinite(norm):
            raise GuardError(
                f"{self._phase}: the gradient is not finite at step {state.global_step + 1}; "
                "lower the phase's learning_rate with --set"
            )


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
    phase: PhaseName,
    model: nn.Module,
    samples: Schedule[Any],
    collate: Callable[[Sequence[Any]], dict[str, Any]],
    spec: PhaseSpec,
    steps: int,
    seed: int,
    progress: Progress,
    settings: RunSettings | None = None,
) -> PhaseResult:
    """Train a model in place for ``steps`` steps and return its learning curve.

    Args:
        settings: How to run it; by default one process in float32 without checkpoints.

    Raises:
        GuardError: The loss, the gradient, or a weight after the last step is not finite.
    """
    counts = set_trainable(model, phase, spec.trains)
    logger.info("%s", counts.line())
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _OrderedTrainer(
            model=model,
            args=_arguments(spec, steps, seed, scratch),
            train_dataset=samples,
            data_collator=collate,
            callbacks=[_GradientGuard(phase), _Watch(phase, progress)],
        )
        trainer.phase = phase
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    _check_weights(phase, model)
    log = trainer.state.log_history
    model.eval()
    return PhaseResult(counts, [(int(row["step"]), row["loss"]) for row in log if "loss" in row])


def _check_weights(phase: PhaseName, model: nn.Module) -> None:
    """Refuse what the last step spoilt: no later loss would tell."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    bad = [name for name, p in trained if not torch.isfinite(p).all()]
    if bad:
        raise GuardError(
            f"{phase}: {len(bad)} of {len(trained)} trained tensors are not finite after the last "
            f"step, first: {bad[0]}; lower the phase's learning_rate with --set"
        )


def _arguments(spec: PhaseSpec, steps: int, seed: int, scratch: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=scratch,
        max_steps=steps,
        per_device_train_batch_size=spec.batch_size,
        learning_rate=spec.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(spec.warmup_ratio * steps),
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        logging_steps=max(1, steps // 50),
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        dataloader_pin_memory=False,
    )
