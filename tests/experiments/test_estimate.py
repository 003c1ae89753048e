"""What a run takes: steps, operations, memory, and how long it still is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.tiny import language_model, processor
from tests.training import toy
from torch.utils.flop_counter import FlopCounterMode

from medmoe.config.schema import PhaseName
from medmoe.config.train_schema import TrainSpec
from medmoe.data.schema import ImageRecord
from medmoe.errors import ConfigError
from medmoe.experiments.data import TrainData
from medmoe.experiments.estimate import (
    _meta_model,
    _tokens,
    estimate,
    memory_bytes,
    phase_shape,
)
from medmoe.experiments.outlook import Outlook
from medmoe.experiments.recipe import load_recipe
from medmoe.training.memory import _hidden_states
from medmoe.training.trainable import set_trainable


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


def test_a_router_tells_nothing_of_the_phases_of_a_model() -> None:
    names: tuple[PhaseName, ...] = ("phase2_router", "phase3_moe")
    run = Outlook(dict.fromkeys(names, 10), {"phase2_router": 1.0, "phase3_moe": 1000.0})
    for step in (1, 10):
        run.note("phase2_router", step, 3.0 * step)
    assert (run.seconds_left(), run.share()) == (None, 0.0)
    for step in (1, 6):
        run.note("phase3_moe", step, 100.0 + 5 * step)
    assert run.seconds_left() == 4 * 5
    alone = Outlook({"phase2_router": 10}, {"phase2_router": 1.0})
    for step in (1, 5):
        alone.note("phase2_router", step, 3.0 * step)
    assert alone.seconds_left() == 5 * 3


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


# ---- what a step takes ----

SMALL = ("model={base: smollm2_135m}", "run.gradient_accumulation=4")


def counted(spec: TrainSpec, phase: PhaseName) -> int:
    """Count a forward and a backward pass of one step by torch's own counter, without numbers."""
    with torch.device("meta"):
        model: Any = _meta_model(spec, phase)
        model.set_attn_implementation("eager")
        model.set_experts_implementation({"": "batched_mm"})
        set_trainable(model, phase, "paper")
        batch = spec.phases[phase].batch_size
        with FlopCounterMode(display=False) as counter:
            states = _hidden_states(model, batch, _tokens(spec, phase))
            model.lm_head(states).sum().backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize(
    ("phase", "pool"),
    [("phase1_alignment", 1), ("phase2_instruction", 1), ("phase3_moe", 1), ("phase3_moe", 2)],
)
def test_operations_are_those_that_torch_counts(phase: PhaseName, pool: int) -> None:
    plain = ("run.gradient_checkpointing=false", "run.answers_only=false")
    kept = (f"phases.{phase}.keep_features=true", f"phases.{phase}.batch_size=4")
    spec = load_recipe("stablelm2", [*SMALL, *plain, *kept, f"model.image_pool={pool}"]).spec
    assert phase_shape(spec, phase).flops == pytest.approx(counted(spec, phase), rel=0.03)


def test_what_is_computed_anew_or_on_demand_counts_and_a_shared_picture_counts_once() -> None:
    def flops(*settings: str, data: TrainData | None = None) -> float:
        spec = load_recipe("stablelm2", [*SMALL, *settings]).spec
        return phase_shape(spec, "phase3_moe", data).flops

    whole = flops()
    assert flops("run.gradient_checkpointing=false") < whole
    assert flops("phases.phase3_moe.keep_features=false") > whole
    spec = load_recipe("stablelm2", SMALL).spec
    images = [ImageRecord(f"i{n}", Path("none.png")) for n in range(4)]
    records = [toy.record(f"{i.id}-{n}", i) for i in images for n in range(12)]
    data = TrainData(spec, {"vqa_rad/train": records, "slake/train": [], "path_vqa/train": []})
    # Rows of 8 and 4: of 64 questions in four parts, (64 - 4) x (1 - 8 / 48) read no image.
    tokens = 64 * (576 + 32) - 50 * 576
    ratio = flops(data=data) / whole
    assert ratio == pytest.approx(tokens / (64 * (576 + 32)), rel=0.02)


def test_a_plan_for_other_hardware_says_hours_and_bytes_of_each_gpu() -> None:
    recipe = load_recipe("stablelm2", SMALL)
    phases = ("phase2_instruction",)
    plans = {
        name: estimate(recipe, phases, None, 1, hardware=name)["phases"]["phase2_instruction"]
        for name in ("1xH100", "8xA100")
    }
    one, eight = plans.values()
    assert one["steps"] == eight["steps"] == 1407
    assert one["seconds"] == pytest.approx(one["pflop"] * 1e15 / (0.4 * 989e12), rel=1e-3)
    assert one["seconds"] / eight["seconds"] == pytest.approx(8 * 312 / 989, rel=1e-3)
    assert eight["memory_gib"] < one["memory_gib"]  # an eighth of a batch
    sharded = load_recipe("stablelm2", [*SMALL, "run.sharding=zero2"])
    less = memory_bytes(sharded.spec, "phase2_instruction", devices=8)
    spared = 12 * one["trainable"] * 7 // 8
    whole = memory_bytes(recipe.spec, "phase2_instruction", devices=8)
    assert whole - less == pytest.approx(spared, rel=1e-6)
    # Two checkpoints of what trains with two moments, and the model in bfloat16.
    total = one["trainable"] + one["frozen"]
    saved = 2 * 12 * one["trainable"] + 2 * total
    assert one["disk_gib"] == pytest.approx(saved / 2**30, abs=1e-3)


@pytest.mark.parametrize("name", ["H100", "0xH100", "1xT4", "x", "1.5xA100"])
def test_hardware_nobody_knows_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"--hardware .* must read COUNTxGPU, .* 24GB, A100"):
        estimate(load_recipe("stablelm2"), (), None, 1, hardware=name)


def test_what_does_not_fit_is_said() -> None:
    plan = estimate(load_recipe("phi2"), ("phase3_moe",), None, 1, hardware="8x24GB")
    assert any(n.startswith("phase3_moe does not fit into 22 GiB: shard") for n in plan["notes"])


# ---- the folder of a backbone ----


def test_a_folder_is_held_against_the_recipe(tmp_path: Path) -> None:
    def plan() -> list[str]:
        given = f"model.language_source={tmp_path}"
        changes = [given, "model.moe_layers=[0]"]
        recipe = load_recipe("phi2", changes)
        notes: list[str] = estimate(recipe, ("phase1_alignment",), None, 1, hardware="1xA100")[
            "notes"
        ]
        return notes

    language_model("stablelm", len(processor().tokenizer)).config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"'stablelm' model, phi2_2_7b is 'phi'"):
        plan()
    narrow = language_model("phi", len(processor().tokenizer))
    narrow.config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"holds no weights \(\.safetensors, \.bin\)"):
        plan()
    narrow.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"cannot load {tmp_path}"):
        plan()
    processor().tokenizer.save_pretrained(tmp_path)
    first, *_ = plan()
    assert first == (
        f"model.language_source {tmp_path} is a phi (hidden_size 32, num_hidden_layers 3), and "
        "phi2_2_7b is a phi (hidden_size 2560, num_hidden_layers 32)"
    )


def test_the_document_says_what_the_plan_counts() -> None:
    text = Path("docs/reproduce.md").read_text(encoding="utf-8")
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()]
    table = {row[0]: row[1:] for row in cells if row and row[0].startswith("phase") and row[1:]}
    recipe = load_recipe("stablelm2")
    plan = estimate(recipe, (), None, 1, hardware="1xH100")["phases"]
    for phase, row in plan.items():
        seconds = row["seconds"]
        said = [row["steps"], row["pflop"], seconds / 3600, seconds * 989 / 312 / 3600]
        said += [row["memory_gib"], row["disk_gib"]]
        shown = [f"{n:,.0f}" for n in said[:2]] + [f"{n:.1f}" for n in said[2:]]
        assert table[phase] == shown, phase
