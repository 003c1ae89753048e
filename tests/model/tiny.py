"""Tiny random models of both FFN families, with weights large enough that differences show."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    PhiConfig,
    PhiForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

from medmoe.backbones.spec import VisionBackbone
from medmoe.backbones.templates import chat_template
from medmoe.data.tokenize import train_tokenizer
from medmoe.model.build import build_dense, build_processor
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.model.processing_medmoe import MedMoeProcessor
from medmoe.model.upcycle import upcycle

torch.set_num_threads(1)

Family = Literal["stablelm", "phi"]
FAMILIES: tuple[Family, ...] = ("stablelm", "phi")
DOMAINS = ("ct", "mri", "pathology", "xray")
WIDTH, LAYERS, MOE_LAYERS, STD = 32, 3, (0, 2), 0.3
TEXTS = ("Is there a mass in the left lung? yes no", "USER: ASSISTANT: What organ is this? liver")

VISION = VisionBackbone(
    name="tiny",
    hub_id=None,
    revision=None,
    model_type="clip_vision_model",
    config={},
    image_size=32,
    patch_size=8,
    select_layer=-2,
    select_strategy="default",
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.3, 0.4),
)
IMAGE_TOKENS = 16


@lru_cache
def processor(pool: int = 1) -> MedMoeProcessor:
    return build_processor(
        train_tokenizer(TEXTS, 320), replace(VISION, pool=pool), chat_template("</s>")
    )


def language_model(family: Family, vocab_size: int, width: int = WIDTH) -> Any:
    """Return a random causal language model: gated FFN (StableLM) or plain with biases (Phi)."""
    shape = {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    if family == "phi":
        return randomise(PhiForCausalLM(PhiConfig(**shape, partial_rotary_factor=0.5)), seed=1)
    config = StableLmConfig(**shape, use_qkv_bias=True, partial_rotary_factor=0.5)
    return randomise(StableLmForCausalLM(config), seed=2)


def vision_tower() -> Any:
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=VISION.image_size,
        patch_size=VISION.patch_size,
    )
    return randomise(CLIPVisionModel(config), seed=3)


def randomise(model: Any, seed: int, std: float = STD) -> Any:
    """Draw every weight and bias anew, so that no two layers, experts or biases are alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * std
            parameter.copy_(1 + noise if "norm" in name and name.endswith("weight") else noise)
    return model.eval()


def dense_model(
    family: Family, width: int = WIDTH, pool: int = 1
) -> MedMoeForConditionalGeneration:
    """Return a dense model with random weights everywhere."""
    tokenizer = processor().tokenizer
    # Larger than the tokenizer, as the vocabulary of real models is.
    text = language_model(family, len(tokenizer) + 5, width)
    vision = replace(VISION, pool=pool)
    return randomise(build_dense(vision_tower(), text, tokenizer, vision, seed=4), seed=5)


def moe_model(
    family: Family,
    top_k: int = 1,
    router_layers: int = 1,
    width: int = WIDTH,
    pool: int = 1,
    routing: str = "token",
) -> MedMoeForConditionalGeneration:
    """Return a MoE model whose experts, meta experts and routers all differ."""
    model = upcycle(
        dense_model(family, width, pool),
        moe_layers=MOE_LAYERS,
        domains=DOMAINS,
        num_experts_per_tok=top_k,
        router_layers=router_layers,
        routing=routing,
    )
    return randomise(model, seed=6)


def bare_model() -> MedMoeForConditionalGeneration:
    """Return a MoE model without a meta expert, in eval mode."""
    return upcycle(
        dense_model("phi"),
        moe_layers=MOE_LAYERS,
        domains=DOMAINS,
        num_experts_per_tok=1,
        meta_expert=False,
    ).eval()


def pixels(count: int, seed: int = 0) -> torch.Tensor:
    """Return normalised random pictures (count, 3, 32, 32)."""
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def prompt_ids(text: str) -> list[int]:
    """Return the ids of an image followed by a text."""
    image_id = processor().image_token_id
    return [image_id] * IMAGE_TOKENS + processor().tokenizer(text).input_ids
