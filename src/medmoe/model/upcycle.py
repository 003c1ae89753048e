"""Upcycling: a dense phase-2 model becomes the MoE model that phase 3 starts from.

A pure function: the dense model is left as it was. ``copy`` is the paper (every routed expert and
the meta expert start as that layer's FFN, so step 0 gives (1 + p1)·FFN for top-1 and 2·FFN for
top-2); ``function_preserving`` is ours (routed experts start with a zero output projection, so step
0 equals phase 2 exactly).

Shapes: E domain experts; other axes are those of the stock FFN's weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from medmoe.backbones.ffn import FfnFamily, ffn_family
from medmoe.errors import ConfigError
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration

UpcycleInit = Literal["copy", "function_preserving"]
#: Weights of one router by name.
RouterState = Mapping[str, Tensor]


def upcycle(
    dense: MedMoeForConditionalGeneration,
    *,
    moe_layers: Sequence[int],
    domains: Sequence[str],
    num_experts_per_tok: int = 1,
    init: UpcycleInit = "copy",
    router: RouterState | Sequence[RouterState] | None = None,
    router_layers: int = 1,
    meta_expert: bool = True,
    routing: str = "token",
    seed: int = 0,
) -> MedMoeForConditionalGeneration:
    """Return a MoE model whose experts start from the dense model's FFNs (paper, section 3.3).

    Args:
        moe_layers: Decoder layers that get a MoE block; the paper takes every second one.
        domains: One domain expert each, in this order.
        num_experts_per_tok: k of top-k, beside the always-on meta expert.
        init: ``copy`` (paper) or ``function_preserving`` (ours).
        router: One state dict (``fc1.weight`` (E, D), ``fc1.bias`` (E), …), put into every MoE
            layer, or one for each MoE layer in their order; None draws a small random router from
            ``seed``, the same for every layer.
        router_layers: Depth of the router MLP, 1 to 3.
        meta_expert: Whether the layers get a meta expert; the paper's Table 5 leaves it out.
        routing: ``token`` (paper) or ``image``.
        seed: Draws the router where none is given.

    Raises:
        ConfigError: The router has another shape than the config.
    """
    config = moe_config(
        dense.config,
        moe_layers=list(moe_layers),
        domains=list(domains),
        num_experts_per_tok=num_experts_per_tok,
        router_layers=router_layers,
        meta_expert=meta_expert,
        routing=routing,
    )
    with torch.random.fork_rng():  # every weight is overwritten: leave the caller's draws alone
        model = MedMoeForConditionalGeneration(config)
    model.to(dense.device, dense.dtype)
    state = dict(dense.state_dict())
    gates = _gates(router, model, seed)
    for (index, block), gate in zip(model.moe_blocks.items(), gates, strict=True):
        prefix = f"model.language_model.layers.{index}.mlp."
        block.gate.float()  # the router decides in float32 whatever the model's dtype
        family = ffn_family(dense.model.language_model.layers[index].mlp)
        _move_ffn(state, prefix, family, config, init)
        state.update({f"{prefix}gate.{name}": tensor.clone() for name, tensor in gate.items()})
    model.load_state_dict(state, strict=True)
    model.generation_config = copy.deepcopy(dense.generation_config)
    model.train(dense.training)
    return model


@torch.no_grad()
def take_experts(
    model: MedMoeForConditionalGeneration, tuned: MedMoeForConditionalGeneration
) -> None:
    """Put the domain experts of a model tuned by domain in the place of another's, which changes.

    Raises:
        ConfigError: The two have other domains, or other MoE layers.
    """
    for name in ("domains", "moe_layers"):
        given, wanted = getattr(tuned.config, name), getattr(model.config, name)
        if given != wanted:
            raise ConfigError(
                f"the experts tuned by domain have {name} {given}, the recipe has {wanted}; "
                "train phase3_experts of this recipe"
            )
    for index, block in model.moe_blocks.items():
        block.experts.load_state_dict(tuned.moe_blocks[index].experts.state_dict())


def moe_config(dense: MedMoeConfig, **moe: Any) -> MedMoeConfig:
    """Return a dense configuration with MoE layers added, by the fields of `MedMoeConfig`.

    Raises:
        ConfigError: The values break a rule of `MedMoeConfig`.
    """
    config: MedMoeConfig = MedMoeConfig.from_dict(dense.to_dict() | moe)
    return config


def _move_ffn(
    state: dict[str, Tensor],
    prefix: str,
    family: FfnFamily,
    config: MedMoeConfig,
    init: UpcycleInit,
) -> None:
    """Rename one layer's FFN to its meta expert and stack E copies as the domain experts."""
    parts = {
        name: state.pop(f"{prefix}{name}") for names in family.stacks.values() for name in names
    }
    if config.meta_expert:
        meta = {f"{prefix}meta_expert.{name}": tensor.clone() for name, tensor in parts.items()}
        state.update(meta)
    for stack, names in family.stacks.items():
        tensor = torch.cat([parts[name] for name in names])
        if init == "function_preserving" and names[0].startswith(family.parts[-1]):
            tensor = torch.zeros_like(tensor)
        repeats = (config.num_experts, *[1] * tensor.dim())
        state[f"{prefix}experts.{stack}"] = tensor.unsqueeze(0).repeat(repeats)


def _gates(
    router: RouterState | Sequence[RouterState] | None,
    model: MedMoeForConditionalGeneration,
    seed: int,
) -> list[RouterState]:
    """Return the router's weights for each MoE layer, checked against its shapes."""
    shapes = [block.gate.state_dict() for block in model.moe_blocks.values()]
    if router is None:
        router = _random_router(shapes[0], seed)
    gates = [router] * len(shapes) if isinstance(router, Mapping) else list(router)
    if len(gates) != len(shapes):
        raise ConfigError(
            f"there are {len(gates)} routers for {len(shapes)} MoE layers; "
            "give one for all layers, or one for each"
        )
    for gate, state in zip(gates, shapes, strict=True):
        given, wanted = ({name: tuple(t.shape) for name, t in one.items()} for one in (gate, state))
        if given != wanted:
            raise ConfigError(
                f"the router has the tensors {given}, this model needs {wanted}; "
                "train a router on this phase-2 model"
            )
    return gates


def _random_router(shapes: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.zeros(t.shape)
        if name.endswith("bias")
        else torch.randn(t.shape, generator=generator) * 0.02
        for name, t in shapes.items()
    }
