"""What the FFNs of some decoder layers read: the hidden states that a router sees or would see.

The paper's figures 3 and 10 show them. Works on dense models too, before there is a router. Nothing
is pooled, kept or drawn here.

Shapes: B batch, S sequence, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor


@contextmanager
def ffn_inputs(model: Any, layers: Sequence[int]) -> Iterator[list[Tensor]]:
    """Collect the inputs (B, S, D) of some layers' FFNs or MoE blocks, in the order they run.

    Args:
        model: The outer model, dense or MoE.
        layers: Decoder layer indices.

    Yields:
        A list that each forward pass adds one tensor per layer to; clear it between passes.
    """
    seen: list[Tensor] = []
    handles = [
        model.model.language_model.layers[layer].mlp.register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0])
        )
        for layer in layers
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
