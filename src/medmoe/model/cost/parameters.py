"""Counts of weights: in all, by part, activated per token (paper, Table 13, corrected), in bytes.

A tied output head is counted once, with the embeddings.
"""

from __future__ import annotations

from typing import Literal

import torch

from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration

Part = Literal[
    "vision_encoder",
    "projector",
    "embeddings",
    "attention_and_norms",
    "dense_ffns",
    "meta_experts",
    "domain_experts",
    "routers",
    "head",
]
#: Part -> a piece of the names of its parameters; the first that fits decides.
_PARTS: dict[Part, str] = {
    "vision_encoder": "model.vision_tower.",
    "projector": "model.multi_modal_projector.",
    "domain_experts": ".mlp.experts.",
    "meta_experts": ".mlp.meta_expert.",
    "routers": ".mlp.gate.",
    "dense_ffns": ".mlp.",
    "embeddings": ".embed_tokens.",
    "head": "lm_head.",
    "attention_and_norms": "",
}


def count_by_part(model: MedMoeForConditionalGeneration) -> dict[Part, int]:
    """Return how many weights each part of a model has; the sum is the whole model."""
    counts = dict.fromkeys(_PARTS, 0)
    for name, parameter in model.named_parameters():
        part = next(part for part, piece in _PARTS.items() if piece in name)
        counts[part] += parameter.numel()
    return counts


def total_parameters(model: MedMoeForConditionalGeneration) -> int:
    """Return how many weights a model has."""
    return sum(count_by_part(model).values())


def parameters_of(model: MedMoeForConditionalGeneration) -> dict[str, int]:
    """Return how many parameters a model has, ``total`` and ``activated`` for a token."""
    return {"total": total_parameters(model), "activated": activated_parameters(model)}


def activated_parameters(model: MedMoeForConditionalGeneration) -> int:
    """Return how many weights one token passes: all but the experts that are not chosen.

    The vision encoder is in it, as in the paper's own totals, though text tokens do not pass it.
    """
    counts = count_by_part(model)
    experts = model.config.num_experts
    idle = experts - model.config.num_experts_per_tok
    return sum(counts.values()) - counts["domain_experts"] * idle // experts


def load_bytes(model: MedMoeForConditionalGeneration, dtype: torch.dtype) -> int:
    """Return the bytes of all weights in a dtype; the routers stay in float32."""
    counts = count_by_part(model)
    routers = counts.pop("routers")
    return sum(counts.values()) * dtype.itemsize + routers * torch.float32.itemsize
