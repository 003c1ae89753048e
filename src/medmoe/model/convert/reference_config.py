"""Reads the reference code's ``config.json``: Phi and StableLM, stage 2 (dense) and 3 (MoE)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from medmoe.backbones.language import PHI2, STABLELM2
from medmoe.backbones.spec import LanguageBackbone
from medmoe.config.load import check
from medmoe.errors import CheckpointError, ConfigError

# Beyond these nothing real is meant, and building it would not end.
Size = Annotated[int, Field(ge=1, le=10**7)]
Depth = Annotated[int, Field(ge=1, le=1000)]
Small = Annotated[float, Field(ge=1e-12, le=1.0)]
_Share = Annotated[float, Field(ge=0.01, le=1.0)]
_Dropout = Annotated[float, Field(ge=0.0, le=0.99)]
_TokenId = Annotated[int, Field(ge=0)]


class Stated(BaseModel):
    """What a foreign config states of what we read; anything else in it is left alone."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


Spec = TypeVar("Spec", bound=Stated)


class Moe(Stated):
    """The MoE layers of stage 3."""

    moe_layers_idx: Annotated[tuple[int, ...], Field(min_length=1)]
    num_experts: tuple[int, ...]
    top_k_experts: int
    use_residual: Literal[False] = False

    @model_validator(mode="after")
    def _rules_between_values(self) -> Self:
        layers, counts = self.moe_layers_idx, self.num_experts
        if len(layers) != len(counts) or len(set(counts)) != 1:
            raise ValueError(
                f"num_experts {counts} must be one number, once for each of the layers {layers}"
            )
        if not 1 <= self.top_k_experts <= counts[0]:
            raise ValueError(
                f"top_k_experts ({self.top_k_experts}) must lie between 1 and num_experts "
                f"({counts[0]})"
            )
        return self


class ReferenceConfig(Stated):
    """What a reference checkpoint's config states, whichever its language model.

    Attributes:
        backbone: What is known of the language model beyond its shape.
        model_type: The reference's own name of the architecture.
        mm_image_tower: Hub id or path of the vision tower.
        mm_vision_select_layer: Which of its hidden states the projector reads, without the class
            token.
        moe: The MoE layers of stage 3; None for stage 2.
    """

    backbone: ClassVar[LanguageBackbone]

    model_type: str
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Depth
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    max_position_embeddings: Size = 2048
    initializer_range: Annotated[float, Field(ge=0.0)] = 0.02
    rope_theta: Annotated[float, Field(ge=1.0)] = 10_000.0
    tie_word_embeddings: bool = False
    bos_token_id: _TokenId | None = None
    eos_token_id: _TokenId | None = None
    pad_token_id: _TokenId | None = None
    mm_image_tower: str
    mm_vision_select_layer: Annotated[int, Field(ge=-1000, le=1000)]
    mm_vision_select_feature: Literal["patch"] = "patch"
    mm_use_im_start_end: Literal[False] = False
    image_projector_type: Literal["mlp2x_gelu"] = "mlp2x_gelu"
    rope_scaling: None = None
    moe: Moe | None = None

    @property
    def text(self) -> dict[str, Any]:
        """Keyword arguments of the language model's config, with its ``model_type``."""
        heads = self.num_key_value_heads or self.num_attention_heads
        own = {"model_type": self.backbone.model_type, "num_key_value_heads": heads}
        return self.model_dump(exclude=_OTHERS) | own

    @property
    def num_experts(self) -> int:
        """Number of experts of a MoE layer; 0 for stage 2."""
        return self.moe.num_experts[0] if self.moe else 0


#: What is no setting of the language model.
_OTHERS = {
    *("mm_image_tower", "mm_vision_select_layer", "mm_vision_select_feature", "rope_scaling"),
    *("mm_use_im_start_end", "image_projector_type", "moe"),
}


class _Phi(ReferenceConfig):
    backbone = PHI2

    hidden_act: str = "gelu_new"
    layer_norm_eps: Small = 1e-5
    partial_rotary_factor: _Share = 0.5
    qk_layernorm: bool = False
    attention_dropout: _Dropout = 0.0
    resid_pdrop: _Dropout = 0.0
    embd_pdrop: _Dropout = 0.0


class _StableLm(ReferenceConfig):
    backbone = STABLELM2

    max_position_embeddings: Size = 4096
    hidden_act: str = "silu"
    use_qkv_bias: bool = True
    # Two have other names in the reference.
    layer_norm_eps: Small = Field(default=1e-5, alias="norm_eps")
    partial_rotary_factor: _Share = Field(default=0.25, alias="rope_pct")


#: The reference's model types; those with MoE layers are of stage 3, the others of stage 2.
MODEL_TYPES: dict[str, type[ReferenceConfig]] = {
    "llava_phi": _Phi,
    "moe_llava_phi": _Phi,
    "llava_stablelm": _StableLm,
    "moe_llava_stablelm": _StableLm,
}


def stated(spec: type[Spec], raw: Mapping[str, Any], path: Path) -> Spec:
    """Return what a foreign config states; a null is as if it were not there.

    Raises:
        CheckpointError: A value is missing, of another type, or out of bounds; it is named.
    """
    try:
        return check(spec, {name: v for name, v in raw.items() if v is not None}, str(path))
    except ConfigError as error:
        raise CheckpointError(
            f"{error}; nothing else can be converted (copy it again if it is damaged)"
        ) from None


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
    has_moe = model_type.startswith("moe_")
    config = stated(MODEL_TYPES[model_type], raw if has_moe else {**raw, "moe": None}, path)
    if has_moe and config.moe is None:
        raise CheckpointError(f"{path}: moe is missing, and a stage-3 checkpoint has it")
    layers, depth = config.moe.moe_layers_idx if config.moe else (), config.num_hidden_layers
    if len(set(layers)) != len(layers) or any(not 0 <= layer < depth for layer in layers):
        raise CheckpointError(
            f"{path}: moe_layers_idx {list(layers)} must name layers 0 to {depth - 1}, each once"
        )
    most = {"num_key_value_heads": config.num_attention_heads}
    most |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), config.vocab_size - 1)
    for name, limit in most.items():
        if (getattr(config, name) or 0) > limit:
            raise CheckpointError(
                f"{path}: {name} ({getattr(config, name)}) must not exceed {limit}"
            )
    return config
