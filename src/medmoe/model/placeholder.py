"""The image placeholder of a model whose vocabulary has no spare row for it.

The reference writes -200 into the token ids, so its checkpoints hold no row for an image token.
Where no row is spare the placeholder's id lies just beyond the vocabulary: no row is added, so
logits, loss and gradients stay those of the checkpoint, and no placeholder is ever generated.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class PlaceholderEmbedding(nn.Embedding):
    """A token embedding that knows one id more: the placeholder, embedded as zeros."""

    placeholder_id: int

    def forward(self, input: Tensor) -> Tensor:
        """Return embeddings (…, D) of ids (…); an image takes the zeros' place afterwards."""
        if self.placeholder_id < self.num_embeddings:  # the vocabulary has grown since
            return super().forward(input)
        outside = input == self.placeholder_id
        rows: Tensor = super().forward(input.masked_fill(outside, 0))
        return rows.masked_fill(outside.unsqueeze(-1), 0)


def embed_placeholder(embedding: Any, placeholder_id: int) -> None:
    """Let a stock embedding take a placeholder beyond its rows; leave it as it is otherwise."""
    if type(embedding) is nn.Embedding and placeholder_id >= embedding.num_embeddings:
        outer: Any = embedding
        outer.__class__ = PlaceholderEmbedding
        outer.placeholder_id = placeholder_id
