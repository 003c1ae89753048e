"""The one table of what trains: by name, in every phase, for both families of FFN."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.model.tiny import FAMILIES, LAYERS, MOE_LAYERS, Family, dense_model, moe_model
from tests.training import toy
from tests.training.test_phase0 import TINY_VISION
from torch import nn

from medmoe.config.phases import PHASE_TABLE
from medmoe.config.schema import PHASES, PhaseName, PhaseSpec
from medmoe.model.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel
from medmoe.training.packed import train_packed
from medmoe.training.phases.phase0_encoder import EncoderPretraining
from medmoe.training.trainable import PARTS, rate_factors, set_trainable

VISION = "model.vision_tower."
PROJECTOR = "model.multi_modal_projector."
LANGUAGE = "model.language_model."


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def names(model: nn.Module, wanted: Callable[[str], bool]) -> set[str]:
    return {name for name, _ in model.named_parameters() if wanted(name)}


def test_every_phase_stands_in_the_table() -> None:
    assert list(PHASE_TABLE) == list(PHASES)


@pytest.mark.parametrize("family", FAMILIES)
def test_alignment_trains_the_projector_alone(family: Family) -> None:
    model = dense_model(family)
    set_trainable(model, "phase1_alignment")
    found = trained_names(model)
    assert found == names(model, lambda n: n.startswith(PROJECTOR))
    assert len(found) == 4  # two linear layers with biases


@pytest.mark.parametrize("phase", ["phase2_instruction", "sft"])
@pytest.mark.parametrize("family", FAMILIES)
def test_instruction_and_sft_train_all_but_the_vision_encoder(
    family: Family, phase: PhaseName
) -> None:
    model = dense_model(family)
    set_trainable(model, phase)
    assert trained_names(model) == names(model, lambda n: not n.startswith(VISION))
    assert names(model, lambda n: n.startswith(VISION))


@pytest.mark.parametrize("phase", ["phase2_instruction", "sft"])
@pytest.mark.parametrize("family", FAMILIES)
def test_decoder_layers_train_without_the_words(family: Family, phase: PhaseName) -> None:
    model = dense_model(family)
    set_trainable(model, phase, "decoder_layers")
    words = (f"{LANGUAGE}embed_tokens.", "lm_head.")
    assert trained_names(model) == names(model, lambda n: not n.startswith((VISION, *words)))
    assert names(model, lambda n: n.startswith(words))


@pytest.mark.parametrize("family", FAMILIES)
def test_phase_3_trains_experts_and_meta_experts_alone(family: Family) -> None:
    model = moe_model(family)
    set_trainable(model, "phase3_moe")
    found = trained_names(model)
    blocks = {f"{LANGUAGE}layers.{index}.mlp." for index in MOE_LAYERS}
    assert found == names(
        model,
        lambda n: any(n.startswith((f"{b}experts.", f"{b}meta_expert.")) for b in blocks),
    )
    # gated: two stacks and three matrices; plain: two stacks and two layers, all with biases
    per_block = 5 if family == "stablelm" else 8
    assert len(found) == per_block * len(blocks)


@pytest.mark.parametrize("family", FAMILIES)
def test_phase_3_freezes_every_router(family: Family) -> None:
    model = moe_model(family)
    set_trainable(model, "phase3_moe")
    routers = [p for name, p in model.named_parameters() if ".mlp.gate." in name]
    assert len(routers) == 2 * len(MOE_LAYERS)
    assert not any(p.requires_grad for p in routers)


@pytest.mark.parametrize("phase", ["phase1_alignment", "phase2_instruction", "phase3_moe", "sft"])
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_add_up(family: Family, phase: PhaseName) -> None:
    model = moe_model(family) if phase == "phase3_moe" else dense_model(family)
    counts = set_trainable(model, phase)
    assert counts.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counts.trainable + counts.frozen == sum(p.numel() for p in model.parameters())
    assert counts.trainable > 0
    assert counts.frozen > 0


def test_a_later_phase_undoes_an_earlier_one() -> None:
    model = dense_model("stablelm")
    set_trainable(model, "phase2_instruction")
    set_trainable(model, "phase1_alignment")
    assert trained_names(model) == names(model, lambda n: n.startswith(PROJECTOR))


def test_backbones_train_as_a_whole() -> None:
    for phase in ("phase0_encoder", "phase0_language", "phase0_adapt"):
        model = nn.Linear(3, 2)
        assert set_trainable(model, phase).frozen == 0


def test_phase_3_on_a_dense_model_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="nothing trains in phase3_moe"):
        set_trainable(dense_model("stablelm"), "phase3_moe")


def test_the_line_names_parts_and_counts() -> None:
    line = set_trainable(moe_model("stablelm"), "phase3_moe").line()
    assert line.startswith("phase3_moe: trains domain_experts, meta_expert (")
    assert line.endswith(" frozen)")


def test_every_variant_is_made_of_known_parts() -> None:
    named = {
        part for row in PHASE_TABLE.values() for parts in row.trains.values() for part in parts
    }
    assert named == set(PARTS)
    assert all("paper" in row.trains for row in PHASE_TABLE.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_references_variant_adds_projector_and_dense_ffns(family: Family) -> None:
    model = moe_model(family)
    set_trainable(model, "phase3_moe")
    paper = trained_names(model)
    set_trainable(model, "phase3_moe", "reference")
    added = trained_names(model) - paper
    dense = f"{LANGUAGE}layers.1.mlp."  # layers 0 and 2 are MoE layers
    assert added == names(model, lambda n: n.startswith((PROJECTOR, dense)))
    assert not [n for n in added if n.startswith(VISION)]  # CLIP's FFN is fc1, fc2 as well


@pytest.mark.parametrize("family", FAMILIES)
def test_the_learned_router_trains_besides_the_experts(family: Family) -> None:
    model = moe_model(family)
    set_trainable(model, "phase3_moe")
    paper = trained_names(model)
    set_trainable(model, "phase3_moe", "learned_router")
    assert trained_names(model) - paper == names(model, lambda n: ".mlp.gate." in n)


def test_the_references_variant_trains_what_the_reference_trains(shared: Path) -> None:
    """Its parameters' `requires_grad` in phase 3, counted by kind of part and layer."""
    listing = shared / "reference" / "stablelm" / "stage3_training_init.json"
    flags: dict[str, bool] = json.loads(listing.read_text())["requires_grad"]

    def kind(name: str) -> str:
        for part, pattern in {
            "router": r"gate\.wg|mlp\.gate\.",
            "domain_experts": r"deepspeed_experts|mlp\.experts\.",
            "meta_expert": r"meta_moe|meta_expert",
            "projector": r"mm_projector|multi_modal_projector",
            "vision": r"image_tower|vision_tower",
            "ffn": r"\.mlp\.",
        }.items():
            if re.search(pattern, name):
                return part
        return "rest"

    theirs = {kind(name) for name, trains in flags.items() if trains}
    model = moe_model("stablelm")
    set_trainable(model, "phase3_moe", "reference")
    ours = {kind(name) for name in trained_names(model)}
    assert ours == theirs
    frozen = {kind(name) for name, p in model.named_parameters() if not p.requires_grad}
    assert not ours & frozen
    assert not theirs & {kind(name) for name, trains in flags.items() if not trains}


def rates(layer_decay: float, projector_factor: float) -> PhaseSpec:
    changes = {"layer_decay": layer_decay, "projector_factor": projector_factor}
    return toy.SPEC.model_copy(update=changes)


def test_each_layer_learns_at_a_part_of_the_rate_of_the_one_above() -> None:
    model = dense_model("stablelm")
    set_trainable(model, "phase2_instruction")
    found = rate_factors(model, rates(0.5, 8.0))
    assert found["lm_head.weight"] == found["model.language_model.norm.weight"] == 1
    top = LAYERS - 1
    for layer in range(LAYERS):
        rate = found[f"model.language_model.layers.{layer}.input_layernorm.weight"]
        assert rate == 0.5 ** (top - layer)
    assert found["model.language_model.embed_tokens.weight"] == 0.5**LAYERS
    assert found["model.multi_modal_projector.linear_1.weight"] == 8


def test_what_phase_0_throws_away_learns_as_the_projector_does() -> None:
    encoder = EfficientNetLiteModel(EfficientNetLiteConfig(hidden_size=32, image_size=64))
    vision = replace(TINY_VISION, select_layer=-1, select_strategy="full")
    model = EncoderPretraining(vision, (2,), 50, 0.0, encoder)
    found = rate_factors(model, rates(0.9, 7.0))
    away = {name for name in found if not name.startswith("encoder.")}
    assert {name for name, rate in found.items() if rate == 7} == away
    last = len(encoder.blocks) - 1
    assert found["encoder.head.weight"] == found[f"encoder.blocks.{last}.project.bias"] == 1
    assert found["encoder.stem.weight"] == 0.9 ** (last + 1)


def test_a_first_step_moves_weights_by_their_own_rates() -> None:
    model = toy.dense()
    context = toy.context(model, 1, phase="phase2_instruction")
    before = toy.weights(model)
    train_packed(replace(context, spec=rates(0.5, 4.0)))
    # AdamW's first step moves a weight by its learning rate, whatever the gradient's size.
    after = toy.weights(model)
    moved = {name: float((after[name] - before[name]).abs().max()) for name in before}
    rate = context.spec.learning_rate
    layer = "model.language_model.layers.{}.mlp.down_proj.weight"
    assert moved[layer.format(LAYERS - 1)] == pytest.approx(rate, rel=1e-3)
    assert moved[layer.format(0)] == pytest.approx(rate * 0.5 ** (LAYERS - 1), rel=1e-3)
    assert moved["model.multi_modal_projector.linear_2.weight"] == pytest.approx(4 * rate, rel=1e-3)
