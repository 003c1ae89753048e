"""StableLM's decoder layer, handing keyword arguments on to its attention.

The stock layer (transformers 5.23) drops them, and inference engines that bring their own attention
(vLLM) pass what it needs that way. Nothing else differs.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.stablelm import modeling_stablelm as stock


class StableLmDecoderLayer(stock.StableLmDecoderLayer):
    """The stock layer under its own name, since device maps look for layers by class name."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Return the layer's output (B, S, D)."""
        normed = self.input_layernorm(hidden_states)
        # differs from StableLM: all keywords reach the attention.
        attended, _ = self.self_attn(hidden_states=normed, **kwargs)
        after = hidden_states + attended
        if not self.use_parallel_residual:
            normed = self.post_attention_layernorm(after)
        output: Tensor = after + self.dropout(self.mlp(normed))
        return output


def pass_keywords(layer: Any) -> None:
    """Make a stock StableLM layer hand its keywords on; any other layer is left as it is."""
    if type(layer) is stock.StableLmDecoderLayer:
        layer.__class__ = StableLmDecoderLayer
