"""Bytes of a model that answers: its weights, and the KV cache of a batch (paper, Table 8).

Not in it: the runtime's own memory, and the short-lived tensors of a forward pass.
"""

from __future__ import annotations

from typing import Any

import torch

from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.cost.parameters import count_by_part
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration


def load_bytes(model: MedMoeForConditionalGeneration, dtype: torch.dtype) -> int:
    """Return the bytes of all weights in a dtype; the routers stay in float32."""
    counts = count_by_part(model)
    routers = counts.pop("routers")
    return sum(counts.values()) * dtype.itemsize + routers * torch.float32.itemsize


def kv_cache_bytes(config: MedMoeConfig, dtype: torch.dtype, batch: int, context: int) -> int:
    """Return the bytes of the keys and values of every layer.

    2 · key-value heads · head width · bytes · ``batch`` · ``context``, for each layer; one with a
    sliding window keeps no more than that of the context.

    Args:
        config: Dense or MoE.
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
