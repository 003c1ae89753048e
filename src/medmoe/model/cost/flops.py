"""FLOPs of one answer, counted by torch's own counter on the meta device, and its KV cache.

A multiply-add is two FLOPs. Counted are matrix products and convolutions, attention over the full
square as eager attention computes it, and of the experts only those that the router chooses. Norms,
activations and the choice of the token are not counted: they are below one percent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from medmoe.model.blueprint import by_layer, first_layers, meta_model
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.modeling_medmoe import CACHE


@dataclass(frozen=True, slots=True)
class AnswerFlops:
    """FLOPs of one answer to one question about one image.

    Attributes:
        vision: The encoder on one image, and the projector.
        prefill: The prompt, up to the first token of the answer.
        decode: All further tokens of the answer.
    """

    image_tokens: int
    question_tokens: int
    answer_tokens: int
    vision: int
    prefill: int
    decode: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.vision + self.prefill + self.decode


@torch.no_grad()
def answer_flops(config: MedMoeConfig, question_tokens: int, answer_tokens: int) -> AnswerFlops:
    """Count the FLOPs of one answer.

    Args:
        config: Dense or MoE; its ``num_experts_per_tok`` experts run for each token.
        question_tokens: All of the prompt but the image: system text, question, markers.
        answer_tokens: How many tokens are answered, at least 1.
    """
    cut, alike = first_layers(config)
    model: Any = meta_model(cut).eval()
    model.set_attn_implementation("eager")  # the counter does not know every fused kernel
    model.set_experts_implementation({"": "batched_mm"})  # one product per token and chosen expert
    inner, size = model.model, config.vision_config.image_size
    pixels = torch.empty(1, 3, size, size, device="meta")
    with FlopCounterMode(display=False) as counter:
        inner.multi_modal_projector(inner.encode_images(pixels))
    image_tokens, steps = config.image_seq_length, answer_tokens - 1
    prompt = image_tokens + question_tokens
    # A step grows linearly with what the cache holds: the mean of the first and the last will do.
    first, last = (_tokens(model, alike, 1, before) for before in (prompt, prompt + steps - 1))
    return AnswerFlops(
        image_tokens=image_tokens,
        question_tokens=question_tokens,
        answer_tokens=answer_tokens,
        vision=int(counter.get_total_flops()),
        prefill=_tokens(model, alike, prompt, 0),
        decode=steps * (first + last) // 2,
    )


def _tokens(model: Any, alike: list[int], tokens: int, before: int) -> int:
    """Return the FLOPs of running tokens through the language model after a cache of others."""
    text, inner = model.config.text_config, model.model.language_model
    with (
        FlopCounterMode(display=False) as counter,
        by_layer(inner.layers, counter.get_total_flops) as layers,
    ):
        out = inner(
            inputs_embeds=torch.empty(1, tokens, text.hidden_size, device="meta"),
            # Four-dimensional, so that nobody looks into it: the meta device has no values.
            attention_mask=torch.empty(1, 1, tokens, before + tokens, device="meta"),
            use_cache=True,
            **{CACHE: _cache(model.config, before)},
        )
        model.lm_head(out.last_hidden_state[:, -1:])
    outside = counter.get_total_flops() - sum(layers)
    return int(outside + sum(layers[index] for index in alike))


def _cache(config: MedMoeConfig, tokens: int) -> DynamicCache:
    """Return a cache that holds so many tokens of one prompt."""
    # Without the config, which would cut the layers with a sliding window: counted is the square.
    text, cache = config.text_config, DynamicCache()
    shape = (1, text.num_key_value_heads, tokens, head_width(text))
    for index in range(text.num_hidden_layers if tokens else 0):
        states = torch.empty(shape, device="meta")
        cache.update(states, states, index)
    return cache


def kv_cache_bytes(config: MedMoeConfig, dtype: torch.dtype, batch: int, context: int) -> int:
    """Return the bytes of the keys and values of every layer.

    2 · key-value heads · head width · bytes · ``batch`` · ``context``, for each layer; one with a
    sliding window keeps no more than that of the context.

    Args:
        dtype: Of the cache, which is the model's.
        batch: Prompts at once.
        context: Tokens of a prompt and its answer, image tokens included.
    """
    text = config.text_config
    per_layer = 2 * text.num_key_value_heads * head_width(text) * dtype.itemsize
    forms = getattr(text, "layer_types", None) or [""] * text.num_hidden_layers
    kept = (
        min(context, text.sliding_window) if form == "sliding_attention" else context
        for form in forms
    )
    return int(per_layer * batch * sum(kept))


def head_width(text: Any) -> int:
    """Return the width of one attention head of a language model's config."""
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(width)
