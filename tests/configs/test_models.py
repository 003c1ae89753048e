"""Every model recipe builds at its real size, on the meta device: shapes only, no memory."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import medmoe.recipes
from medmoe.backbones.registry import LANGUAGE_BACKBONES, vision_backbone
from medmoe.config.load import check, recipe
from medmoe.config.schema import ModelSpec
from medmoe.model.blueprint import meta_model, recipe_config
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration

FOLDER = Path(medmoe.recipes.__file__).parent / "models"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
# Billions of weights: in all, active with top-1 and the meta expert, active with top-2.
PAPER = {"phi2_2_7b": (6.45, 3.93, 4.77), "stablelm2_1_6b": (3.62, 2.37, 2.78)}


def recipe_model(name: str) -> MedMoeForConditionalGeneration:
    spec = check(ModelSpec, recipe("models", name), name)
    return meta_model(recipe_config(spec, vocab_size=600))


def weights(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_every_model_recipe_builds_on_the_meta_device(name: str) -> None:
    started = time.monotonic()
    model = recipe_model(name)
    assert time.monotonic() - started < 20
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    spec = check(ModelSpec, recipe("models", name), name)
    assert tuple(model.moe_blocks) == spec.moe_layers
    # The paper: the FFN of every second decoder layer.
    depth = len(model.model.language_model.layers)
    assert spec.moe_layers == tuple(range(0, depth, 2))
    assert len(spec.domains) == model.config.num_experts == 4
    vision = vision_backbone(spec.vision_encoder)
    states = model.model.encode_images(
        torch.empty(1, 3, vision.image_size, vision.image_size, device="meta")
    )
    assert states.shape[1] == model.config.image_seq_length


@pytest.mark.parametrize("name", PAPER)
def test_real_models_have_the_papers_number_of_weights(name: str) -> None:
    model = recipe_model(name)
    total = weights(model)
    expert = sum(weights(block.experts) // 4 for block in model.moe_blocks.values())
    counts = (total, total - 3 * expert, total - 2 * expert)
    assert tuple(round(count / 1e9, 2) for count in counts) == PAPER[name]
    assert round(weights(model.model.vision_tower) / 1e9, 2) == 0.30
    # The counts hold for separate input and output embeddings.
    assert not model.config.tie_word_embeddings
    assert model.lm_head.weight is not model.get_input_embeddings().weight


@pytest.mark.parametrize(
    ("name", "file"), [("phi2_2_7b", "phi2"), ("stablelm2_1_6b", "stablelm2_1_6b")]
)
def test_real_models_have_the_shapes_of_the_reference(name: str, file: str, shared: Path) -> None:
    """Every tensor of the language model outside the MoE blocks, by name and shape."""
    listing = shared / "reference" / "keys" / f"{file}_stage3_keys.json"
    reference = {
        key: tuple(shape)
        for key, (shape, _) in json.loads(listing.read_text())["keys"].items()
        if not re.search(r"deepspeed_moe|meta_moe|mm_projector|image_tower", key)
    }
    model = recipe_model(name)
    ours = {
        f"model.{key}": tuple(tensor.shape)
        for key, tensor in model.model.language_model.state_dict().items()
        if not re.search(r"mlp\.(gate|experts|meta_expert)\.", key)
    } | {f"lm_head.{key}": tuple(t.shape) for key, t in model.lm_head.state_dict().items()}
    # The reference drops the bias that phi-2's head has.
    assert set(ours) - set(reference) == ({"lm_head.bias"} if name == "phi2_2_7b" else set())
    assert {key: ours[key] for key in reference} == reference


def test_every_language_model_that_can_be_had_has_a_recipe() -> None:
    used = {recipe("models", name)["language_model"] for name in NAMES}
    assert used == set(LANGUAGE_BACKBONES)


def test_top2_is_one_setting_away() -> None:
    spec = recipe("models", "phi2_2_7b") | {"num_experts_per_tok": 2}
    assert check(ModelSpec, spec, "x").num_experts_per_tok == 2
