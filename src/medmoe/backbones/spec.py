"""What is known of a backbone: where it comes from, its shape, and how it is prompted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from medmoe.errors import ConfigError


@dataclass(frozen=True, slots=True)
class LanguageBackbone:
    """A small language model that can be upcycled.

    Attributes:
        hub_id: Hugging Face id; None for the stand-in that is trained from scratch.
        revision: Pinned commit; None until known.
        model_type: Transformers' name of the architecture.
        config: Keyword arguments of its config at real size.
        chat_template: Jinja template of its prompt; an answer ends with its tokenizer's own end
            token.
        lm_head_bias: Whether its output head has a bias.
    """

    name: str
    hub_id: str | None
    revision: str | None
    model_type: str
    config: dict[str, Any]
    chat_template: str
    lm_head_bias: bool = False

    def shortened(self, depth: int | None) -> LanguageBackbone:
        """Return the model with its first layers only; None keeps all.

        Raises:
            ConfigError: It has fewer.
        """
        if depth is None:
            return self
        if depth > (whole := self.config["num_hidden_layers"]):
            raise ConfigError(
                f"language_layers ({depth}) must not exceed the {whole} layers of {self.name}; "
                f"use --set model.language_layers={whole}"
            )
        return replace(self, config=shortened(self.config, depth))


def shortened(config: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """Return a language model's config with its first layers only; lists by layer are cut too."""
    whole = config["num_hidden_layers"]
    by_layer = {k: v[:depth] for k, v in config.items() if isinstance(v, list) and len(v) == whole}
    return {**config, **by_layer, "num_hidden_layers": depth}


@dataclass(frozen=True, slots=True)
class VisionBackbone:
    """A vision encoder, frozen in every phase of the paper.

    Attributes:
        select_layer: Which hidden states the projector reads (paper: -2).
        select_strategy: ``default`` drops the class token, ``full`` keeps all (no class token).
        mean, std: Per-channel normalisation of pixels scaled to 0–1.
        pool: n × n of its cells (patches) make one image token; 1, 2 or 3.
    """

    name: str
    hub_id: str | None
    revision: str | None
    model_type: str
    config: dict[str, Any]
    image_size: int
    patch_size: int
    select_layer: int
    select_strategy: Literal["default", "full"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pool: int = 1

    def __post_init__(self) -> None:
        """Refuse image tokens that do not fill the map of cells."""
        check_pool(self.pool, self.image_size // self.patch_size)

    @property
    def image_tokens(self) -> int:
        """How many tokens an image has."""
        return (self.image_size // self.patch_size // self.pool) ** 2


def check_pool(pool: int, side: int) -> None:
    """Refuse a number of cells a side of an image token that does not part a map of that side.

    Raises:
        ConfigError: Names the largest that does.
    """
    if pool not in (1, 2, 3) or side % pool:
        fits = next(n for n in (3, 2, 1) if side % n == 0)
        raise ConfigError(
            f"image_pool ({pool}) must be 1, 2 or 3 and divide the {side} × {side} cells of the "
            f"vision encoder; use --set model.image_pool={fits}"
        )
