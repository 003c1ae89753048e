from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.model.tiny import IMAGE_TOKENS, VISION, processor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from medmoe.backbones.templates import chat_template
from medmoe.model.processing_medmoe import MedMoeProcessor, square_image_processor

MEAN, STD = VISION.mean, VISION.std


def shown(processed: Any) -> np.ndarray:
    """Return what the encoder is shown (3, H, W) in 0-255."""
    array = np.asarray(processed["pixel_values"][0])
    unit = array * np.array(STD)[:, None, None] + np.array(MEAN)[:, None, None]
    return unit * 255


@pytest.mark.parametrize("size", [(96, 32), (32, 96), (64, 64), (31, 7)])
def test_padding_to_a_square_keeps_the_whole_picture(size: tuple[int, int]) -> None:
    """Each of the picture's four sides is marked, and each mark is still seen."""
    width, height = size
    marks = {"left": (255, 0, 0), "right": (0, 255, 0), "top": (0, 0, 255), "bottom": (255, 255, 0)}
    pixels = np.full((height, width, 3), 255, np.uint8)
    w, h = max(width // 3, 1), max(height // 3, 1)
    pixels[h:-h, :w], pixels[h:-h, -w:] = marks["left"], marks["right"]
    pixels[:h], pixels[-h:] = marks["top"], marks["bottom"]
    out = shown(square_image_processor(32, MEAN, STD)(Image.fromarray(pixels)))
    assert out.shape == (3, 32, 32)
    for name, colour in marks.items():
        distance = np.abs(out - np.array(colour)[:, None, None]).max(0)
        assert distance.min() < 40, name


def test_the_border_has_the_encoders_mean_colour() -> None:
    out = shown(square_image_processor(32, MEAN, STD)(Image.new("RGB", (60, 20), "white")))
    assert np.abs(out[:, :8] - (np.array(MEAN) * 255)[:, None, None]).max() < 1
    assert out[:, 14:18].min() > 254
    # Shown to the encoder as nothing: zero after normalisation, but for 8-bit rounding.
    values = square_image_processor(32, MEAN, STD)(Image.new("RGB", (60, 20), "white"))
    assert np.abs(np.asarray(values["pixel_values"][0])[:, :8]).max() < 1 / 255 / min(STD) + 1e-6


def conversation(question: str, answer: str | None = None) -> list[dict[str, Any]]:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if answer is not None:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages


def rendered(template: str, messages: list[dict[str, Any]], ask: bool) -> str:
    text: str = processor().apply_chat_template(
        messages, chat_template=template, add_generation_prompt=ask, tokenize=False
    )
    return text


def test_prompts_are_pinned() -> None:
    plain = chat_template("</s>")
    assert rendered(plain, conversation("why?"), True) == "USER: <image>\nwhy? ASSISTANT:"
    assert (
        rendered(plain, conversation("why?", "so"), False)
        == "USER: <image>\nwhy? ASSISTANT: so</s>"
    )
    two_turns = [*conversation("why?", "so"), {"role": "user", "content": "and?"}]
    assert (
        rendered(chat_template("</s>", "Be brief. "), two_turns, True)
        == "Be brief. USER: <image>\nwhy? ASSISTANT: so</s>USER: and? ASSISTANT:"
    )
    own = [{"role": "system", "content": "Be long."}, *conversation("why?")]
    assert (
        rendered(chat_template("</s>", "Be brief. "), own, True)
        == "Be long. USER: <image>\nwhy? ASSISTANT:"
    )


def test_the_image_stands_first_wherever_it_is_given() -> None:
    content = [{"type": "text", "text": "why?"}, {"type": "image"}]
    messages = [{"role": "user", "content": content}]
    assert rendered(chat_template("</s>"), messages, True) == "USER: <image>\nwhy? ASSISTANT:"


def test_one_placeholder_becomes_one_token_for_each_patch() -> None:
    image = Image.new("RGB", (50, 20))
    out = processor()(images=image, text="USER: <image>\nwhy?", return_tensors="pt")
    assert int((out["input_ids"] == processor().image_token_id).sum()) == IMAGE_TOKENS
    counted = processor()._get_num_multimodal_tokens([(20, 50), (9, 9)])
    assert counted.num_image_tokens == [IMAGE_TOKENS, IMAGE_TOKENS]
    assert counted.num_image_patches == [1, 1]
    assert processor()._get_num_multimodal_tokens().num_image_tokens is None


def test_an_encoder_without_class_token_and_crop_size_counts_all_its_patches() -> None:
    """SigLIP: `vision_feature_select_strategy: full`, an image processor without crop size."""
    siglip = MedMoeProcessor(
        SiglipImageProcessorPil(size={"height": 32, "width": 32}),
        processor().tokenizer,
        patch_size=8,
        vision_feature_select_strategy="full",
    )
    assert siglip.image_processor.crop_size is None
    out = siglip(images=Image.new("RGB", (50, 20)), text="<image>", return_tensors="pt")
    tokens = int((out["input_ids"] == siglip.image_token_id).sum())
    assert tokens == (32 // 8) ** 2
    assert siglip._get_num_multimodal_tokens([(20, 50)]).num_image_tokens == [tokens]


def test_prompts_of_a_batch_are_padded_on_the_left_and_masked() -> None:
    out = processor()(text=["is there a mass?", "why?"], padding=True, return_tensors="pt")
    pad = processor().tokenizer.pad_token_id
    short = out["attention_mask"][1]
    gap = int((short == 0).sum())
    assert gap > 0
    assert short.tolist() == [0] * gap + [1] * (len(short) - gap)
    assert torch.equal(out["input_ids"][1, :gap], torch.full((gap,), pad))


def test_padding_is_on_the_left_after_a_round_trip(tmp_path: Path) -> None:
    processor().save_pretrained(tmp_path)
    again = MedMoeProcessor.from_pretrained(tmp_path)
    assert again.tokenizer.padding_side == "left"
    image = Image.linear_gradient("L").resize((48, 32)).convert("RGB")
    before, after = (
        p(images=image, text="<image>\nwhy?", return_tensors="pt") for p in (processor(), again)
    )
    assert all(torch.equal(before[name], after[name]) for name in before)
