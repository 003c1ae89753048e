"""Backbones from a folder in the layout of the hub: weights arrive whole, or one line says why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.tiny import VISION, language_model, processor, randomise, vision_tower
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from medmoe.backbones.registry import language_backbone
from medmoe.errors import CheckpointError, ConfigError
from medmoe.model.pretrained import load_language_model, load_vision_encoder

PHI = language_backbone("phi2_2_7b")


@pytest.fixture
def phi(tmp_path: Path) -> Path:
    """A tiny Phi with its tokenizer, as the hub holds one."""
    language_model("phi", len(processor().tokenizer)).save_pretrained(tmp_path / "phi")
    processor().tokenizer.save_pretrained(tmp_path / "phi")
    return tmp_path / "phi"


def test_language_model_and_tokenizer_arrive_whole(phi: Path) -> None:
    model, tokenizer = load_language_model(PHI, str(phi))
    wanted = language_model("phi", len(processor().tokenizer)).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())
    assert tokenizer.get_vocab() == processor().tokenizer.get_vocab()


def saved_clip(folder: Path) -> Any:
    """Save a whole CLIP, its text encoder too, and return it."""
    text = CLIPTextConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision_tower().config.to_dict())
    whole: Any = randomise(CLIPModel(config), seed=8)
    whole.save_pretrained(folder)
    return whole


def test_vision_encoder_arrives_whole(tmp_path: Path) -> None:
    vision_tower().save_pretrained(tmp_path / "clip")
    model = load_vision_encoder(VISION, str(tmp_path / "clip"))
    wanted = vision_tower().state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())


def test_vision_encoder_is_taken_out_of_a_whole_clip(tmp_path: Path) -> None:
    whole = saved_clip(tmp_path / "clip")
    model = load_vision_encoder(VISION, str(tmp_path / "clip"))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        states = [
            m(images, output_hidden_states=True).hidden_states for m in (model, whole.vision_model)
        ]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_siglip_arrives_too(tmp_path: Path) -> None:
    config = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    SiglipVisionModel(config).save_pretrained(tmp_path / "siglip")
    backbone = replace(VISION, model_type="siglip_vision_model", select_strategy="full")
    assert load_vision_encoder(backbone, str(tmp_path / "siglip")).config.image_size == 32


def test_another_architecture_or_size_is_refused(phi: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a 'phi' model, stablelm2_1_6b is 'stablelm'; use"):
        load_language_model(language_backbone("stablelm2_1_6b"), str(phi))
    vision_tower().save_pretrained(tmp_path / "clip")
    with pytest.raises(ConfigError, match=r"of 32 px with patches of 8, tiny is .* of 64 px"):
        load_vision_encoder(replace(VISION, image_size=64), str(tmp_path / "clip"))


def test_a_missing_weight_is_named(phi: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(phi / "model.safetensors")
    del weights["model.layers.0.mlp.fc1.weight"]
    save_file(weights, phi / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match="1 weights of the phi model are missing, first: mode"
    ):
        load_language_model(PHI, str(phi))


def test_a_clip_that_is_published_as_pickled_tensors_alone_is_read(tmp_path: Path) -> None:
    whole = saved_clip(tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").unlink()
    torch.save(whole.state_dict(), tmp_path / "clip" / "pytorch_model.bin")
    model = load_vision_encoder(VISION, str(tmp_path / "clip"))
    wanted = whole.vision_model.state_dict()
    found = {name.removeprefix("vision_model."): t for name, t in model.state_dict().items()}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())


def test_a_pickle_of_more_than_tensors_is_not_read(phi: Path) -> None:
    (phi / "model.safetensors").unlink()
    torch.save({"model": Path("here")}, phi / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"not a file of plain tensors .* nothing of it was"):
        load_language_model(PHI, str(phi))


def test_without_network_or_folder_the_line_says_what_to_do() -> None:
    message = r"cannot load microsoft/phi-2 \(.*\); get it by `medmoe weights get phi2_2_7b` where"
    with pytest.raises(ConfigError, match=message):
        load_language_model(PHI)
    with pytest.raises(ConfigError, match="has no pretrained weights; train it by phase 0"):
        load_language_model(language_backbone("tiny_stablelm"))
