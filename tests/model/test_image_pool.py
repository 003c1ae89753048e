"""`image_pool`: n × n cells of the encoder as one image token, wherever a model goes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.experiments.micro_train import micro_recipe
from tests.model.test_own_backbones import encoder_folder, spec_of
from tests.model.tiny import (
    FAMILIES,
    MOE_LAYERS,
    VISION,
    Family,
    dense_model,
    moe_model,
    pixels,
    processor,
)
from torch import Tensor

from medmoe.backbones.registry import vision_backbone
from medmoe.errors import CheckpointError, ConfigError
from medmoe.experiments.recipe import load_recipe, twin_key
from medmoe.inference.attribution import attribute
from medmoe.inference.engine import MedMoe
from medmoe.model.adopt import adopt
from medmoe.model.blueprint import recipe_config
from medmoe.model.card import CARD
from medmoe.model.checkpoint import load_model, save_model
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.cost.flops import answer_flops
from medmoe.model.modeling_medmoe import pool_cells
from medmoe.model.pretrained import vision_of
from medmoe.model.upcycle import upcycle
from medmoe.serving.vllm.plugin import VllmConfig, VllmModel

TOKENS = 4  # 4 × 4 cells, 2 × 2 to a token
QUESTION = "Is there a mass?"


def side_by_side(map_HWD: Tensor, pool: int) -> Tensor:
    """Return the tokens of one map, cell by cell."""
    height, width, _ = map_HWD.shape
    return torch.stack(
        [
            torch.cat([map_HWD[y + dy, x + dx] for dy in range(pool) for dx in range(pool)])
            for y in range(0, height, pool)
            for x in range(0, width, pool)
        ]
    )


def prompt(pool: int) -> Tensor:
    ids = processor(pool)(images=[Image.new("RGB", (40, 30))], text=f"USER: <image>\n{QUESTION}")
    return torch.tensor(ids["input_ids"])


@pytest.mark.parametrize("pool", [1, 2, 3])
def test_a_token_is_its_cells_side_by_side(pool: int) -> None:
    maps = torch.randn(2, 6, 6, 5)
    tokens = pool_cells(maps.flatten(1, 2), pool)
    assert torch.equal(tokens, torch.stack([side_by_side(one, pool) for one in maps]))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_projector_reads_whole_tokens(family: Family) -> None:
    model = moe_model(family, pool=2)
    projector = model.model.multi_modal_projector
    cells = model.model.encode_images(pixels(3))
    assert cells.shape == (3, 16, 32)
    tokens = torch.stack([side_by_side(one.view(4, 4, -1), 2) for one in cells])
    expected = projector.linear_2(projector.act(projector.linear_1(tokens)))
    torch.testing.assert_close(projector(cells), expected)
    # The stock way, which vLLM and pipelines take, leads there too.
    stock = torch.stack(model.get_image_features(pixels(3)).pooler_output)
    assert torch.equal(stock, projector(cells))


@torch.no_grad()
def test_the_mean_of_the_cells_is_one_thing_that_it_can_learn() -> None:
    """What `efficientnet_lite2_pooled` does inside the encoder."""
    plain, pooled = (dense_model("stablelm", pool=pool).model for pool in (1, 2))
    first = plain.multi_modal_projector.linear_1.weight
    pooled.multi_modal_projector.load_state_dict(
        plain.multi_modal_projector.state_dict() | {"linear_1.weight": first.repeat(1, 4) / 4}
    )
    cells = torch.randn(2, 16, 32)
    mean = torch.nn.functional.avg_pool2d(cells.mT.unflatten(2, (4, 4)), 2).flatten(2).mT
    found, expected = pooled.multi_modal_projector(cells), plain.multi_modal_projector(mean)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_one_is_the_plain_projector() -> None:
    plain = dense_model("phi")
    assert plain.config.image_pool == 1
    assert plain.model.multi_modal_projector.linear_1.in_features == 32
    cells = torch.randn(1, 17, 32)  # any number of states, a class token among them
    assert pool_cells(cells, 1) is cells


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_processor_and_model_agree_on_the_number_of_tokens(family: Family) -> None:
    model, ids = moe_model(family, pool=2), prompt(2)
    own = processor(2)
    counted = own._get_num_multimodal_tokens(image_sizes=[(40, 30)])["num_image_tokens"]
    assert counted == [TOKENS]
    assert int((ids == own.image_token_id).sum()) == TOKENS == model.config.image_seq_length
    picture = own.image_processor([Image.new("RGB", (40, 30))], return_tensors="pt")["pixel_values"]
    by_pixels = model(input_ids=ids, pixel_values=picture).logits
    features = model.model.encode_images(picture)
    assert torch.equal(model(input_ids=ids, vision_features=features).logits, by_pixels)
    answer = MedMoe(model, own, max_new_tokens=4).answer(Image.new("RGB", (40, 30)), QUESTION)
    asked = own.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}],
        add_generation_prompt=True,
    )
    inputs = own(images=[Image.new("RGB", (40, 30))], text=asked, return_tensors="pt")
    said = model.generate(**inputs, max_new_tokens=4, do_sample=False)[
        0, inputs["input_ids"].shape[1] :
    ]
    assert answer.text == own.tokenizer.decode(said, skip_special_tokens=True).strip()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_it_comes_back_from_disk_and_goes_on_into_phase_3(family: Family, tmp_path: Path) -> None:
    dense = dense_model(family, pool=2)
    save_model(dense, processor(2), tmp_path / "model", {})
    assert json.loads((tmp_path / "model" / "config.json").read_text())["image_pool"] == 2
    assert "4, each of 2 × 2 cells" in (tmp_path / "model" / CARD).read_text()
    again, own = load_model(tmp_path / "model")
    assert own.patch_size == 2 * VISION.patch_size
    moe = upcycle(again, moe_layers=MOE_LAYERS, domains=("ct", "mri"), init="function_preserving")
    inputs = {"input_ids": prompt(2).repeat(2, 1), "pixel_values": pixels(2)}
    expected = dense(**inputs).logits
    assert torch.equal(again(**inputs).logits, expected)
    torch.testing.assert_close(moe(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
    assert moe.config.image_pool == 2


def test_a_folder_without_a_manifest_is_adopted_with_a_processor_that_counts_alike(
    tmp_path: Path,
) -> None:
    for pool in (1, 2):
        save_model(moe_model("phi", pool=pool), processor(pool), tmp_path / str(pool), {})
    (tmp_path / "2" / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match="number of image tokens 16 where the model has 4"):
        adopt(tmp_path / "2", tmp_path / "out", processor=tmp_path / "1")
    adopt(tmp_path / "2", tmp_path / "out")
    assert MedMoe.load(tmp_path / "out").answer(Image.new("L", (9, 9)), QUESTION).routing


def test_regions_are_whole_tokens() -> None:
    engine = MedMoe(moe_model("stablelm", pool=2), processor(2), max_new_tokens=2)
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    cells = attribute(engine, engine.pixel_values([picture]), QUESTION, "yes").cells
    assert np.shape(cells) == (2, 2)
    plain = MedMoe(moe_model("stablelm"), processor(), max_new_tokens=2)
    assert np.shape(attribute(plain, plain.pixel_values([picture]), QUESTION, "yes").cells) == (
        4,
        4,
    )


@torch.no_grad()
def test_vllms_model_reads_the_same_tokens() -> None:
    ours = moe_model("phi", pool=2)
    model = VllmModel(VllmConfig.from_dict(ours.config.to_dict())).eval()
    model.vision_tower.load_state_dict(ours.model.vision_tower.state_dict())
    model.multi_modal_projector.load_state_dict(ours.model.multi_modal_projector.state_dict())
    (found,) = model.get_image_features(pixels(1)).pooler_output
    assert found.shape == (TOKENS, 32)
    assert torch.equal(found, ours.get_image_features(pixels(1)).pooler_output[0])


def test_answering_costs_the_fewer_tokens() -> None:
    plain, pooled = (answer_flops(moe_model("phi", pool=pool).config, 8, 3) for pool in (1, 2))
    assert (plain.image_tokens, pooled.image_tokens) == (16, 4)
    assert pooled.prefill < 0.6 * plain.prefill
    # The first matrix has four times the inputs for a fourth of the rows; the second fewer rows.
    assert plain.vision - pooled.vision == 2 * 12 * 32 * 32


@pytest.mark.parametrize(
    ("encoder", "tokens"),
    [
        ("clip_large_336", {1: 576, 2: 144, 3: 64}),
        ("siglip_base_224", {1: 196, 2: 49}),
        ("siglip2_so400m_384", {1: 729, 3: 81}),
        ("efficientnet_lite2", {1: 100, 2: 25}),
    ],
)
def test_encoders_whose_map_divides(encoder: str, tokens: dict[int, int]) -> None:
    for pool in (1, 2, 3):
        spec = spec_of(None, None).model_copy(
            update={"vision_encoder": encoder, "image_pool": pool}
        )
        if pool not in tokens:
            with pytest.raises(ConfigError, match=rf"image_pool \({pool}\) must be 1, 2 or 3 and"):
                recipe_config(spec)
            continue
        config = recipe_config(spec)
        assert (config.image_seq_length, config.image_pool) == (tokens[pool], pool)
        blind = vision_of(spec.model_copy(update={"blind": True}))
        assert blind.image_tokens == tokens[pool]


def test_a_recipe_that_does_not_divide_is_refused_before_anything_runs(tmp_path: Path) -> None:
    line = r"image_pool \(3\) must be 1, 2 or 3 and divide the 8 × 8 cells of the vision encoder; "
    with pytest.raises(ConfigError, match=line + r"use --set model\.image_pool=2"):
        load_recipe("tiny_phantom", ["model.image_pool=3"])
    with pytest.raises(ConfigError, match=r"model\.image_pool = 4: Input should be 1, 2 or 3"):
        load_recipe("tiny_phantom", ["model.image_pool=4"])
    # Of a user's own encoder by its own sizes: 3 × 3 cells, where the entry has 24 × 24.
    spec = spec_of(encoder_folder("clip", tmp_path), None)
    assert vision_of(spec.model_copy(update={"image_pool": 3})).image_tokens == 1
    with pytest.raises(ConfigError, match=r"\(2\) .* divide the 3 × 3 cells .*image_pool=3"):
        vision_of(spec.model_copy(update={"image_pool": 2}))


def test_configs_that_fit_no_map_are_refused() -> None:
    good = dense_model("phi", pool=2).config.to_dict()
    for changes, line in (
        ({"image_pool": 3}, r"image_pool \(3\) must be 1, 2 or 3 and divide the 4 × 4 cells"),
        ({"image_pool": "2"}, r"image_pool \('2'\) must be a whole number"),
        ({"image_pool": 0}, r"image_pool \(0\) must be 1, 2 or 3"),
        (
            {"image_seq_length": 16},
            r"\(2\) makes 4 tokens of 4 × 4 cells: set image_seq_length to that",
        ),
        (
            {"vision_feature_select_strategy": "full"},
            r"leave CLIP's class token out by vision_feature_select_s",
        ),
    ):
        with pytest.raises(ConfigError, match=line):
            MedMoeConfig.from_dict(good | changes)


def test_older_recipes_keep_their_hashes_and_another_pool_has_another() -> None:
    plain, pooled = micro_recipe(), micro_recipe("model.image_pool=2")
    assert micro_recipe("model.image_pool=1").sha256 == plain.sha256 != pooled.sha256
    assert twin_key(micro_recipe("model.image_pool=1")) == twin_key(plain) != twin_key(pooled)
    assert "image_pool" not in plain.config["model"]


def test_an_entry_with_pooled_tokens_is_checked_itself() -> None:
    with pytest.raises(ConfigError, match="divide the 14 × 14 cells"):
        replace(vision_backbone("siglip_base_224"), pool=3)
