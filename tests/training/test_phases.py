"""Phases 1 to 3 and SFT: each learns, and changes exactly the weights it may change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.model.tiny import FAMILIES, MOE_LAYERS, Family
from tests.training import toy

from medmoe.config.schema import PhaseName
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.training.packed import train_packed
from medmoe.training.trainer import PhaseResult

VISION = "model.vision_tower."
PROJECTOR = "model.multi_modal_projector."


def trained(
    model: MedMoeForConditionalGeneration, phase: PhaseName, steps: int = 4
) -> tuple[set[str], PhaseResult]:
    """Run a phase and return the names of the weights it changed, and its result."""
    before = toy.weights(model)
    result = train_packed(toy.context(model, steps, phase=phase))
    return toy.changed(before, toy.weights(model)), result


@pytest.mark.parametrize("family", FAMILIES)
def test_alignment_changes_the_projector_alone(family: Family) -> None:
    model = toy.dense(family)
    names, _ = trained(model, "phase1_alignment")
    assert names == {name for name in model.state_dict() if name.startswith(PROJECTOR)}


@pytest.mark.parametrize("phase", ["phase2_instruction", "sft"])
@pytest.mark.parametrize("family", FAMILIES)
def test_instruction_and_sft_leave_the_vision_encoder_unchanged(
    family: Family, phase: PhaseName
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
    names, _ = trained(model, "phase3_moe")
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
        ("phase1_alignment", toy.dense, 0.995),  # a projector in front of a random language model
        ("phase2_instruction", toy.dense, 0.97),
        ("sft", toy.dense, 0.97),
        ("phase3_moe", toy.moe, 0.97),
    ],
)
def test_each_phase_learns(
    phase: PhaseName, make: Callable[[], MedMoeForConditionalGeneration], most: float
) -> None:
    _, result = trained(make(), phase, steps=30)
    losses = [loss for _, loss in result.curve]
    assert sum(losses[-5:]) < most * sum(losses[:5])


@pytest.mark.parametrize(
    ("phase", "make"), [("phase2_instruction", toy.dense), ("phase3_moe", toy.moe)]
)
def test_same_seed_gives_the_same_weights_bit_for_bit(
    phase: PhaseName, make: Callable[[], MedMoeForConditionalGeneration]
) -> None:
    models = [make(), make()]
    for model in models:
        torch.rand(5)  # the draws of whatever ran before must not matter
        train_packed(toy.context(model, steps=3, phase=phase))
    assert not toy.changed(*(toy.weights(model) for model in models))


def test_sft_and_phase_3_see_the_same_samples_in_the_same_order() -> None:
    """The comparison of the paper's Table 4 is fair only then."""
    seen: dict[str, list[torch.Tensor]] = {"moe": [], "sft": []}
    for name, model, phase in (("moe", toy.moe(), "phase3_moe"), ("sft", toy.dense(), "sft")):
        model.model.language_model.embed_tokens.register_forward_hook(
            lambda _, inputs, __, name=name: seen[name].append(inputs[0].clone())
        )
        train_packed(toy.context(model, steps=3, phase=phase))
    assert len(seen["moe"]) == 3
    assert all(torch.equal(a, b) for a, b in zip(seen["moe"], seen["sft"], strict=True))
