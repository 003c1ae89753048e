"""A tiny random model of every registered backbone goes the whole way, from parts to a reload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.tiny import DOMAINS, randomise
from tests.model.zoo import (
    MOE_LAYERS,
    inputs_of,
    picture,
    processor_of,
    small_dense,
    small_vision,
)

from medmoe.backbones.registry import LANGUAGE_BACKBONES, VISION_BACKBONES, language_backbone
from medmoe.data.tokenize import ConversationTokenizer
from medmoe.model.checkpoint import load_model, save_model
from medmoe.model.upcycle import UpcycleInit, upcycle

LANGUAGES = [name for name, backbone in LANGUAGE_BACKBONES.items() if backbone.hub_id]
INITS: tuple[UpcycleInit, ...] = ("copy", "function_preserving")
PAIRS = [(name, "clip_large_336") for name in LANGUAGES] + [
    ("qwen3_0_6b", name) for name in VISION_BACKBONES if name != "clip_large_336"
]


def answered(model: Any, inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of the prompt and five greedily answered tokens."""
    with torch.no_grad():
        logits = model(**inputs).logits
        tokens = model.generate(**inputs, do_sample=False, min_new_tokens=5, max_new_tokens=5)
    return logits, tokens


@pytest.mark.parametrize(("language", "vision"), PAIRS)
def test_parts_become_a_moe_model_that_learns_answers_and_reloads(
    language: str, vision: str, tmp_path: Path
) -> None:
    processor, dense = processor_of(language, vision), small_dense(language, vision)
    inputs = inputs_of(processor, "is there a mass in the left lung?", picture())
    with torch.no_grad():
        before = dense(**inputs).logits
    for init in INITS:
        moe = upcycle(
            dense, moe_layers=MOE_LAYERS, domains=DOMAINS, num_experts_per_tok=2, init=init
        )
        learns_an_answer(moe, inputs, processor.image_token_id)
        with torch.no_grad():
            same = torch.equal(moe.eval()(**inputs).logits, before)
        assert same == (init == "function_preserving")

    randomise(moe, seed=6, std=0.2)  # so that no two experts are alike when they are written
    logits, tokens = answered(moe, inputs)
    assert tokens.shape[1] == inputs["input_ids"].shape[1] + 5
    save_model(moe, processor, tmp_path / "model", {})
    again, its_processor = load_model(tmp_path / "model")
    reread = inputs_of(its_processor, "is there a mass in the left lung?", picture())
    assert all(torch.equal(inputs[name], reread[name]) for name in inputs)
    found, found_tokens = answered(again, reread)
    assert torch.equal(found, logits)
    assert torch.equal(found_tokens, tokens)


def learns_an_answer(model: Any, inputs: Any, image_token: int) -> None:
    """Run a step backwards; every expert must get a finite gradient, and some of them one."""
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == image_token, -100)
    model.train()(**inputs, labels=labels).loss.backward()
    gradients = [p.grad for name, p in model.named_parameters() if ".experts." in name]
    assert gradients
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert any(g is not None and g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("language", LANGUAGES)
def test_head_and_embeddings_are_one_tensor_where_the_family_ties_them(language: str) -> None:
    tied = language_backbone(language).config.get("tie_word_embeddings", False)
    moe = upcycle(small_dense(language, "clip_large_336"), moe_layers=[0], domains=DOMAINS)
    assert (moe.lm_head.weight is moe.get_input_embeddings().weight) == tied
    assert (moe.lm_head.bias is not None) == language_backbone(language).lm_head_bias


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_answer_is_trained_to_its_end_token_and_no_further(language: str) -> None:
    processor = processor_of(language, "clip_large_336")
    conversations = ConversationTokenizer(processor, image_tokens=16)
    told = conversations.segment("is there a mass?", "yes")
    tail = told.ids[-told.answer_length :]
    assert tail[-1] == processor.tokenizer.eos_token_id
    assert processor.tokenizer.decode(tail, skip_special_tokens=True).strip() == "yes"
    asked = conversations.segment("is there a mass?", None)
    assert told.ids[: len(asked.ids)] == asked.ids
    whole = inputs_of(processor, "is there a mass?", picture())["input_ids"][0].tolist()
    assert list(conversations.prefix() + asked.ids) == whole


@pytest.mark.parametrize("vision", VISION_BACKBONES)
def test_the_processor_writes_as_many_image_tokens_as_the_encoder_gives_states(vision: str) -> None:
    processor, dense = processor_of("qwen3_0_6b", vision), small_dense("qwen3_0_6b", vision)
    inputs = inputs_of(processor, "why?", picture())
    tokens = int((inputs["input_ids"] == processor.image_token_id).sum())
    states = dense.model.encode_images(inputs["pixel_values"])
    side = small_vision(vision).image_size // small_vision(vision).patch_size
    assert tokens == states.shape[1] == dense.config.image_seq_length == side**2
    assert processor._get_num_multimodal_tokens([(40, 52)]).num_image_tokens == [tokens]
