"""Short samples of the stress runs: kills, a full disk, SIGTERM, values that are not finite."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training import faults, toy
from tests.training.faults import PHASES, SAVE_EVERY, STEPS, Steps, ended, forked, settings
from tests.training.system_calls import CHANGES, WRITES, Saves, can_trace

from medmoe.errors import GuardError
from medmoe.training.packed import PhaseContext, train_packed


@pytest.mark.parametrize("phase", PHASES)
def test_a_resumed_phase_has_the_weights_and_the_curve_of_an_unbroken_one(
    phase: str, tmp_path: Path
) -> None:
    """Workers in turn, so that both are tried; the stress run tries all steps with both."""
    assert faults.save_every_step(phase, tmp_path / "every") == faults.unbroken(phase)
    number = list(PHASES).index(phase)
    assert faults.resume_at(phase, 3 + number, tmp_path / "every", tmp_path / "run", number % 2 * 2)


def test_a_killed_run_leaves_a_checkpoint_that_loads_and_resumes(tmp_path: Path) -> None:
    counts = faults.kill_at_random("phase3_moe", tmp_path / "run", range(4))
    assert counts["killed"] + counts["ended_before"] == 4
    bad = ("unloadable", "lost_more_than_an_interval", "other_weights_at_the_end")
    assert not [name for name in bad if counts[name]]


@pytest.mark.skipif(not can_trace(), reason="no strace here, or it may not attach")
def test_a_kill_or_a_full_disk_at_some_calls_of_a_save(tmp_path: Path) -> None:
    """Every ninth call; the stress run tries them all."""
    wrong: list[str] = []

    def look(saves: Saves) -> None:
        calls, writes = saves.calls(CHANGES), saves.calls(WRITES)
        assert len(calls) > 30
        assert len(writes) > 10
        wrong.extend(fault for call in calls[::9] if (fault := saves.killed_at(call)))
        wrong.extend(fault for call in writes[::6] if (fault := saves.full_at(call)))

    Saves("phase1_alignment", tmp_path / "run").each(look)
    assert not wrong


@pytest.mark.parametrize("size", [100, 5_000, 30_000])
def test_a_disk_that_takes_no_more_is_a_named_error_and_the_run_resumes(
    size: int, tmp_path: Path
) -> None:
    """The kernel refuses what goes beyond ``size`` bytes in one file."""
    folder, words = tmp_path / "run", tmp_path / "words"
    PHASES["phase1_alignment"](settings(folder), toy.silent)
    newest = STEPS - SAVE_EVERY
    shutil.rmtree(folder / f"step-{STEPS}")

    def train() -> str:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            PHASES["phase1_alignment"](settings(folder), toy.silent)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        return "ended"

    outcome = ended(forked(train, words), words)
    assert outcome.status == 3, outcome.words
    start = f"phase1_alignment: the checkpoint of step {STEPS} cannot be written to {folder} ("
    assert outcome.words.startswith(start), outcome.words
    assert f"step {newest} is whole and resumes, with --resume" in outcome.words
    assert sorted(path.name for path in folder.iterdir()) == [f"step-{newest}"]
    weights, result = PHASES["phase1_alignment"](settings(folder), toy.silent)
    assert result.resumed_from == newest
    assert faults.digest(weights) == faults.unbroken("phase1_alignment")


@pytest.mark.parametrize("workers", [0, 2])
def test_sigterm_saves_a_checkpoint_at_the_end_of_the_step_and_exits_with_143(
    workers: int, tmp_path: Path
) -> None:
    folder, words, steps = tmp_path / "run", tmp_path / "words", Steps()
    run = settings(folder, loader_workers=workers, save_every=STEPS)

    def slow(phase: Any, step: int, total: int, loss: float | None) -> None:
        steps.hear(phase, step, total, loss)
        time.sleep(0.05)

    def train() -> str:
        os.setpgrp()  # the loader processes are told, too, as a batch system tells them
        return faults.digest(PHASES["phase3_moe"](run, slow)[0])

    pid = forked(train, words)
    while steps.last < 3:
        time.sleep(0.005)
    asked, seen = time.monotonic(), steps.last
    os.killpg(pid, signal.SIGTERM)
    outcome = ended(pid, words)
    assert outcome.status == 143, outcome.words
    # seconds, where ten are allowed: the machine may be busy otherwise
    assert time.monotonic() - asked < 10
    saved = faults.newest_step(folder)
    assert seen <= saved <= seen + 2
    assert outcome.words == (
        f"phase3_moe: stopped by SIGTERM after step {saved} of {STEPS}; "
        "its checkpoint is saved, go on with --resume"
    )
    weights, result = PHASES["phase3_moe"](settings(folder), toy.silent)
    assert result.resumed_from == saved
    assert faults.digest(weights) == faults.unbroken("phase3_moe")


def test_without_checkpoints_sigterm_ends_the_process_as_always(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def hear(*_: Any) -> None:
        seen.append(signal.getsignal(signal.SIGTERM))

    toy_context = replace(toy.context(toy.moe(), 2), progress=hear)
    train_packed(toy_context)
    assert set(seen) == {before}
    train_packed(replace(toy_context, settings=settings(tmp_path / "run")))
    assert seen[-1] != before
    assert signal.getsignal(signal.SIGTERM) == before


def poisoned(image: int) -> PhaseContext:
    """Return a run in which one image's features are not a number."""
    context = toy.context(toy.moe(), STEPS, faults.records())
    context.features[image, 3, 5] = float("nan")
    return context


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_poisoned_image_stops_its_first_step_and_is_named(
    accumulation: int, tmp_path: Path
) -> None:
    context = poisoned(image=2)
    name = next(name for name, row in context.rows.items() if row == 2)
    heard: list[int] = []
    run = settings(tmp_path / "run", save_every=1, gradient_accumulation=accumulation)
    context = replace(context, settings=run, progress=lambda _, step, *rest: heard.append(step))
    with pytest.raises(GuardError, match=r"phase3_moe: the loss is nan at step \d+; samples") as it:
        train_packed(context)
    step = max(heard, default=0) + 1
    line = str(it.value)
    assert f"at step {step}; samples of the step: " in line
    assert name in line
    # the parts of a step are told apart
    listed = line.split("samples of the step: ")[1].split("; check")[0].split(", ")
    assert len(listed) <= toy.SPEC.batch_size // accumulation
    assert faults.newest_step(tmp_path / "run") == step - 1  # and what is saved is finite


def test_random_state_goes_on_where_it_was(tmp_path: Path) -> None:
    """Dropout draws from the global generator: a resume must not draw the same again."""

    def train(folder: Path, stop_at: int | None = None, resume: bool = False) -> str:
        model = toy.dense("phi")
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.2
        made = toy.context(model, STEPS, faults.records(), "phase2_instruction")
        run = settings(folder, resume=resume)

        def stop(phase: Any, step: int, steps: int, loss: float | None) -> None:
            if step == stop_at:
                raise KeyboardInterrupt

        train_packed(replace(made, settings=run, progress=stop))
        return faults.digest(model.state_dict())

    wanted = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", stop_at=7)
    assert train(tmp_path / "broken", resume=True) == wanted
    assert wanted != faults.unbroken("phase2_instruction")
