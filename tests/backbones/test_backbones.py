from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from medmoe.backbones.ffn import GATED, PLAIN, ffn_family
from medmoe.backbones.published import PUBLISHED as PUBLISHED_FILES
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
    with pytest.raises(ConfigError, match=r"unknown vision encoder 'CLIP'; choose one of: clip_b"):
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
    if "num_attention_heads" in backbone.config:
        assert made.hidden_size % made.num_attention_heads == 0
    if "partial_rotary_factor" in backbone.config:
        factor = made.rope_parameters["partial_rotary_factor"]
        assert factor == backbone.config["partial_rotary_factor"]


@pytest.mark.parametrize("vision", VISION_BACKBONES.values(), ids=lambda b: b.name)
def test_an_encoder_is_described_as_its_architecture_is(vision: Any) -> None:
    assert vision.config["image_size"] == vision.image_size
    assert vision.config["patch_size"] == vision.patch_size
    # A convolutional encoder gives its last map alone.
    assert -vision.config.get("num_hidden_layers", 1) <= vision.select_layer < 0
    # Neither SigLIP nor a convolutional encoder has a class token to drop.
    clip = vision.model_type == "clip_vision_model"
    assert vision.select_strategy == ("default" if clip else "full")
    if vision.model_type == "siglip_vision_model":
        assert vision.mean == vision.std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    "backbone", [*LANGUAGE_BACKBONES.values(), *VISION_BACKBONES.values()], ids=lambda b: b.name
)
def test_what_the_hub_has_is_pinned_to_a_commit(backbone: Any) -> None:
    if backbone.hub_id is None or backbone.name == "stablelm2_1_6b":  # not known yet
        assert backbone.revision is None
    else:
        assert re.fullmatch(r"[0-9a-f]{40}", backbone.revision)


@pytest.mark.parametrize("language", LANGUAGE_BACKBONES.values(), ids=lambda b: b.name)
def test_only_a_stand_in_gets_its_vocabulary_by_training(language: Any) -> None:
    assert (language.hub_id is None) == ("vocab_size" not in language.config)


# The published cards' own numbers; a tied head is counted once.
PUBLISHED = {
    "phi2_2_7b": 2_779_683_840,
    "stablelm2_1_6b": 1_644_515_328,
    "qwen3_0_6b": 596_049_920,
    "qwen3_1_7b": 1_720_574_976,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1_7b": 1_711_376_384,
    "llama3_2_1b": 1_235_814_400,
    "gemma3_270m": 268_098_176,
    "clip_large_336": 303_507_456,
    "siglip2_so400m_384": 428_225_600,
    "medsiglip_448": 428_565_440,  # the same with 1,024 positions instead of 729
    "siglip_base_224": 92_884_224,
    "clip_base_16": 85_799_424,
    # Of their files without the classifier, and without what batch norms fold into convolutions.
    "efficientnet_lite0": 3_350_000,
    "efficientnet_lite1": 4_108_848,
    **{
        f"efficientnet_lite2{pooled}{side}": 4_782_024
        for pooled in ("", "_pooled")
        for side in ("", "_256", "_384")
    },
}


def test_every_published_backbone_has_its_number_of_weights_here() -> None:
    every = [*LANGUAGE_BACKBONES.values(), *VISION_BACKBONES.values()]
    assert set(PUBLISHED) == {
        backbone.name for backbone in every if backbone.hub_id or backbone.name in PUBLISHED_FILES
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_backbone_has_the_published_number_of_weights_at_its_real_size(name: str) -> None:
    language = name in LANGUAGE_BACKBONES
    backbone: Any = LANGUAGE_BACKBONES[name] if language else VISION_BACKBONES[name]
    config = AutoConfig.for_model(backbone.model_type, **backbone.config)
    with torch.device("meta"):
        model = (AutoModelForCausalLM if language else AutoModel).from_config(config)
    # Phi-2's card counts the bias of its head, which the stock model has.
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]
    if language:
        assert (model.lm_head.bias is not None) == backbone.lm_head_bias
        assert ffn_family(model.model.layers[0].mlp) is (PLAIN if name == "phi2_2_7b" else GATED)
    else:
        pixels = torch.empty(1, 3, backbone.image_size, backbone.image_size, device="meta")
        states = model(pixels, output_hidden_states=True).hidden_states[backbone.select_layer]
        class_token = backbone.select_strategy == "default"
        patches = (backbone.image_size // backbone.patch_size) ** 2
        assert states.shape[1] == patches + class_token
