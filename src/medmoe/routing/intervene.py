"""Change what the MoE blocks do, for as long as a ``with`` block lasts: the counterfactuals.

Forward hooks, no weight is touched: after the block, or an error in it, the model is exactly what
it was. Nothing here runs the model or judges what came of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from medmoe.errors import ConfigError, MedMoeError
from medmoe.model.moe import MoeBlock


@contextmanager
def forced_expert(model: nn.Module, expert: int) -> Iterator[None]:
    """Send every token of every MoE layer to one domain expert.

    The expert gets the weight that the router gave to those it chose, so that what changes is
    which expert answers and not how much it counts. The meta expert goes on as before.

    Args:
        model: A model with MoE layers.
        expert: Index of the domain expert.

    Raises:
        ConfigError: There is no such expert.
        MedMoeError: The model has no MoE layer.
    """
    blocks = _blocks(model)
    count = blocks[0].experts.num_experts
    if not 0 <= expert < count:
        raise ConfigError(
            f"expert {expert} is outside 0..{count - 1}; give a domain expert's index"
        )

    def force(module: nn.Module, args: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        logits_BSE, weights_BSK, index_BSK = output
        return logits_BSE, weights_BSK, torch.full_like(index_BSK, expert)

    with _hooked([block.gate for block in blocks], force):
        yield


@contextmanager
def meta_expert_off(model: nn.Module) -> Iterator[None]:
    """Leave the meta expert's output out of every MoE layer that has one.

    Raises:
        MedMoeError: The model has no MoE layer, or was made without a meta expert.
    """

    def silence(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return torch.zeros_like(output)

    experts = [block.meta_expert for block in _blocks(model)]
    present = [expert for expert in experts if expert is not None]
    if not present:
        raise MedMoeError("this model has no meta expert; there is none to leave out")
    with _hooked(present, silence):
        yield


@contextmanager
def _hooked(modules: list[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _blocks(model: nn.Module) -> list[MoeBlock]:
    blocks = [module for module in model.modules() if isinstance(module, MoeBlock)]
    if not blocks:
        raise MedMoeError(
            f"{type(model).__name__} has 0 MoE layers and no expert to change; give a phase 3 model"
        )
    return blocks
