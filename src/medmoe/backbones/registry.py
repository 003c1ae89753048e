"""Backbones by exact name."""

from __future__ import annotations

from medmoe.backbones.language import LANGUAGE_BACKBONES as LANGUAGE_BACKBONES
from medmoe.backbones.spec import LanguageBackbone, VisionBackbone
from medmoe.backbones.vision import VISION_BACKBONES as VISION_BACKBONES
from medmoe.errors import ConfigError, one_of


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
