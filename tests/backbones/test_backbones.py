from __future__ import annotations

import re
from typing import Any

import pytest
from torch import nn
from transformers import AutoConfig

from medmoe.backbones.ffn import GATED, PLAIN, ffn_family
from medmoe.backbones.registry import (
    LANGUAGE_BACKBONES,
    VISION_BACKBONES,
    language_backbone,
    vision_backbone,
)
from medmoe.errors import ConfigError


def ffn(bias: bool, *parts: str) -> nn.Module:
    module = nn.Module()
    for part in parts:
        module.add_module(part, nn.Linear(2, 2, bias=bias))
    return module


def test_the_two_families_are_told_apart() -> None:
    assert ffn_family(ffn(False, "gate_proj", "up_proj", "down_proj")) is GATED
    assert ffn_family(ffn(True, "fc1", "fc2")) is PLAIN


@pytest.mark.parametrize(
    "module",
    [
        ffn(True, "gate_proj", "up_proj", "down_proj"),
        ffn(False, "fc1", "fc2"),
        ffn(False, "up_proj", "down_proj"),
        ffn(False, "w1", "w2", "w3"),
    ],
    ids=["gated with bias", "plain without bias", "no gate", "other names"],
)
def test_an_ffn_that_no_expert_could_copy_is_refused(module: nn.Module) -> None:
    names = ", ".join(name for name, _ in module.named_children())
    message = rf"has the parts \({names}\); an expert needs gate_proj.*choose another language"
    with pytest.raises(ConfigError, match=message):
        ffn_family(module)


@pytest.mark.parametrize("registry", [LANGUAGE_BACKBONES, VISION_BACKBONES])
def test_a_backbone_is_registered_under_its_own_name(registry: dict[str, Any]) -> None:
    assert {name: backbone.name for name, backbone in registry.items()} == {n: n for n in registry}


def test_an_unknown_backbone_lists_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"unknown language model 'phi2'; .*mean 'phi2_2_7b'"):
        language_backbone("phi2")
    with pytest.raises(ConfigError, match=r"unknown vision encoder 'CLIP'; choose one of: clip_l"):
        vision_backbone("CLIP")
    assert language_backbone("phi2_2_7b") is LANGUAGE_BACKBONES["phi2_2_7b"]
    assert vision_backbone("tiny_clip_64") is VISION_BACKBONES["tiny_clip_64"]


@pytest.mark.parametrize(
    "backbone", [*LANGUAGE_BACKBONES.values(), *VISION_BACKBONES.values()], ids=lambda b: b.name
)
def test_every_setting_of_a_backbone_is_one_its_architecture_knows(backbone: Any) -> None:
    """Transformers takes an unknown setting without a word, so a misspelt one has no effect."""
    stock = AutoConfig.for_model(backbone.model_type)
    made = AutoConfig.for_model(backbone.model_type, **backbone.config)
    known = set(stock.to_dict()) | {"partial_rotary_factor", "rope_theta"}
    assert set(backbone.config) <= known
    assert made.hidden_size % made.num_attention_heads == 0
    if "partial_rotary_factor" in backbone.config:
        factor = made.rope_parameters["partial_rotary_factor"]
        assert factor == backbone.config["partial_rotary_factor"]


@pytest.mark.parametrize("vision", VISION_BACKBONES.values(), ids=lambda b: b.name)
def test_an_encoders_pictures_divide_into_its_patches(vision: Any) -> None:
    assert vision.image_size % vision.patch_size == 0
    assert vision.config["image_size"] == vision.image_size
    assert vision.config["patch_size"] == vision.patch_size
    assert vision.select_strategy == "default"
    assert -vision.config["num_hidden_layers"] <= vision.select_layer < 0


@pytest.mark.parametrize("language", LANGUAGE_BACKBONES.values(), ids=lambda b: b.name)
def test_a_revision_is_a_commit_or_unknown(language: Any) -> None:
    assert language.revision is None or re.fullmatch(r"[0-9a-f]{40}", language.revision)
    assert (language.hub_id is None) == ("vocab_size" not in language.config)
