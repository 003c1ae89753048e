"""Forward hooks on MoE blocks: what goes into them, and what would come out else.

What routers read (paper, figures 3 and 10), and counterfactuals. All are ``with`` blocks:
afterwards, also after an error, the model is exactly what it was; no weight is touched. Nothing
here runs the model, averages or judges.

Shapes: B batch, S sequence, D hidden, K experts chosen per token, E experts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from medmoe.errors import MedMoeError
from medmoe.model.moe import MoeBlock


def blocks_of(model: nn.Module) -> dict[int, MoeBlock]:
    """Return the MoE blocks of a model, or of what wraps it, by decoder layer.

    Raises:
        MedMoeError: It has none.
    """
    blocks = {
        int(re.findall(r"\.(\d+)\.", f".{name}.")[-1]): module
        for name, module in model.named_modules()
        if isinstance(module, MoeBlock)
    }
    if not blocks:
        raise MedMoeError(
            f"{type(model).__name__} has 0 MoE layers and routes nothing; give a phase 3 model"
        )
    return dict(sorted(blocks.items()))


@contextmanager
def hooked(handles: Iterable[Any]) -> Iterator[None]:
    """Take hooks off again at the end."""
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


@contextmanager
def ffn_inputs(model: Any, layers: Sequence[int]) -> Iterator[list[Tensor]]:
    """Collect the inputs (B, S, D) of some layers' FFNs or MoE blocks, in the order they run.

    Args:
        model: The outer model, dense or MoE.

    Yields:
        A list that each forward pass adds one tensor per layer to; clear it between passes.
    """
    seen: list[Tensor] = []
    decoder = model.model.language_model.layers
    with hooked(
        decoder[layer].mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for layer in layers
    ):
        yield seen


@contextmanager
def forced_expert(model: nn.Module, expert: int | Sequence[int | None]) -> Iterator[None]:
    """Send every token of every MoE layer to one domain expert.

    The expert gets the weight that the router gave to those it chose, so that what changes is
    which expert answers and not how much it counts. The meta expert goes on as before.

    Args:
        expert: For all rows of the batch, or one for each; None leaves a row to the router.

    Raises:
        MedMoeError: The model has no MoE layer.
    """
    experts = [expert] if isinstance(expert, int) else expert
    forced_B11 = torch.tensor([-1 if e is None else e for e in experts])[:, None, None]

    def force(module: nn.Module, args: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        logits_BSE, weights_BSK, index_BSK = output
        wanted_B11 = forced_B11.to(index_BSK.device)
        return logits_BSE, weights_BSK, torch.where(wanted_B11 < 0, index_BSK, wanted_B11)

    blocks = blocks_of(model).values()
    with hooked(block.gate.register_forward_hook(force) for block in blocks):
        yield


@contextmanager
def meta_expert_off(model: nn.Module, rows: Sequence[bool] = (True,)) -> Iterator[None]:
    """Leave the meta expert's output out of every MoE layer that has one.

    Args:
        rows: Of which rows of the batch; one for all.

    Raises:
        MedMoeError: The model has no MoE layer, or was made without a meta expert.
    """
    off_B11 = torch.tensor(rows)[:, None, None]

    def silence(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output.masked_fill(off_B11.to(output.device), 0)

    experts = [block.meta_expert for block in blocks_of(model).values()]
    present = [expert for expert in experts if expert is not None]
    if not present:
        raise MedMoeError("this model has no meta expert; there is none to leave out")
    with hooked(expert.register_forward_hook(silence) for expert in present):
        yield
