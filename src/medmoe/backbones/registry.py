"""Backbones by exact name.

Adding one = one small file with a `LanguageBackbone` or `VisionBackbone` and one line here.
"""

from __future__ import annotations

from medmoe.backbones.clip_base import CLIP_BASE_16
from medmoe.backbones.clip_large import CLIP_LARGE_336
from medmoe.backbones.efficientnet_lite import EFFICIENTNET_LITE
from medmoe.backbones.gemma3 import GEMMA3_270M
from medmoe.backbones.llama3 import LLAMA3_2_1B
from medmoe.backbones.phi2 import PHI2
from medmoe.backbones.qwen3 import QWEN3_0_6B, QWEN3_1_7B
from medmoe.backbones.siglip2 import MEDSIGLIP_448, SIGLIP2_SO400M_384
from medmoe.backbones.siglip_base import SIGLIP_BASE_224
from medmoe.backbones.smollm2 import SMOLLM2_1_7B, SMOLLM2_135M, SMOLLM2_360M
from medmoe.backbones.spec import LanguageBackbone, VisionBackbone
from medmoe.backbones.stablelm2 import STABLELM2
from medmoe.backbones.tiny_language import TINY_STABLELM
from medmoe.backbones.tiny_vision import TINY_CLIP_64, TINY_CLIP_128
from medmoe.errors import ConfigError, one_of

LANGUAGE_BACKBONES: dict[str, LanguageBackbone] = {
    "phi2_2_7b": PHI2,
    "stablelm2_1_6b": STABLELM2,
    "qwen3_0_6b": QWEN3_0_6B,
    "qwen3_1_7b": QWEN3_1_7B,
    "smollm2_135m": SMOLLM2_135M,
    "smollm2_360m": SMOLLM2_360M,
    "smollm2_1_7b": SMOLLM2_1_7B,
    "llama3_2_1b": LLAMA3_2_1B,
    "gemma3_270m": GEMMA3_270M,
    "tiny_stablelm": TINY_STABLELM,
}

VISION_BACKBONES: dict[str, VisionBackbone] = {
    "clip_large_336": CLIP_LARGE_336,
    "siglip2_so400m_384": SIGLIP2_SO400M_384,
    "medsiglip_448": MEDSIGLIP_448,
    "siglip_base_224": SIGLIP_BASE_224,
    "clip_base_16": CLIP_BASE_16,
    **EFFICIENTNET_LITE,
    "tiny_clip_64": TINY_CLIP_64,
    "tiny_clip_128": TINY_CLIP_128,
}


def language_backbone(name: str) -> LanguageBackbone:
    """Return a language backbone by its exact name.

    Raises:
        ConfigError: No such name; the message lists the choices.
    """
    if name not in LANGUAGE_BACKBONES:
        raise ConfigError(one_of(name, LANGUAGE_BACKBONES, "language model"))
    return LANGUAGE_BACKBONES[name]


def vision_backbone(name: str) -> VisionBackbone:
    """Return a vision backbone by its exact name.

    Raises:
        ConfigError: No such name; the message lists the choices.
    """
    if name not in VISION_BACKBONES:
        raise ConfigError(one_of(name, VISION_BACKBONES, "vision encoder"))
    return VISION_BACKBONES[name]
