"""Training in two processes, or on 4 bits, that is killed at random moments and resumed.

The losses in the end are those of one process that was never broken off.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.stress.ledger import Ledger
from tests.training import toy
from tests.training.faults import (
    SAVE_EVERY,
    STEPS,
    Steps,
    ended,
    forked,
    forked_pair,
    newest_step,
    records,
    settings,
)

from medmoe.config.schema import PhaseName
from medmoe.config.train_schema import LoraSpec
from medmoe.training.context import Progress, RunSettings
from medmoe.training.lora import attach_lora, hold_in_4_bits
from medmoe.training.packed import train_packed

KILLS = 3


@dataclass(frozen=True)
class Case:
    """A way to train: its phase, what differs of it, and the package that it needs."""

    phase: PhaseName = "phase3_moe"
    spec: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    package: str = "torch"
    processes: int = 2


CASES = {
    "fsdp2": Case(run={"sharding": "fsdp2"}),
    "zero2": Case(run={"sharding": "zero2"}, package="deepspeed"),
    "zero3": Case(run={"sharding": "zero3"}, package="deepspeed"),
    "questions": Case(spec={"batch_of": "questions"}),
    "qlora": Case(
        phase="phase2_instruction",
        spec={"trains": "lora", "learning_rate": 2e-2},
        package="bitsandbytes",
        processes=1,
    ),
}


def losses(case: Case, run: RunSettings, progress: Progress) -> list[float]:
    """Train to the end; return the loss of every step, those before a resume too."""
    model = toy.moe() if case.phase == "phase3_moe" else toy.dense()
    if case.spec.get("trains") == "lora":
        hold_in_4_bits(model)
        attach_lora(model, LoraSpec(rank=4, alpha=8, bits=4), seed=1)
    context = toy.context(model, STEPS, records(), case.phase)
    spec = context.spec.model_copy(update=case.spec)
    result = train_packed(replace(context, spec=spec, settings=run, progress=progress))
    return [loss for _, loss in result.curve]


@cache
def alone(name: str) -> list[float]:
    case = CASES[name]
    return losses(case, RunSettings(), toy.silent)


def start(case: Case, folder: Path, steps: Steps, words: Path) -> tuple[int, ...]:
    """Start a run that resumes; return the process ids, the first that of who writes ``words``."""

    def work() -> str:
        return json.dumps(losses(case, settings(folder, **case.run), steps.hear))

    begin: Callable[..., Any] = forked_pair if case.processes == 2 else forked
    pids = begin(work, words)
    return pids if isinstance(pids, tuple) else (pids,)


def kill(case: Case, folder: Path, chance: random.Random) -> tuple[int, int]:
    """Kill all processes of a run at a random moment soon after its next save.

    Returns:
        The last step that was heard of, and the newest checkpoint's, which loads.
    """
    steps, words = Steps(), folder.with_suffix(".words")
    before = newest_step(folder)
    pids = start(case, folder, steps, words)
    while steps.last <= before + SAVE_EVERY and not words.exists():
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.05))
    assert not words.exists(), words.read_text(encoding="utf-8")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    outcomes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert outcomes == [-signal.SIGKILL] * len(pids)
    return steps.last, newest_step(folder)


@pytest.mark.parametrize("name", CASES)
def test_killed_and_resumed_it_has_the_losses_of_one_unbroken_process(
    name: str, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, run = CASES[name], f"training_killed_{name}"
    if find_spec(case.package) is None:
        pytest.skip(f"{case.package} is not installed")
    if ledger.done(run):
        return
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    wanted, folder, chance = alone(name), tmp_path / "run", random.Random(name)
    saved: list[int] = []
    while len(saved) < KILLS and max(saved, default=0) < STEPS // 2:
        last, newest = kill(case, folder, chance)
        assert last - SAVE_EVERY <= newest < STEPS
        assert newest > max(saved, default=0)
        saved.append(newest)
    words = tmp_path / "words"
    first, *others = start(case, folder, Steps(), words)
    outcome = ended(first, words)
    for pid in others:
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
    assert outcome.status == 0, outcome.words
    found = json.loads(outcome.words)
    assert newest_step(folder) == STEPS
    # float32 sums in another order; a state that is not resumed gives 1e-2 and more
    assert found == pytest.approx(wanted, abs=1e-4)
    ledger.note(run, resumed_from=saved, losses=found, unbroken=wanted)
    ledger.add(run, wanted=1, equal=1)
