"""Phases 1 to 3 and SFT: each learns, and changes exactly the weights it may change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.model.tiny import FAMILIES, MOE_LAYERS, Family
from tests.training import toy

from medmoe.errors import DataError
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.training.packed import PhaseContext
from medmoe.training.phases.phase1_alignment import train_alignment
from medmoe.training.phases.phase2_instruction import train_instruction, train_sft
from medmoe.training.phases.phase3_moe import train_moe
from medmoe.training.trainer import PhaseResult

VISION = "model.vision_tower."
PROJECTOR = "model.multi_modal_projector."

Phase = Callable[[PhaseContext], PhaseResult]


def trained(
    model: MedMoeForConditionalGeneration, phase: Phase, steps: int = 4
) -> tuple[set[str], PhaseResult]:
    """Run a phase and return the names of the weights it changed, and its result."""
    before = toy.weights(model)
    result = phase(toy.context(model, steps))
    return toy.changed(before, toy.weights(model)), result


@pytest.mark.parametrize("family", FAMILIES)
def test_alignment_changes_the_projector_alone(family: Family) -> None:
    model = toy.dense(family)
    names, _ = trained(model, train_alignment)
    assert names == {name for name in model.state_dict() if name.startswith(PROJECTOR)}


@pytest.mark.parametrize("phase", [train_instruction, train_sft])
@pytest.mark.parametrize("family", FAMILIES)
def test_instruction_and_sft_leave_the_vision_encoder_unchanged(
    family: Family, phase: Phase
) -> None:
    model = toy.dense(family)
    names, _ = trained(model, phase)
    assert not {name for name in names if name.startswith(VISION)}
    layers = [f"model.language_model.layers.{n}." for n in range(3)]
    for part in (PROJECTOR, "lm_head.", "model.language_model.embed_tokens.", *layers):
        assert any(name.startswith(part) for name in names), f"{part} did not train"


@pytest.mark.parametrize("family", FAMILIES)
def test_phase_3_changes_experts_and_meta_experts_alone(family: Family) -> None:
    model = toy.moe(family)
    names, _ = trained(model, train_moe)
    allowed = {n for n in model.state_dict() if ".mlp.experts." in n or ".mlp.meta_expert." in n}
    assert names <= allowed
    for index in MOE_LAYERS:
        block = f"model.language_model.layers.{index}.mlp."
        assert any(name.startswith(f"{block}experts.") for name in names)
        meta = {name for name in allowed if name.startswith(f"{block}meta_expert.")}
        assert meta <= names  # every token passes it


@pytest.mark.parametrize(
    ("phase", "make", "most"),
    [
        (train_alignment, toy.dense, 0.995),  # a projector in front of a random language model
        (train_instruction, toy.dense, 0.97),
        (train_sft, toy.dense, 0.97),
        (train_moe, toy.moe, 0.97),
    ],
)
def test_each_phase_learns(
    phase: Phase, make: Callable[[], MedMoeForConditionalGeneration], most: float
) -> None:
    _, result = trained(make(), phase, steps=30)
    losses = [loss for _, loss in result.curve]
    assert sum(losses[-5:]) < most * sum(losses[:5])


@pytest.mark.parametrize(("phase", "make"), [(train_instruction, toy.dense), (train_moe, toy.moe)])
def test_same_seed_gives_the_same_weights_bit_for_bit(
    phase: Phase, make: Callable[[], MedMoeForConditionalGeneration]
) -> None:
    models = [make(), make()]
    for model in models:
        torch.rand(5)  # the draws of whatever ran before must not matter
        phase(toy.context(model, steps=3))
    assert not toy.changed(*(toy.weights(model) for model in models))


def test_sft_and_phase_3_see_the_same_samples_in_the_same_order() -> None:
    """The comparison of the paper's Table 4 is fair only then."""
    seen: dict[str, list[torch.Tensor]] = {"moe": [], "sft": []}
    for name, model, phase in (("moe", toy.moe(), train_moe), ("sft", toy.dense(), train_sft)):
        model.model.language_model.embed_tokens.register_forward_hook(
            lambda _, inputs, __, name=name: seen[name].append(inputs[0].clone())
        )
        phase(toy.context(model, steps=3))
    assert len(seen["moe"]) == 3
    assert all(torch.equal(a, b) for a, b in zip(seen["moe"], seen["sft"], strict=True))


def test_a_phase_without_its_records_says_which_are_missing() -> None:
    captions = [r for r in toy.phantom_records(4) if r.task == "caption"]
    message = "phase3_moe: no training record of task vqa or classification; check --data"
    with pytest.raises(DataError, match=message):
        train_moe(toy.context(toy.moe(), records=captions))
    with pytest.raises(DataError, match="phase1_alignment: no training record of task vqa or cl"):
        train_alignment(toy.context(toy.dense(), records=[]))


def test_without_captions_alignment_trains_the_projector_on_questions() -> None:
    dense = toy.dense()
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    questions = [r for r in toy.phantom_records(4) if r.task != "caption"]
    train_alignment(toy.context(dense, records=questions, steps=2))
    after = dense.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("multi_modal_projector" in name for name in changed)
