"""FLOPs of one answer, counted by torch's own counter on the meta device.

A multiply-add is two FLOPs. Counted are matrix products and convolutions, attention over the full
square as eager attention computes it, and of the experts only those that the router chooses. Norms,
activations and the choice of the token are not counted: they are below one percent.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from medmoe.model.blueprint import meta_model
from medmoe.model.configuration_medmoe import MedMoeConfig


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
    model: Any = meta_model(copy.deepcopy(config)).eval()  # the settings below are its own
    model.set_attn_implementation("eager")  # the counter does not know every fused kernel
    model.set_experts_implementation({"": "batched_mm"})  # one product per token and chosen expert
    inner, width, size = model.model, config.text_config.hidden_size, config.vision_config.image_size
    pixels = torch.empty(1, 3, size, size, device="meta")
    vision = _count(lambda: inner.multi_modal_projector(inner.encode_images(pixels)))
    cache: list[Any] = []

    def run(tokens: int) -> None:
        """Run tokens through the language model, after what the cache holds."""
        before = cache[0].get_seq_length() if cache else 0
        out = inner.language_model(
            inputs_embeds=torch.empty(1, tokens, width, device="meta"),
            # Four-dimensional, so that nobody looks into it: the meta device has no values.
            attention_mask=torch.empty(1, 1, tokens, before + tokens, device="meta"),
            past_key_values=cache[0] if cache else None,
            use_cache=True,
        )
        cache[:] = [out.past_key_values]
        model.lm_head(out.last_hidden_state[:, -1:])

    image_tokens = config.image_seq_length
    prefill = _count(lambda: run(image_tokens + question_tokens))
    decode, steps = 0, answer_tokens - 1
    if steps:
        first = _count(lambda: run(1))
        _lengthen(cache[0], steps - 2)
        last = _count(lambda: run(1)) if steps > 1 else first
        decode = steps * (first + last) // 2  # a step grows linearly with the cache's length
    return AnswerFlops(image_tokens, question_tokens, answer_tokens, vision, prefill, decode)


def _count(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def _lengthen(cache: Any, tokens: int) -> None:
    """Add tokens to a cache without running them."""
    if tokens > 0:
        for index, layer in enumerate(cache.layers):
            batch, heads, _, width = layer.keys.shape
            more: Tensor = layer.keys.new_empty(batch, heads, tokens, width)
            cache.update(more, more, index)
