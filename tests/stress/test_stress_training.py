"""Training that is killed, refused by the disk, and resumed, in every phase."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.stress.ledger import Ledger
from tests.training.faults import (
    PHASES,
    STEPS,
    kill_at_random,
    resume_at,
    save_every_step,
    unbroken,
)
from tests.training.system_calls import CHANGES, WRITES, Call, Saves, can_trace

KILLS, RESUMES = 100, 10
#: Phases whose saves are stopped at every call: a small model and a large one.
SAVED = ("phase1_alignment", "phase3_moe")


@pytest.mark.parametrize("phase", PHASES)
def test_a_kill_at_a_random_moment_loses_one_interval_at_most(
    phase: str, ledger: Ledger, tmp_path: Path
) -> None:
    name = f"training_killed_{phase}"
    begun = ledger.runs.get(name, {}).get("begun", 0)
    while ledger.done(name) < KILLS:
        counts = kill_at_random(phase, tmp_path / "run", range(begun, begun + 5))
        begun += 5
        ledger.add(name, wanted=KILLS, done=counts["killed"], begun=5, **counts)
        assert begun < 4 * KILLS, "too few runs were met alive"
    run = ledger.runs[name]
    assert run["resumed"] > 0
    assert run["ends"] > 0
    faults = ("unloadable", "lost_more_than_an_interval", "other_weights_at_the_end")
    assert not {fault: run[fault] for fault in faults if run.get(fault)}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("phase", PHASES)
def test_a_resume_at_a_random_step_ends_with_the_same_weights(
    phase: str, workers: int, ledger: Ledger, tmp_path: Path
) -> None:
    name = f"training_resumed_{phase}_{workers}_workers"
    if ledger.done(name) < RESUMES:
        assert save_every_step(phase, tmp_path / "every") == unbroken(phase)
    steps = random.Random(phase).sample(range(1, STEPS), RESUMES)
    while (number := ledger.done(name)) < RESUMES:
        equal = resume_at(phase, steps[number], tmp_path / "every", tmp_path / "run", workers)
        ledger.add(name, wanted=RESUMES, equal=equal)
        shutil.rmtree(tmp_path / "run")
    assert ledger.runs[name]["equal"] == RESUMES


def _count(
    ledger: Ledger, name: str, saves: Saves, kinds: str, fault: Callable[[Call], str]
) -> list[str]:
    """Try every call of a save that is not counted yet; return what went wrong."""
    calls, found = saves.calls(kinds), []
    for call in calls[ledger.done(name) :]:
        wrong = fault(call)
        found += [wrong] if wrong else []
        ledger.add(name, wanted=len(calls), faults=bool(wrong))
    return found


@pytest.mark.skipif(not can_trace(), reason="no strace here, or it may not attach")
@pytest.mark.parametrize("phase", SAVED)
def test_a_kill_or_a_full_disk_at_any_call_of_a_save_leaves_a_checkpoint_that_loads(
    phase: str, ledger: Ledger, tmp_path: Path
) -> None:
    wrong: list[str] = []
    killed, full = f"training_save_killed_{phase}", f"training_save_disk_full_{phase}"

    def look(saves: Saves) -> None:
        wrong.extend(_count(ledger, killed, saves, CHANGES, saves.killed_at))
        wrong.extend(_count(ledger, full, saves, WRITES, saves.full_at))

    Saves(phase, tmp_path / "run").each(look)
    assert not wrong
    assert ledger.runs[killed]["faults"] == ledger.runs[full]["faults"] == 0
    assert ledger.done(killed) > 30
    assert ledger.done(full) > 10
