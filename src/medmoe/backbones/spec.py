"""What is known of a backbone: where it comes from, its shape, and how it is prompted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


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


@dataclass(frozen=True, slots=True)
class VisionBackbone:
    """A vision encoder, frozen in every phase of the paper.

    Attributes:
        select_layer: Which hidden states the projector reads (paper: -2).
        select_strategy: ``default`` drops the class token, ``full`` keeps all (no class token).
        mean, std: Per-channel normalisation of pixels scaled to 0–1.
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
