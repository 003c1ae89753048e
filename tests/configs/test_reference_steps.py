"""The paper's recipes take the updates, learning rates and samples of the released scripts."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product

import pytest
import torch
from transformers import get_scheduler

from medmoe.config.load import config_hash, recipe_names
from medmoe.config.train_schema import TrainPhaseSpec
from medmoe.data.collate import Packed
from medmoe.experiments.data import steps_of
from medmoe.experiments.plan import relevant_of
from medmoe.experiments.recipe import load_recipe, twin_key
from medmoe.training.context import PhaseRun
from medmoe.training.schedule import QuestionSchedule
from medmoe.training.trainer import training_arguments

PAPER = [n for n in recipe_names("experiments") if n.split("_")[0] in ("phi2", "stablelm2")]
#: Phase -> GPUs, samples of each at once, accumulation: of the released scripts.
SCRIPTS = {
    "phase1_alignment": (8, 8, 1),
    "phase2_instruction": (8, 8, 2),
    "phase3_moe": (4, 8, 2),
    "sft": (4, 8, 2),
}


def reference_updates(samples: int, epochs: int, gpus: int, each: int, parts: int) -> int:
    """Count as the Trainer of the reference does: batches of a process, whole updates an epoch."""
    batches = math.ceil(math.ceil(samples / each) / gpus)
    return epochs * (batches // parts)


def in_batches(name: str) -> list[tuple[str, TrainPhaseSpec]]:
    phases = load_recipe(name).spec.phases
    return [(phase, phases[phase]) for phase in phases if phase != "phase2_router"]  # by labels


@pytest.mark.parametrize("name", PAPER)
def test_updates_and_samples_are_those_of_the_released_scripts(name: str) -> None:
    for phase, values in in_batches(name):
        assert values.samples is not None
        assert values.epochs is not None
        steps = steps_of(values, values.samples)
        assert steps == reference_updates(values.samples, values.epochs, *SCRIPTS[phase])
        assert values.batch_of == "questions"
        assert values.batch_size == math.prod(SCRIPTS[phase])
        # Of every epoch the last batch is filled up, by less than one batch.
        assert (
            0
            <= steps * values.batch_size - values.samples * values.epochs
            < (values.epochs * values.batch_size)
        )


@pytest.mark.parametrize("name", ["phi2", "stablelm2"])
def test_the_updates_of_table_1(name: str) -> None:
    steps = {phase: steps_of(v, v.samples or 0) for phase, v in in_batches(name)}
    assert steps == {"phase1_alignment": 7813, "phase2_instruction": 1407, "phase3_moe": 3798}


@pytest.mark.parametrize(("name", "phase"), [*product(["phi2", "stablelm2"], list(SCRIPTS)[:3])])
def test_the_learning_rate_is_the_reference_s_at_every_update(name: str, phase: str) -> None:
    values = dict(in_batches(name))[phase]
    steps = steps_of(values, values.samples or 0)
    run = PhaseRun(
        phase=phase,  # type: ignore[arg-type]
        spec=values,
        steps=steps,
        seed=1,
        progress=lambda *_: None,
    )
    weight = torch.nn.Linear(1, 1)
    arguments = training_arguments(run, weight, "scratch")
    optimizer = torch.optim.AdamW(weight.parameters(), lr=arguments.learning_rate)
    schedule = get_scheduler(
        arguments.lr_scheduler_type, optimizer, arguments.get_warmup_steps(steps), steps
    )
    warm, peak = math.ceil(0.03 * steps), values.learning_rate
    for update in range(steps):
        rate = peak * update / warm
        if update >= warm:
            rate = peak * (1 + math.cos(math.pi * (update - warm) / (steps - warm))) / 2
        assert schedule.get_last_lr()[0] == pytest.approx(rate, rel=1e-6, abs=1e-12)
        optimizer.step()
        schedule.step()


def test_phase_3_sees_every_question_nine_times() -> None:
    values = load_recipe("stablelm2").spec.phases["phase3_moe"]
    assert values.samples is not None
    steps = steps_of(values, values.samples)
    names = [f"question {i}" for i in range(values.samples)]
    schedule = QuestionSchedule(
        lambda index, rng: Packed(index // 8, (), ()),
        [i // 8 for i in range(values.samples)],
        values.max_questions,
        None,
        values.batch_size,
        steps * values.batch_size,
        1,
        names,
    )
    seen = Counter(schedule.names(0, len(schedule)))
    assert len(seen) == values.samples
    assert min(seen.values()) == 9
    assert sum(seen.values()) == 3798 * 64


#: Recipe -> hash of all that shapes its result, of its blind twin, and of what shapes each phase.
HASHES = {
    "tiny_phantom": ("12320e53d91d", "8776e4a349bd", "461ac910d727"),
    "tiny_real": ("37501c525366", "7e2e215b9366", "1b80acc3de2e"),
    "small_real": ("0b1b1fb405e9", "072100b03558", "e25a366aa293"),
    "small_real_disjoint": ("5405205220d9", "638ac718b934", "db9c2129341d"),
    "small_real_disjoint_sft": ("c296d68b484f", "None", "714c3f3356b3"),
    "demo_phantom": ("c0573757d3f4", "cec573e68cb1", "3cad46a2b182"),
    "demo_real": ("cedeb205e727", "8962fa71769d", "507fcc7a3ead"),
}


@pytest.mark.parametrize("name", HASHES)
def test_runs_of_recipes_in_images_go_on_and_mean_the_same(name: str) -> None:
    """A run directory is known by these hashes: a new key that says nothing changes none."""
    found = load_recipe(name, ["run.precision=float32"])
    phases = {phase: relevant_of(found.config, phase) for phase in found.spec.phases}
    hashes = found.sha256, str(twin_key(found)), config_hash(phases)
    assert tuple(digest[:12] for digest in hashes) == HASHES[name]
    assert {values.batch_of for values in found.spec.phases.values()} == {"images"}
