"""SigLIP ViT-B/16 at 224 px: 196 patches and no class token."""

from __future__ import annotations

from dataclasses import replace

from medmoe.backbones.siglip2 import SIGLIP2_SO400M_384

SIGLIP_BASE_224 = replace(
    SIGLIP2_SO400M_384,  # its layer and its normalisation
    name="siglip_base_224",
    hub_id="google/siglip-base-patch16-224",
    revision=None,
    config={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 16,
    },
    image_size=224,
    patch_size=16,
)
