"""EfficientNet-Lite equals a plain reading of its published file, batch norms and all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.model.tiny import TEXTS, language_model, randomise
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoModel

import medmoe.model  # noqa: F401  (registers the encoder)
from medmoe.backbones.published import PUBLISHED, kept_weights
from medmoe.backbones.registry import VISION_BACKBONES, vision_backbone
from medmoe.backbones.templates import chat_template
from medmoe.config.schema import ModelSpec
from medmoe.data.tokenize import train_tokenizer
from medmoe.errors import CheckpointError, ConfigError
from medmoe.experiments.recipe import load_recipe
from medmoe.inference.engine import MedMoe
from medmoe.model.blueprint import recipe_config
from medmoe.model.build import build_dense, build_processor
from medmoe.model.checkpoint import save_model
from medmoe.model.efficientnet_lite import (
    EfficientNetLiteConfig,
    EfficientNetLiteModel,
    SameConv,
)
from medmoe.model.pretrained import load_vision_encoder, vision_of

SIZES = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
#: Blocks of each stage, by the sizes' published tables.
REPEATS = {
    "efficientnet_lite0": (1, 2, 2, 3, 3, 4, 1),
    "efficientnet_lite1": (1, 3, 3, 4, 4, 5, 1),
    "efficientnet_lite2": (1, 3, 3, 4, 4, 5, 1),
}
STRIDES = (1, 2, 2, 2, 1, 2, 1)


def published(name: str, seed: int = 0) -> dict[str, Tensor]:
    """Return random weights by the names and in the shapes of the published file."""
    model = EfficientNetLiteModel(EfficientNetLiteConfig(**vision_backbone(name).config))
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def convolution(name: str, norm: str, weight: Tensor) -> None:
        fan = weight[0].numel()
        draw = torch.randn(weight.shape, generator=generator)
        state[f"{name}.weight"] = draw * (2 / fan) ** 0.5
        channels = len(weight)
        for part in ("weight", "bias", "running_mean", "running_var"):
            values = torch.rand(channels, generator=generator)
            state[f"{norm}.{part}"] = values + 0.5 if part in ("weight", "running_var") else values

    convolution("_conv_stem", "_bn0", model.stem.weight)
    convolution("_conv_head", "_bn1", model.head.weight)
    for index, block in enumerate(model.blocks):
        there = f"_blocks.{index}."
        for part, norm in (("expand", "_bn0"), ("depthwise", "_bn1"), ("project", "_bn2")):
            layer: Any = getattr(block, part)
            if layer is not None:
                convolution(f"{there}_{part}_conv", there + norm, layer.weight)
    state["_fc.weight"], state["_fc.bias"] = torch.zeros(1000, 1280), torch.zeros(1000)
    return state


def read_plainly(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Return the last map (B, 1280, H/32, W/32) by the description, nothing folded."""

    def layer(x: Tensor, conv: str, norm: str, stride: int = 1, relu: bool = True) -> Tensor:
        weight = state[f"{conv}.weight"]
        kernel, side = weight.shape[-1], x.shape[-1]
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        x = functional.pad(x, (total // 2, total - total // 2) * 2)
        x = functional.conv2d(x, weight, None, stride, groups=x.shape[1] // weight.shape[1])
        facts = (state[f"{norm}.{part}"] for part in ("running_mean", "running_var"))
        x = functional.batch_norm(
            x, *facts, state[f"{norm}.weight"], state[f"{norm}.bias"], eps=1e-3
        )
        return x.clamp(0, 6) if relu else x

    x = layer(x, "_conv_stem", "_bn0", 2)
    index = 0
    for repeats, first in zip(REPEATS[name], STRIDES, strict=True):
        for number in range(repeats):
            there, stride, y = f"_blocks.{index}.", 1 if number else first, x
            if index:
                y = layer(y, f"{there}_expand_conv", f"{there}_bn0")
            y = layer(y, f"{there}_depthwise_conv", f"{there}_bn1", stride)
            y = layer(y, f"{there}_project_conv", f"{there}_bn2", relu=False)
            x = y + x if number else y
            index += 1
    return layer(x, "_conv_head", "_bn1")


def small(name: str, side: int = 96) -> Any:
    vision = vision_backbone(name)
    return replace(vision, config=vision.config | {"image_size": side}, image_size=side)


@pytest.mark.parametrize("name", SIZES)
def test_the_folded_encoder_equals_the_published_one(name: str, tmp_path: Path) -> None:
    state = published(name)
    torch.save(state, tmp_path / "lite.pth")
    model = load_vision_encoder(small(name), str(tmp_path))
    pixels = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = read_plainly(state, name, pixels)
        found = model(pixels, output_hidden_states=True).hidden_states[-1]
    assert found.shape == (2, 9, 1280)
    assert 0.01 < float((wanted > 0).float().mean()) < 0.99
    torch.testing.assert_close(found, wanted.flatten(2).transpose(1, 2), atol=1e-3, rtol=1e-3)


def test_pooled_tokens_are_the_means_of_four_cells(tmp_path: Path) -> None:
    torch.save(published("efficientnet_lite2"), tmp_path / "lite.pth")
    whole, pooled = (
        load_vision_encoder(small(name, 128), str(tmp_path / "lite.pth"))
        for name in ("efficientnet_lite2", "efficientnet_lite2_pooled")
    )
    pixels = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        cells = whole(pixels).last_hidden_state.view(1, 2, 2, 2, 2, 1280).mean((2, 4))
        found = pooled(pixels).last_hidden_state
    torch.testing.assert_close(found, cells.view(1, 4, 1280))


def test_saved_and_loaded_it_is_the_same_and_its_folder_says_its_size(tmp_path: Path) -> None:
    torch.save(published("efficientnet_lite0"), tmp_path / "lite.pth")
    model = load_vision_encoder(small("efficientnet_lite0"), str(tmp_path / "lite.pth"))
    model.save_pretrained(tmp_path / "saved")
    spec = ModelSpec(
        language_model="gemma3_270m",
        vision_encoder="efficientnet_lite0",
        moe_layers=(0,),
        domains=("ct", "mri"),
        num_experts_per_tok=1,
        router_layers=1,
        upcycle_init="copy",
        vision_source=str(tmp_path / "saved"),
    )
    vision = vision_of(spec)
    assert (vision.image_size, vision.patch_size, vision.select_strategy) == (96, 32, "full")
    again = load_vision_encoder(vision, spec.vision_source).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_gradients_reach_every_weight() -> None:
    config = AutoConfig.for_model("efficientnet_lite", **small("efficientnet_lite0").config)
    model = AutoModel.from_config(config).train()
    model(torch.randn(2, 3, 96, 96)).last_hidden_state.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_whole_model_with_it_reads_pixels_as_it_was_trained_to(tmp_path: Path) -> None:
    vision = small("efficientnet_lite0")
    tower = randomise(
        AutoModel.from_config(AutoConfig.for_model(vision.model_type, **vision.config)), 3, 0.05
    )
    processor = build_processor(train_tokenizer(TEXTS, 320), vision, chat_template("</s>"))
    words = language_model("stablelm", len(processor.tokenizer))
    dense = build_dense(tower, words, processor.tokenizer, vision, seed=0)
    save_model(dense, processor, tmp_path / "model", {})
    engine = MedMoe.load(tmp_path / "model")
    picture = Image.linear_gradient("L").resize((96, 96)).convert("RGB")
    wanted = (torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() - 127) / 128
    torch.testing.assert_close(engine.pixel_values([picture])[0], wanted, atol=1e-6, rtol=0)
    assert engine.model.config.image_seq_length == 9
    assert 0 < engine.answer(picture, "is there a mass?").confidence <= 1


def test_what_is_not_the_published_file_is_one_line(tmp_path: Path) -> None:
    state = published("efficientnet_lite0")
    torch.save(state, tmp_path / "lite.pth")
    with pytest.raises(CheckpointError, match="not the published weights of efficientnet_lite2"):
        load_vision_encoder(vision_backbone("efficientnet_lite2"), str(tmp_path))
    del state["_bn0.running_mean"]
    torch.save(state, tmp_path / "lite.pth")
    with pytest.raises(CheckpointError, match=r"\('_bn0.running_mean'\)"):
        load_vision_encoder(vision_backbone("efficientnet_lite0"), str(tmp_path))
    with pytest.raises(ConfigError, match="holds an EfficientNet-Lite, clip_base_16 is 'clip_v"):
        load_vision_encoder(vision_backbone("clip_base_16"), str(tmp_path))


def test_a_cell_must_fit_the_map_and_the_picture() -> None:
    for sizes in ({"patch_size": 48}, {"image_size": 100}):
        with pytest.raises(ConfigError, match="must be a multiple of 32 and divide"):
            EfficientNetLiteConfig(**sizes)


@pytest.mark.parametrize("name", SIZES)
def test_the_real_weights_are_read_exactly(name: str) -> None:
    folder = kept_weights(name)
    if folder is None:
        pytest.skip(f"the weights of {name} are not here: medmoe weights get {name}")
    model = load_vision_encoder(VISION_BACKBONES[name])
    state = torch.load(folder / PUBLISHED[name].file, weights_only=True)
    pixels = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = read_plainly(state, name, pixels).flatten(2).transpose(1, 2)
        torch.testing.assert_close(model(pixels).last_hidden_state, wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "side", "tokens"),
    [
        ("efficientnet_lite2_256", 256, 64),
        ("efficientnet_lite2_pooled_256", 256, 16),
        ("efficientnet_lite2_pooled", 320, 25),
        ("efficientnet_lite2_384", 384, 144),
        ("efficientnet_lite2_pooled_384", 384, 36),
    ],
)
def test_one_file_serves_every_resolution(
    name: str, side: int, tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "efficientnet_lite2"
    folder.mkdir()
    torch.save(published("efficientnet_lite2"), folder / PUBLISHED[name].file)
    monkeypatch.setenv("MEDMOE_WEIGHTS", str(tmp_path))
    spec = load_recipe("small_real", [f"model.vision_encoder={name}"]).spec
    vision = vision_of(spec.model)
    model = load_vision_encoder(vision)
    assert recipe_config(spec.model, None).image_seq_length == tokens
    with torch.no_grad():
        cells = model(torch.zeros(1, 3, side, side)).last_hidden_state
    assert cells.shape == (1, tokens, 1280)


def test_under_autocast_channels_apart_are_trained_in_float32_and_run_in_bfloat16() -> None:
    torch.manual_seed(0)
    layer, x = SameConv(8, 8, 5, 2, groups=8), torch.randn(2, 8, 9, 9).bfloat16()
    expected = layer(x.float())
    (wanted,) = torch.autograd.grad(expected.sum(), layer.weight)
    with torch.autocast("cpu", torch.bfloat16):
        trained = layer(x)
        with torch.no_grad():
            run = layer(x)
    assert torch.equal(trained, expected.bfloat16())
    assert torch.equal(torch.autograd.grad(trained.sum(), layer.weight)[0], wanted)
    assert layer.bias is not None
    weight, bias = layer.weight.bfloat16(), layer.bias.bfloat16()
    assert torch.equal(run, functional.conv2d(x, weight, bias, 2, 2, groups=8))
