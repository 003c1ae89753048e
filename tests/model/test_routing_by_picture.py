"""`routing: image`: each row's first picture decides for all its tokens, in every layer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.model.tiny import (
    FAMILIES,
    IMAGE_TOKENS,
    MOE_LAYERS,
    Family,
    moe_model,
    pixels,
    processor,
    prompt_ids,
)
from torch import Tensor

from medmoe.data.collate import Packed, pack_batch
from medmoe.data.tokenize import ConversationTokenizer
from medmoe.errors import ConfigError
from medmoe.model.moe import Router
from medmoe.routing.hooks import ffn_inputs
from medmoe.routing.trace import record_routing
from medmoe.training.trainable import set_trainable

TEXTS = ("Is there a mass in the left lung?", "What organ is this?")


def batch_of(texts: Sequence[str], pictures: int = 1) -> dict[str, Tensor]:
    """Return rows of pictures and a text, padded on the left."""
    rows = [prompt_ids("")[:IMAGE_TOKENS] * (pictures - 1) + prompt_ids(text) for text in texts]
    length, pad = max(map(len, rows)), processor().tokenizer.pad_token_id
    return {
        "input_ids": torch.tensor([[pad] * (length - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (length - len(r)) + [1] * len(r) for r in rows]),
        "pixel_values": pixels(len(rows) * pictures, seed=4),
    }


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_all_tokens_and_layers_follow_the_mean_of_the_first_picture(
    family: Family, top_k: int
) -> None:
    model = moe_model(family, top_k, routing="image")
    batch = batch_of(TEXTS, pictures=2)
    with ffn_inputs(model, MOE_LAYERS) as read, record_routing(model) as trace:
        model(**batch)
    for row, ids in enumerate(batch["input_ids"]):
        first = (ids == model.config.image_token_id).nonzero()[:IMAGE_TOKENS, 0]
        gate: Any = model.moe_blocks[MOE_LAYERS[0]].gate
        expected = gate.logits(read[0][row, first].mean(0)[None, None])[0, 0]
        for layer in MOE_LAYERS:
            own = torch.from_numpy(trace.logits(layer)[trace.rows == row]).float()
            torch.testing.assert_close(own, expected.expand_as(own))
            assert len({tuple(e) for e in trace.experts(layer)[trace.rows == row]}) == 1
    token_by_token = moe_model(family, top_k)
    with record_routing(token_by_token) as other:
        token_by_token(**batch)
    assert len({tuple(e) for e in other.experts(MOE_LAYERS[0])}) > 1, "there is what to tell apart"


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_rows_do_not_see_each_other_and_words_alone_are_routed_by_token(family: Family) -> None:
    model, plain = moe_model(family, routing="image"), moe_model(family)
    batch = batch_of(TEXTS)
    words = processor().tokenizer("is there a mass").input_ids
    pad = processor().tokenizer.pad_token_id
    short = batch["input_ids"].shape[1] - len(words)
    ids = torch.cat([batch["input_ids"], torch.tensor([[pad] * short + words])])
    mask = torch.cat([batch["attention_mask"], torch.tensor([[0] * short + [1] * len(words)])])
    together = model(input_ids=ids, attention_mask=mask, pixel_values=batch["pixel_values"]).logits
    for row, text in enumerate(TEXTS):
        alone = torch.tensor([prompt_ids(text)])
        found = model(input_ids=alone, pixel_values=batch["pixel_values"][row : row + 1]).logits
        torch.testing.assert_close(together[row, -1], found[0, -1], rtol=1e-4, atol=1e-4)
    by_token = plain(input_ids=torch.tensor([words])).logits
    torch.testing.assert_close(together[2, -1], by_token[0, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_generation_with_a_cache_is_generation_without(family: Family) -> None:
    model, batch = moe_model(family, routing="image"), batch_of(TEXTS)
    settings: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    with record_routing(model) as trace:
        cached = model.generate(**batch, **settings)
    for layer in MOE_LAYERS:
        for row in range(2):
            assert len({tuple(e) for e in trace.experts(layer)[trace.rows == row]}) == 1
    assert torch.equal(cached, model.generate(**batch, **settings, use_cache=False))
    beams = model.generate(**batch, **settings, num_beams=3)
    assert torch.equal(beams, model.generate(**batch, **settings, num_beams=3, use_cache=False))


@torch.no_grad()
def test_packed_questions_are_decided_on_as_alone() -> None:
    model = moe_model("phi", routing="image")
    tokens = ConversationTokenizer(processor(), IMAGE_TOKENS)
    segments = tuple(tokens.segment(text, "yes") for text in TEXTS)
    pad = processor().tokenizer.pad_token_id
    features = model.model.encode_images(pixels(1))
    seen = []
    for chosen in (segments, segments[:1], segments[1:]):
        batch = pack_batch([Packed(0, tokens.prefix(), chosen)], pad)
        with record_routing(model) as trace:
            model(**batch, vision_features=features)
        seen.append(trace.logits(MOE_LAYERS[-1])[0])
    torch.testing.assert_close(seen[1], seen[0])
    torch.testing.assert_close(seen[2], seen[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_learned_router_learns_from_the_decision_recomputed_or_not(family: Family) -> None:
    found = []
    for checkpointing in (False, True):
        model = moe_model(family, top_k=2, routing="image").train()
        set_trainable(model, "phase3_moe", "learned_router")
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        batch = batch_of(TEXTS)
        model(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()
        copy.deepcopy(model)  # as averaging does: what a pass has left must not hinder it
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    plain, again = found
    first, last = (f"model.language_model.layers.{i}.mlp.gate.fc1.weight" for i in MOE_LAYERS)
    assert plain[first].abs().sum() > 0
    assert plain[last].abs().sum() == 0
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        assert gradient.isfinite().all(), name
        torch.testing.assert_close(again[name], gradient, msg=name)


@torch.no_grad()
def test_the_choice_is_saved_and_what_cannot_carry_a_decision_refuses(tmp_path: Any) -> None:
    model = moe_model("stablelm", routing="image")
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    batch = batch_of(TEXTS)
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)
    gates: list[Any] = [block.gate for block in loaded.moe_blocks.values()]
    assert [isinstance(g, Router) and g.decides for g in gates] == [True, False]
    embeds = model.model.embed(batch["input_ids"], None)
    with pytest.raises(ConfigError, match="give input_ids, or picture_tokens with the embeddings"):
        model(inputs_embeds=embeds)
    with pytest.raises(ConfigError, match="vLLM routes token by token"):
        model.config.refuse_routing_by_picture("vLLM")
    moe_model("stablelm").config.refuse_routing_by_picture("vLLM")
