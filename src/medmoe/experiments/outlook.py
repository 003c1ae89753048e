"""How far a training run is, and about how long it still takes, told while it runs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from medmoe.config.phases import PHASE_TABLE
from medmoe.config.schema import PhaseName
from medmoe.config.train_schema import TrainSpec
from medmoe.experiments.data import TrainData, steps_of
from medmoe.experiments.estimate import phase_shape, samples_of


@dataclass(slots=True)
class Outlook:
    """How far a whole training run is, and about how long it still takes.

    Each phase has its own speed, measured while it runs. A phase that has not begun is taken to do
    its operations as fast as the phases so far did theirs, so the time is about
    right only; what passes between phases is not counted.

    Attributes:
        steps: Optimiser steps of each phase.
        flops: Operations of one of its steps.
    """

    steps: Mapping[PhaseName, int]
    flops: Mapping[PhaseName, float]
    _first: dict[PhaseName, tuple[int, float]] = field(default_factory=dict)
    _last: dict[PhaseName, tuple[int, float]] = field(default_factory=dict)

    def note(self, phase: PhaseName, step: int, now: float | None = None) -> None:
        """Take note of a step done, now or at a time in seconds."""
        point = (step, time.monotonic() if now is None else now)
        self._first.setdefault(phase, point)
        self._last[phase] = point

    def seconds_left(self) -> float | None:
        """Return the seconds still to come, None where nothing has been measured."""
        paces = self._paces()
        done = {phase: self._last.get(phase, (0, 0.0))[0] for phase in self.steps}
        left = (paces[phase] * (self.steps[phase] - done[phase]) for phase in paces)
        return sum(left) if paces else None

    def share(self) -> float:
        """Return the share 0–1 of the run's time that has passed."""
        paces = self._paces()
        whole = sum(pace * self.steps[phase] for phase, pace in paces.items())
        done = sum(paces[phase] * step for phase, (step, _) in self._last.items() if paces)
        return done / whole if whole else 0.0

    def _paces(self) -> dict[PhaseName, float]:
        """Return the seconds of a step of every phase, nothing where none was measured."""
        known: dict[PhaseName, float] = {}
        seconds = flops = 0.0
        for phase, (first, begun) in self._first.items():
            last, now = self._last[phase]
            if last > first:
                known[phase] = (now - begun) / (last - first)
                if PHASE_TABLE[phase].leaves != "router":  # a layer: it tells of no other phase
                    seconds += now - begun
                    flops += self.flops[phase] * (last - first)
        if not known or (not flops and len(known) < len(self.steps)):
            return {}
        return {p: known[p] if p in known else self.flops[p] * seconds / flops for p in self.steps}


def outlook(spec: TrainSpec, phases: Sequence[PhaseName], data: TrainData, seed: int) -> Outlook:
    """Return the steps of a run's phases and what each step costs."""
    steps = {p: steps_of(spec.phases[p], samples_of(spec, p, data, seed) or 0) for p in phases}
    return Outlook(steps, {phase: phase_shape(spec, phase, data).flops for phase in phases})
