"""Reads the reference code's ``config.json``: Phi and StableLM, stage 2 (dense) and 3 (MoE)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmoe.backbones.language import PHI2, STABLELM2
from medmoe.backbones.spec import LanguageBackbone
from medmoe.errors import CheckpointError

#: Beyond these nothing real is meant, and building it would not end.
_LARGEST, DEEPEST = 10**7, 1000
#: What every language model's config must state; nothing of it can be guessed.
_NEEDED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)


_SHARED = {"max_position_embeddings": 2048, "initializer_range": 0.02, "rope_theta": 10_000.0}
#: The reference's name of a setting -> the value that its class takes where the file does not say.
_PHI: dict[str, Any] = (
    _SHARED
    | {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5}
    | {"qk_layernorm": False}
    | dict.fromkeys(("attention_dropout", "resid_pdrop", "embd_pdrop"), 0.0)
)
_STABLELM: dict[str, Any] = (
    _SHARED
    | {"max_position_embeddings": 4096, "hidden_act": "silu", "use_qkv_bias": True}
    | {"norm_eps": 1e-5, "rope_pct": 0.25}
)
#: The reference's name of a setting -> transformers', where they differ.
_RENAMED = {"norm_eps": "layer_norm_eps", "rope_pct": "partial_rotary_factor"}
#: Between what a float must lie, where that is more than 0.
_BOUNDS: dict[str, tuple[float, float]] = {
    "rope_theta": (1.0, math.inf),
    **dict.fromkeys(("partial_rotary_factor", "rope_pct"), (0.01, 1.0)),
    **dict.fromkeys(("layer_norm_eps", "norm_eps"), (1e-12, 1.0)),
    **dict.fromkeys(("attention_dropout", "resid_pdrop", "embd_pdrop"), (0.0, 0.99)),
}
#: The reference's model type -> language model, its settings, and stage.
MODEL_TYPES: dict[str, tuple[LanguageBackbone, Mapping[str, Any], int]] = {
    "llava_phi": (PHI2, _PHI, 2),
    "moe_llava_phi": (PHI2, _PHI, 3),
    "llava_stablelm": (STABLELM2, _STABLELM, 2),
    "moe_llava_stablelm": (STABLELM2, _STABLELM, 3),
}


@dataclass(frozen=True, slots=True)
class ReferenceConfig:
    """What a reference checkpoint's config says, in transformers' words.

    Attributes:
        model_type: The reference's own name of the architecture.
        backbone: What is known of the language model beyond its shape.
        stage: 2 (dense) or 3 (MoE).
        text: Keyword arguments of the language model's config, with its ``model_type``.
        moe_layers, num_experts, top_k: The MoE layers of stage 3; empty and 0 for stage 2.
        vision_tower: Hub id or path of the vision tower.
        select_layer: Which of its hidden states the projector reads, without the class token.
    """

    model_type: str
    backbone: LanguageBackbone
    stage: int
    text: dict[str, Any]
    moe_layers: tuple[int, ...]
    num_experts: int
    top_k: int
    vision_tower: str
    select_layer: int


def parse_config(raw: Mapping[str, Any], path: Path) -> ReferenceConfig:
    """Return what a reference ``config.json`` says.

    Args:
        path: Where it stands; named in errors.

    Raises:
        CheckpointError: It is of another architecture, lacks a value, or asks for something that
            the method does not have (another projector, residual MoE, scaled rotary positions).
    """
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        raise CheckpointError(
            f"{path}: model_type {model_type!r} is none of the reference code's "
            f"({', '.join(MODEL_TYPES)}); for a stock Llava use `medmoe convert llava`"
        )
    backbone, settings, stage = MODEL_TYPES[model_type]
    _check_method(raw, path)
    text = {"model_type": backbone.model_type} | _text(raw, settings, path)
    layers, experts, top_k = _moe(raw.get("moe"), path) if stage == 3 else ((), 0, 0)
    depth = text["num_hidden_layers"]
    if len(set(layers)) != len(layers) or any(not 0 <= layer < depth for layer in layers):
        raise CheckpointError(
            f"{path}: moe_layers_idx {list(layers)} must name layers 0 to {depth - 1}, each once"
        )
    return ReferenceConfig(
        model_type=model_type,
        backbone=backbone,
        stage=stage,
        text=text,
        moe_layers=layers,
        num_experts=experts,
        top_k=top_k,
        vision_tower=str(raw["mm_image_tower"]),
        select_layer=whole_number(raw, "mm_vision_select_layer", path, -DEEPEST, DEEPEST),
    )


def whole_number(raw: Mapping[str, Any], name: str, path: Path, low: int, high: int) -> int:
    """Return a whole number of a config.

    Raises:
        CheckpointError: It is missing, of another type, or out of bounds.
    """
    value = raw.get(name)
    if type(value) is not int or not low <= value <= high:
        raise CheckpointError(
            f"{path}: {name} ({value!r}) must be a whole number from {low} to {high}; copy it again"
        )
    return value


def _check_method(raw: Mapping[str, Any], path: Path) -> None:
    """Refuse what the reference code can do but the method, and this package, does not."""
    rules: tuple[tuple[str, Any, tuple[Any, ...]], ...] = (
        ("image_projector_type", "mlp2x_gelu", ("mlp2x_gelu",)),
        ("mm_vision_select_feature", "patch", ("patch",)),
        ("mm_use_im_start_end", False, (False, None)),
        ("rope_scaling", None, (None,)),
    )
    for name, default, allowed in rules:
        value = raw.get(name, default)
        if value not in allowed:
            raise CheckpointError(
                f"{path}: {name} is {value!r}; only {allowed[0]!r} can be converted"
            )
    if not isinstance(raw.get("mm_image_tower"), str):
        raise CheckpointError(
            f"{path}: mm_image_tower ({raw.get('mm_image_tower')!r}) names no vision tower; "
            "only models that read images can be converted"
        )


def _text(raw: Mapping[str, Any], settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    for name in _NEEDED:
        whole_number(raw, name, path, 1, DEEPEST if name == "num_hidden_layers" else _LARGEST)
    text = {name: raw[name] for name in _NEEDED}
    text["num_key_value_heads"] = raw["num_attention_heads"]
    if raw.get("num_key_value_heads") is not None:
        heads = whole_number(raw, "num_key_value_heads", path, 1, raw["num_attention_heads"])
        text["num_key_value_heads"] = heads
    for theirs, default in settings.items():
        text[_RENAMED.get(theirs, theirs)] = setting(raw, theirs, default, path)
    text["tie_word_embeddings"] = setting(raw, "tie_word_embeddings", False, path)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        known = raw.get(name) is not None
        text[name] = whole_number(raw, name, path, 0, raw["vocab_size"] - 1) if known else None
    return text


def setting(raw: Mapping[str, Any], name: str, default: Any, path: Path) -> Any:
    """Return a setting of the default's type; the default where the config has none.

    Raises:
        CheckpointError: It is of another type, or out of the bounds for its name.
    """
    value = default if raw.get(name) is None else raw[name]
    if type(default) is int:
        return whole_number({name: value}, name, path, 1, _LARGEST)
    # A whole number may stand for a float (rope_theta), nothing else for anything else.
    value = float(value) if type(default) is float and type(value) is int else value
    if type(value) is not type(default):
        raise CheckpointError(
            f"{path}: {name} ({value!r}) must be of type {type(default).__name__}; copy it again"
        )
    low, high = _BOUNDS.get(name, (0.0, math.inf))
    if type(value) is float and not (low <= value <= high and math.isfinite(value)):
        raise CheckpointError(
            f"{path}: {name} ({value}) must lie between {low} and {high}; copy it again"
        )
    return value


def _moe(moe: Any, path: Path) -> tuple[tuple[int, ...], int, int]:
    moe = moe if isinstance(moe, dict) else {}
    layers, counts, top_k = (moe.get(k) for k in ("moe_layers_idx", "num_experts", "top_k_experts"))
    if not _whole(layers) or not _whole(counts) or not _whole([top_k]):
        raise CheckpointError(
            f"{path}: its MoE part must list moe_layers_idx, num_experts and top_k_experts; "
            "a stage-3 checkpoint has them"
        )
    if len(layers) != len(counts) or len(set(counts)) != 1:
        raise CheckpointError(
            f"{path}: num_experts {counts} must be one number, once for each of the layers {layers}"
        )
    if not 1 <= top_k <= counts[0]:
        raise CheckpointError(
            f"{path}: top_k_experts ({top_k}) must lie between 1 and num_experts ({counts[0]})"
        )
    if moe.get("use_residual"):
        raise CheckpointError(f"{path}: moe.use_residual is set; only false can be converted")
    return tuple(layers), counts[0], top_k


def _whole(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(type(v) is int for v in values)
