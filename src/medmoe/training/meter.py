"""Measures a phase while it trains: speed, memory, and which expert takes which domain's tokens.

One line of ``metrics.jsonl`` and one call of the listener per point of the learning curve, and per
validation. It reads what passes the model by hooks and changes nothing: a run with it gives the
weights of one without.

Shapes: B batch, S sequence, K chosen per token, E experts, D domains and one row for no domain.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from medmoe.config.schema import PhaseName
from medmoe.data.collate import IGNORE
from medmoe.domains import domain_index
from medmoe.model.moe import MoeBlock
from medmoe.training.context import LOSS, SCORE
from medmoe.training.load_balance import is_token

#: Name of the row of pictures that belong to no domain.
NO_DOMAIN = "other"


@dataclass(frozen=True, slots=True)
class Measured:
    """One point of a phase's course.

    Attributes:
        loss: Mean since the point before.
        tokens_per_second, images_per_second: Of this process, since the point before.
        memory_gib: Most memory used: of the GPU, else of the process now.
        seconds: Since the phase began (or was resumed).
        seconds_left: At the mean speed so far.
        experts: Domain → share 0–1 of its tokens by expert, over all MoE layers; empty without
            MoE layers.
    """

    phase: PhaseName
    step: int
    steps: int
    loss: float
    learning_rate: float
    tokens_per_second: float
    images_per_second: float
    memory_gib: float
    seconds: float
    seconds_left: float
    experts: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Validated:
    """One measurement on pictures that are kept apart from training.

    Attributes:
        validation_loss: Mean loss of their answers.
        strict_score: Percent of the questions answered right; None where none were asked.
    """

    phase: PhaseName
    step: int
    steps: int
    validation_loss: float
    strict_score: float | None
    validation_seconds: float


Listener = Callable[[Measured | Validated], None]


class Meter(TrainerCallback):
    """A Trainer callback that measures one phase.

    Args:
        path: ``metrics.jsonl``, appended to; points after the step that is resumed are dropped.
        modalities: Modality of each image by the name the schedule gives it.
        listener: Is told every point, e.g. a live view.
    """

    def __init__(
        self,
        phase: PhaseName,
        path: Path,
        modalities: Mapping[str, str | None],
        domains: Sequence[str],
        listener: Listener | None = None,
    ) -> None:
        self._phase, self._path, self._listener = phase, path, listener
        self._domains = tuple(domains)
        self._rows = {name: domain_index(m, domains) for name, m in modalities.items()}
        self._handles: list[Any] = []
        self._tokens: Tensor | int = 0
        self._images = self._first = 0
        self._mask: Tensor | None = None
        self._batch_rows: Tensor | None = None
        self._counts: Tensor | None = None
        self._names: Callable[[int, int], list[str]] | None = None
        self._seen = self._size = 0
        self._begun = self._last = 0.0

    # ---- the Trainer's events ----

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any
    ) -> None:
        """Attach to the model and take over the file of a run that is resumed."""
        self._first = state.global_step
        if state.is_world_process_zero:
            _keep_until(self._path, state.global_step)
        self._begun = self._last = time.perf_counter()
        # The samples of each process are only known where there is one.
        samples: Any = getattr(kwargs.get("train_dataloader"), "dataset", None)
        schedule = getattr(samples, "schedule", samples)  # of what is drawn ahead
        if args.world_size == 1 and hasattr(schedule, "rows"):
            self._names = schedule.rows
        self._size = args.per_device_train_batch_size
        self._seen = state.global_step * self._size * args.gradient_accumulation_steps
        self._handles = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after),
        ]
        blocks = [m for m in model.modules() if isinstance(m, MoeBlock)]
        self._handles += [block.gate.register_forward_hook(self._routed) for block in blocks]

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Write and tell one point."""
        if not logs or "loss" not in logs:
            return
        now = time.perf_counter()
        passed = max(now - self._last, 1e-9)
        point = Measured(
            phase=self._phase,
            step=state.global_step,
            steps=state.max_steps,
            loss=logs["loss"],
            learning_rate=logs.get("learning_rate", 0.0),
            tokens_per_second=round(int(self._tokens) / passed, 1),
            images_per_second=round(self._images / passed, 2),
            memory_gib=round(_memory(), 3),
            seconds=round(now - self._begun, 2),
            seconds_left=round(self._left(now, state), 1),
            experts=self._shares(),
        )
        self._last, self._tokens, self._images, self._counts = now, 0, 0, None
        self._tell(point, state)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        """Write and tell one measurement; its time is none of the next point's."""
        seconds = metrics["eval_runtime"]
        self._last += seconds
        loss, score = metrics[LOSS], metrics.get(SCORE)
        step, steps = state.global_step, state.max_steps
        self._tell(Validated(self._phase, step, steps, loss, score, round(seconds, 2)), state)

    def _tell(self, point: Measured | Validated, state: Any) -> None:
        if state.is_world_process_zero:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(point)) + "\n")
            if self._listener is not None:
                self._listener(point)

    def _left(self, now: float, state: Any) -> float:
        done = max(1, state.global_step - self._first)
        left: int = state.max_steps - state.global_step
        return float((now - self._begun) / done * left)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the model as it was."""
        self.detach()

    def detach(self) -> None:
        """Remove the hooks, also after a phase that was broken off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    # ---- what passes the model ----

    def _before(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if not model.training:  # a validation is no training speed
            self._mask = None
            return
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        first: Any = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        rows = 0 if first is None else len(first)
        self._images += rows if ids is None or "vision_features" in kwargs else 0
        self._mask = None
        if mask is not None:
            self._mask = is_token(mask)
            self._tokens = self._tokens + self._mask.sum()  # read when it is told: no waiting here
        elif ids is not None:
            self._tokens = self._tokens + (kwargs.get("labels", ids) != IGNORE).sum()
        self._batch_rows = self._domains_of(rows)
        self._seen += self._size

    def _domains_of(self, count: int) -> Tensor:
        """Return the domain row of each picture of the batch."""
        none = len(self._domains)
        names = self._names(self._seen, self._seen + self._size) if self._names else []
        rows = [none if (i := self._rows.get(name)) is None else i for name in names]
        return torch.tensor(rows or [none] * count)

    def _after(self, model: nn.Module, args: Any, output: Any) -> None:
        self._mask = None  # what runs from here on is a recomputation for the backward pass

    def _routed(self, gate: nn.Module, args: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
        if self._mask is None or self._batch_rows is None:
            return
        chosen_BSK = output[2]
        experts, groups = output[0].shape[-1], len(self._domains) + 1
        rows_B11 = self._batch_rows.to(chosen_BSK.device)[:, None, None]
        flat = (rows_B11 * experts + chosen_BSK)[self._mask.to(chosen_BSK.device)]
        counts = torch.bincount(flat.flatten(), minlength=groups * experts).view(groups, experts)
        self._counts = counts if self._counts is None else self._counts + counts

    def _shares(self) -> dict[str, list[float]]:
        if self._counts is None:
            return {}
        names = [*self._domains, NO_DOMAIN]
        counts = self._counts.double().cpu()
        return {
            name: [round(float(x), 4) for x in row / row.sum()]
            for name, row in zip(names, counts, strict=True)
            if row.sum() > 0
        }


def _memory() -> float:
    """Return GiB: the most that was allocated on the GPU, else what the process holds."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return float(psutil.Process().memory_info().rss) / 2**30


def _keep_until(path: Path, step: int) -> None:
    """Drop the points of a file that come after a step, and a line that was torn."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue
    path.write_text("".join(kept), encoding="utf-8")
