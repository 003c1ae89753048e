"""CLIP ViT-B/16 at 224 px: 196 patches, a quarter of the large one's weights."""

from __future__ import annotations

from dataclasses import replace

from medmoe.backbones.clip_large import CLIP_LARGE_336

CLIP_BASE_16 = replace(
    CLIP_LARGE_336,  # its layer, its class token and its normalisation
    name="clip_base_16",
    hub_id="openai/clip-vit-base-patch16",
    revision=None,
    config={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 16,
        "projection_dim": 512,
    },
    image_size=224,
    patch_size=16,
)
