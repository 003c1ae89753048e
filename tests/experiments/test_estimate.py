"""A run's remaining time follows from its steps and the speed of each phase."""

from __future__ import annotations

from medmoe.experiments.estimate import Outlook


def outlook() -> Outlook:
    steps = {"phase1_alignment": 10, "phase2_instruction": 20}
    flops = {"phase1_alignment": 1.0, "phase2_instruction": 4.0}
    return Outlook(steps, flops)  # type: ignore[arg-type]


def test_nothing_is_said_before_anything_is_measured() -> None:
    run = outlook()
    assert (run.seconds_left(), run.share()) == (None, 0.0)
    run.note("phase1_alignment", 1, 100.0)
    assert (run.seconds_left(), run.share()) == (None, 0.0)


def test_a_phase_to_come_is_taken_to_compute_as_fast_as_those_before() -> None:
    run = outlook()
    for step in range(1, 6):
        run.note("phase1_alignment", step, 100.0 + 2 * step)
    # 2 s a step; the other phase's steps are four times as much work.
    assert run.seconds_left() == 5 * 2 + 20 * 8
    assert run.share() == 5 * 2 / (10 * 2 + 20 * 8)


def test_each_phase_has_its_own_speed_once_it_runs() -> None:
    run = outlook()
    for step in (1, 10):
        run.note("phase1_alignment", step, 2.0 * step)
    for step in (1, 11):  # after a pause between the phases, which counts for neither
        run.note("phase2_instruction", step, 500.0 + 3 * step)
    assert run.seconds_left() == 9 * 3
    assert run.share() == (10 * 2 + 11 * 3) / (10 * 2 + 20 * 3)
    run.note("phase2_instruction", 20, 560.0)
    assert (run.seconds_left(), run.share()) == (0, 1)


def test_a_resumed_phase_counts_what_it_did_before() -> None:
    run = outlook()
    for step in (7, 9):
        run.note("phase1_alignment", step, 1.0 * step)
    assert run.seconds_left() == 1 + 20 * 4
