"""A user's own backbone folder says its sizes, its normalisation and its chat template itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.model.tiny import dense_model, language_model, processor, randomise
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from medmoe.backbones.registry import language_backbone
from medmoe.config.schema import ModelSpec
from medmoe.errors import ConfigError
from medmoe.inference.engine import MedMoe
from medmoe.model.blueprint import recipe_config
from medmoe.model.build import build_dense, build_processor
from medmoe.model.card import licence_in, model_card
from medmoe.model.checkpoint import save_model
from medmoe.model.pretrained import (
    language_of,
    load_language_model,
    load_vision_encoder,
    template_of,
    vision_of,
)

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '</s>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: Kind → class, config, side, patch, picture tokens, strategy.
ENCODERS: dict[str, Any] = {
    "clip": (CLIPVisionModel, CLIPVisionConfig, 48, 16, 9, "default"),
    "siglip": (SiglipVisionModel, SiglipVisionConfig, 40, 8, 25, "full"),
}
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def encoder_folder(kind: str, folder: Path) -> Path:
    model, config, side, patch, *_ = ENCODERS[kind]
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    randomise(model(config(image_size=side, patch_size=patch, **sizes)), 3).save_pretrained(folder)
    pictures = {"image_mean": MEAN, "image_std": STD, "size": {"shortest_edge": side}}
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    return folder


def words_folder(folder: Path, template: str | None) -> Path:
    tokenizer = processor().tokenizer
    language_model("stablelm", len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def spec_of(encoder: Path | None, words: Path | None) -> ModelSpec:
    return ModelSpec(
        language_model="stablelm2_1_6b",
        vision_encoder="clip_large_336",
        moe_layers=(0,),
        domains=("ct", "mri"),
        num_experts_per_tok=1,
        router_layers=1,
        upcycle_init="copy",
        meta_expert=False,
        language_source=None if words is None else str(words),
        vision_source=None if encoder is None else str(encoder),
    )


@pytest.mark.parametrize("kind", ENCODERS)
def test_own_backbones_are_built_saved_loaded_and_asked(kind: str, tmp_path: Path) -> None:
    _, _, side, patch, count, strategy = ENCODERS[kind]
    words = words_folder(tmp_path / "words", CHATML)
    spec = spec_of(encoder_folder(kind, tmp_path / "eyes"), words)
    vision, language = vision_of(spec), language_of(spec)
    assert (vision.image_size, vision.patch_size, vision.select_strategy) == (side, patch, strategy)
    assert (vision.mean, vision.std) == (MEAN, STD)
    assert (vision.hub_id, language.hub_id) == (None, None)
    tower = load_vision_encoder(vision, spec.vision_source)
    model, tokenizer = load_language_model(language, spec.language_source)
    template = template_of(tokenizer, language_backbone(spec.language_model), str(words))
    its_processor = build_processor(tokenizer, vision, template)
    dense = build_dense(tower, model, its_processor.tokenizer, vision, seed=0)
    assert dense.config.image_seq_length == count
    assert recipe_config(spec).image_seq_length == count
    assert not recipe_config(spec).meta_expert
    save_model(dense, its_processor, tmp_path / "model", {})
    engine = MedMoe.load(tmp_path / "model")
    picture = Image.linear_gradient("L").resize((side, side)).convert("RGB")
    pixels = engine.pixel_values([picture])
    unit = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    expected = (unit - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(pixels[0], expected)
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "why?"}]}
    turns = [question, {"role": "assistant", "content": [{"type": "text", "text": "because"}]}]
    text = engine.processor.apply_chat_template(turns)
    assert text == "<|im_start|>user\n<image>\nwhy?</s>\n<|im_start|>assistant\nbecause</s>\n"
    assert len(engine.tokenizer.segment("why?", "because").ids) > 0
    assert 0 < engine.answer(picture, "is there a mass?").confidence <= 1


def test_a_template_that_cannot_be_trained_on_gives_way_to_the_entrys(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stablelm = language_backbone("stablelm2_1_6b")
    endless = CHATML.replace("</s>", "")
    for name, template, said in (("a", None, "has no chat template"), ("b", endless, "not end an")):
        folder = words_folder(tmp_path / name, template)
        _, tokenizer = load_language_model(language_of(spec_of(None, folder)), str(folder))
        assert template_of(tokenizer, stablelm, str(folder)) == stablelm.chat_template
        assert said in caplog.text


@pytest.mark.parametrize(
    ("kind", "fix"),
    [
        ("llama", r"--set model\.language_model=.*llama3_2_1b \(docs/add_a_backbone\.md\)"),
        ("mistral", "a new entry"),
        ("clip_vision_model", "a new entry"),
    ],
)
def test_a_language_model_of_another_architecture_is_refused(
    kind: str, fix: str, tmp_path: Path
) -> None:
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    with pytest.raises(
        ConfigError,
        match=f"{tmp_path} is a '{kind}' model, stablelm2_1_6b is 'stablelm'; give the folder of "
        f"one, or use {fix}",
    ):
        language_of(spec_of(None, tmp_path))


def test_a_siglip_without_normalisation_is_refused(tmp_path: Path) -> None:
    folder = encoder_folder("siglip", tmp_path / "eyes")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match=r"no preprocessor_config\.json says how pictures"):
        vision_of(spec_of(folder, None))


def test_what_is_no_encoder_of_squares_is_refused(tmp_path: Path) -> None:
    folder = words_folder(tmp_path / "words", None)
    with pytest.raises(ConfigError, match="no encoder of square pictures in patches"):
        vision_of(spec_of(folder, None))


def test_the_card_claims_no_hub_id_of_an_own_folder(tmp_path: Path) -> None:
    vision = vision_of(spec_of(encoder_folder("clip", tmp_path / "eyes"), None))
    part = {"name": vision.name, "hub_id": vision.hub_id, "source": str(tmp_path / "eyes")}
    card = model_card(dense_model("phi"), {"base_model": {"vision_encoder": part}})
    assert "eyes, own folder" in card
    assert "base_model:" not in card


def test_the_licence_of_an_own_folder_is_read_from_its_card(tmp_path: Path) -> None:
    assert licence_in(tmp_path) is None
    for text, licence in (
        ("no head", None),
        ("---\nlicense: mit\n---\n# Eyes", "mit"),
        ("---\nlicense: other\nlicense_name: health-terms\n---\n", "health-terms"),
        ("---\nlicense: [\n---\n", None),
    ):
        (tmp_path / "README.md").write_text(text, encoding="utf-8")
        assert licence_in(tmp_path) == licence


@pytest.mark.parametrize(("licence", "shown"), [("mit", "mit"), ("gpl", "other"), (None, "other")])
def test_the_card_names_one_licence_of_data_and_base_or_says_other(
    licence: str | None, shown: str
) -> None:
    part = {"name": "eyes", "hub_id": None, "source": "eyes", "licence": licence}
    facts = {"base_model": {"vision_encoder": part}, "licences": {"clinic": "mit"}}
    card = model_card(dense_model("phi"), facts)
    assert f"\nlicense: {shown}\n" in card
    assert (licence or "own folder") in card
