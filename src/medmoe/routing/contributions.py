"""How large the two parts of a MoE block's output are: the routed experts' and the meta expert's.

Equation 4 of the paper adds them, y = Σ g_i E_i(x) + E_meta(x); their norms say which of the two a
token's output mostly consists of. Forward hooks that change no output; nothing is kept beyond the
last forward pass, and nothing is averaged here.

Shapes: B batch, S sequence, T = B·S tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from medmoe.errors import MedMoeError


@dataclass(slots=True)
class Norms:
    """The norms of the last forward pass.

    Attributes:
        routed: MoE layer → ‖Σ g_i E_i(x)‖ of each token (T,) float32, weights g included.
        meta: MoE layer → ‖E_meta(x)‖ (T,) float32; empty for a model without meta expert.
    """

    routed: dict[int, Tensor] = field(default_factory=dict)
    meta: dict[int, Tensor] = field(default_factory=dict)

    def meta_share(self, layer: int) -> Tensor:
        """Return ‖meta‖ ÷ (‖meta‖ + ‖routed‖) of each token (T,), 0 to 1; NaN where both are 0."""
        return self.meta[layer] / (self.meta[layer] + self.routed[layer])


@contextmanager
def record_norms(model: Any) -> Iterator[Norms]:
    """Record the norms of both parts of every MoE block, forward pass by forward pass.

    Args:
        model: The outer model.

    Yields:
        Norms, overwritten by each forward pass.

    Raises:
        MedMoeError: The model has no MoE layer.
    """
    if not model.moe_blocks:
        raise MedMoeError(
            f"{type(model).__name__} has 0 MoE layers and routes nothing; give a phase 3 model"
        )
    norms = Norms()
    handles = []
    for layer, block in model.moe_blocks.items():
        handles.append(block.experts.register_forward_hook(_recorder(norms.routed, layer)))
        if block.meta_expert is not None:
            handles.append(block.meta_expert.register_forward_hook(_recorder(norms.meta, layer)))
    try:
        yield norms
    finally:
        for handle in handles:
            handle.remove()


def _recorder(norms_of_layer: dict[int, Tensor], layer: int) -> Any:
    def record(module: Any, args: Any, output: Tensor) -> None:
        norms = torch.linalg.vector_norm(output.detach().float(), dim=-1)
        norms_of_layer[layer] = norms.flatten().cpu()

    return record
