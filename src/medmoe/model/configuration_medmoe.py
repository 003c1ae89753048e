"""`MedMoeConfig`: a Llava configuration with the MoE layers of phase 3 (paper, section 3.3).

A config without ``moe_layers`` is the dense model of phases 1 and 2: one class serves all phases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import LlavaConfig

from medmoe.backbones.spec import check_pool
from medmoe.domains import DOMAINS
from medmoe.errors import ConfigError


@strict
class MedMoeConfig(LlavaConfig):
    """Configuration of a dense (phases 1, 2) or MoE (phase 3) medical vision-language model.

    Attributes:
        moe_layers: Indices of the decoder layers whose FFN is a `MoeBlock`; empty = dense.
        domains: Names of the domain experts; the position is the expert index.
        num_experts_per_tok: k of the top-k routing, 1 to the number of domains.
        router_layers: Depth of the router MLP, 1 (paper's default) to 3.
        meta_expert: Whether a MoE layer has the always-on meta expert (paper, Table 5: without).
        routing: ``token`` (paper), or ``image``: each row's first picture decides for all its
            tokens and layers (`medmoe.model.moe.PictureChoice`).
        domain_check: The limits of `DomainCheck`, ``missing`` for why there are none, and what it
            was ``measured`` on; None for a model whose router was taught without one.
        lm_head_bias: Whether the output head has a bias (phi-2 has one).
        image_pool: n × n cells of the encoder make one image token: 1, 2 or 3.
        expert_rows: Expert → the rows of the router, by name, that it was trained with; with top-1
            its weight is the softmax over them. None: all experts were trained with all rows.
        removed_experts: Name → where its tokens go: ``meta``, to the meta expert alone, or
            ``next``, to the next best. Their rows stay, behind those of the experts.
    """

    model_type = "medmoe"
    has_no_defaults_at_init: ClassVar[bool] = False

    moe_layers: list[int] | None = None
    domains: list[str] | None = None
    num_experts_per_tok: int = 1
    router_layers: int = 1
    meta_expert: bool = True
    routing: Literal["token", "image"] = "token"
    domain_check: dict[str, Any] | None = None
    lm_head_bias: bool = False
    image_pool: int = 1
    expert_rows: dict[str, list[str]] | None = None
    removed_experts: dict[str, Literal["meta", "next"]] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill the defaults and check the rules between the fields."""
        # Here, not in @strict's own checks: a user must see one line with the fix.
        _whole_number("num_experts_per_tok", self.num_experts_per_tok)
        _whole_number("router_layers", self.router_layers)
        _whole_number("image_pool", self.image_pool)
        if type(self.meta_expert) is not bool:
            raise ConfigError(
                f"meta_expert ({self.meta_expert!r}) must be true or false; "
                "use --set model.meta_expert=true"
            )
        self.moe_layers = sorted(_list_of("moe_layers", self.moe_layers or [], int, "[0,2]"))
        self.domains = _list_of("domains", self.domains, str, "[ct,mri]", default=DOMAINS)
        super().__post_init__(**kwargs)
        self._check()

    @property
    def num_experts(self) -> int:
        """Number of domain experts in each MoE layer."""
        return len(self.domains or [])

    @property
    def router_rows(self) -> list[str]:
        """Names of the router's rows: experts, then removed ones, ``meta`` before ``next``."""
        removed = self.removed_experts or {}
        return [*(self.domains or []), *sorted(removed, key=lambda name: removed[name])]

    def rows_of(self, expert: str) -> list[str]:
        """Return the rows of the router that an expert was trained with, its own among them."""
        return list((self.expert_rows or {}).get(expert) or self.domains or [])

    def refuse_routing_by_picture(self, who: str) -> None:
        """Raise a `ConfigError` of what cannot carry a picture's decision."""
        if self.routing == "image" and self.moe_layers:
            raise ConfigError(
                f"{who} routes token by token, this model has routing: image; run it by the local "
                "engine, or train one with --set model.routing=token"
            )

    def _check(self) -> None:
        depth = self.text_config.num_hidden_layers
        assert self.moe_layers is not None
        assert self.domains is not None
        if any(not 0 <= layer < depth for layer in self.moe_layers):
            raise ConfigError(
                f"moe_layers {self.moe_layers} must lie in 0..{depth - 1}, "
                f"the layers of this language model; use --set model.moe_layers=[0,2]"
            )
        if len(set(self.moe_layers)) != len(self.moe_layers):
            raise ConfigError(f"moe_layers {self.moe_layers} name one layer twice; list each once")
        if len(set(self.domains)) != len(self.domains):
            raise ConfigError(f"domains {self.domains} name one domain twice; list each once")
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise ConfigError(
                f"num_experts_per_tok ({self.num_experts_per_tok}) must lie between 1 and the "
                f"number of domains ({self.num_experts}); use --set model.num_experts_per_tok=1"
            )
        if not 1 <= self.router_layers <= 3:
            raise ConfigError(
                f"router_layers ({self.router_layers}) must be 1, 2 or 3; "
                f"use --set model.router_layers=1"
            )
        self._check_rows(self.expert_rows, self.removed_experts or {})
        if self.image_pool != 1:
            self._check_pool(self.image_pool, self.vision_config)

    def _check_rows(self, spans: dict[str, list[str]] | None, removed: dict[str, Any]) -> None:
        rows, domains = set(self.router_rows), set(self.domains or [])
        known = removed if spans is None else {*spans} ^ domains
        own = {name for name, span in (spans or {}).items() if name in span and rows >= {*span}}
        if known or domains & {*removed} or {*(spans or {})} - own:
            raise ConfigError(
                f"expert_rows {spans} must name for each of the domains {self.domains} the rows it "
                f"was trained with, of {self.router_rows}; copy the model's config.json again"
            )
        if "meta" in removed.values() and not self.meta_expert:
            raise ConfigError("removed_experts name the meta expert, and there is none; use next")

    def _check_pool(self, pool: int, vision: Any) -> None:
        side = vision.image_size // vision.patch_size
        check_pool(pool, side)
        tokens, cells = (side // pool) ** 2, self.vision_feature_select_strategy == "default"
        if self.image_seq_length != tokens or (vision.model_type.startswith("clip") and not cells):
            raise ConfigError(
                f"image_pool ({pool}) makes {tokens} tokens of {side} × {side} cells: set "
                f"image_seq_length to that, and leave CLIP's class token out by "
                "vision_feature_select_strategy 'default'"
            )


def _whole_number(name: str, value: Any) -> None:
    if type(value) is not int:
        raise ConfigError(f"{name} ({value!r}) must be a whole number; use --set model.{name}=1")


def _list_of(
    name: str, values: Any, kind: type, example: str, default: Sequence[Any] = ()
) -> list[Any]:
    values = default if values is None else values
    if not isinstance(values, (list, tuple)) or any(type(value) is not kind for value in values):
        what = "whole numbers" if kind is int else "names"
        raise ConfigError(
            f"{name} ({values!r}) must be a list of {what}; use --set model.{name}={example}"
        )
    return list(values)
