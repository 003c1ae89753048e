"""The one table of what trains: by name, in every phase, for both families of FFN."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.model.tiny import FAMILIES, MOE_LAYERS, Family, dense_model, moe_model
from torch import nn

from medmoe.config.phases import PHASE_TABLE
from medmoe.config.schema import PHASES, PhaseName
from medmoe.training.trainable import PARTS, set_trainable

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
