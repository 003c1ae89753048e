from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.model.tiny import (
    FAMILIES,
    Family,
    dense_model,
    moe_model,
    pixels,
    processor,
    prompt_ids,
)
from transformers import DynamicCache

STEPS = 8
# Sums in another order, logits of three layers near 10; the reference's own cache moves by 7e-6.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def generate(model: Any, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the new tokens (B, STEPS) and their logits (B, STEPS, V)."""
    out = model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=STEPS,
        min_new_tokens=STEPS,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return out.sequences[:, -STEPS:], torch.stack(out.logits, 1)


def left_padded(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    length = max(len(prompt) for prompt in prompts)
    pad = processor().tokenizer.pad_token_id
    gaps = [length - len(prompt) for prompt in prompts]
    ids = [[pad] * gap + prompt for gap, prompt in zip(gaps, prompts, strict=True)]
    mask = [[0] * gap + [1] * (length - gap) for gap in gaps]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_generation_equals_uncached(family: Family, top_k: int) -> None:
    model = moe_model(family, top_k)
    inputs = left_padded([prompt_ids("is there a mass?"), prompt_ids("why?")])
    inputs["pixel_values"] = pixels(2)
    tokens, logits = generate(model, **inputs, use_cache=True)
    again, again_logits = generate(model, **inputs, use_cache=False)
    assert torch.equal(tokens, again)
    torch.testing.assert_close(logits, again_logits, **CLOSE)


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
@torch.no_grad()
def test_the_cache_is_taken_by_either_name_under_any_release(name: str) -> None:
    model = moe_model("stablelm", 2)
    ids = torch.tensor([processor().tokenizer("is there a mass?").input_ids])
    cache = DynamicCache()
    model(input_ids=ids[:, :-1], **{name: cache})
    step = model(input_ids=ids[:, -1:], **{name: cache}).logits
    torch.testing.assert_close(step, model(input_ids=ids).logits[:, -1:], **CLOSE)
    assert cache.get_seq_length() == ids.shape[1]


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_left_padded_batch_of_three_equals_one_by_one(family: Family, top_k: int) -> None:
    model = moe_model(family, top_k)
    prompts = [prompt_ids("why?"), prompt_ids("is there a mass in the left lung?")]
    prompts.append(processor().tokenizer("no picture here").input_ids)
    images = pixels(2)
    tokens, logits = generate(model, **left_padded(prompts), pixel_values=images)
    for row, prompt in enumerate(prompts):
        image = {"pixel_values": images[row : row + 1]} if row < len(images) else {}
        alone, alone_logits = generate(model, input_ids=torch.tensor([prompt]), **image)
        assert torch.equal(tokens[row], alone[0])
        torch.testing.assert_close(logits[row], alone_logits[0], **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_encoded_images_stand_for_pixels_in_forward_and_generate(family: Family) -> None:
    model = moe_model(family)
    ids, images = torch.tensor([prompt_ids("why?"), prompt_ids("how?")]), pixels(2)
    features = model.model.encode_images(images)
    assert features.shape == (2, 16, 32)
    by_pixels = model(input_ids=ids, pixel_values=images).logits
    assert torch.equal(model(input_ids=ids, vision_features=features).logits, by_pixels)
    for cache in (True, False):
        tokens, _ = generate(model, input_ids=ids, pixel_values=images, use_cache=cache)
        same, _ = generate(model, input_ids=ids, vision_features=features, use_cache=cache)
        assert torch.equal(tokens, same)
    swapped = model(input_ids=ids, vision_features=features.flip(0)).logits
    assert not torch.allclose(swapped, by_pixels, atol=0.1)


@torch.no_grad()
def test_several_vision_layers_are_joined_as_llava_joins_them() -> None:
    model = dense_model("phi").model
    images = pixels(2)
    states = model.vision_tower(images, output_hidden_states=True).hidden_states
    model.config.vision_feature_layer = [0, -2]
    assert torch.equal(
        model.encode_images(images), torch.cat([states[0][:, 1:], states[-2][:, 1:]], -1)
    )
    model.config.vision_feature_select_strategy = "full"
    model.config.vision_feature_layer = -1
    assert torch.equal(model.encode_images(images), states[-1])


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_text_only_prompts_work_and_need_no_picture(family: Family) -> None:
    model = moe_model(family, top_k=2)
    ids = torch.tensor([processor().tokenizer("is there a mass?").input_ids])
    language = model.model.language_model(input_ids=ids).last_hidden_state
    assert torch.equal(model(input_ids=ids).logits, model.lm_head(language))
    tokens, _ = generate(model, input_ids=ids)
    assert tokens.shape == (1, STEPS)


@torch.no_grad()
def test_too_few_placeholders_for_an_image_are_refused() -> None:
    ids = torch.tensor([prompt_ids("why?")[1:]])
    with pytest.raises(ValueError, match="do not match"):
        moe_model("phi")(input_ids=ids, vision_features=torch.zeros(1, 16, 32))
