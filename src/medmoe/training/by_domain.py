"""Phase 3a of `experts: per_domain`: every token goes to the expert of its record's domain.

The router has no say, and the expert's output is taken whole. Without a meta expert the block is
then E_d(x): one copy of the phase-2 FFN for each domain d, which only records of d change.

Shapes: B batch, S sequence, K top-k.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.training.load_balance import MoeWrapper


class ByDomain(MoeWrapper):
    """A top-1 MoE model without meta expert whose records name their experts.

    The hooks stay until `release`, since gradient checkpointing runs the layers once more in the
    backward pass, with the experts of the same batch.
    """

    def __init__(self, model: MedMoeForConditionalGeneration) -> None:
        super().__init__(model)
        self._experts: Tensor | None = None
        blocks = model.moe_blocks.values()
        self._handles = [block.gate.register_forward_hook(self._chosen) for block in blocks]

    def release(self) -> None:
        """Let the model's own router choose again."""
        for handle in self._handles:
            handle.remove()

    def forward(self, experts: Tensor, **inputs: Any) -> Any:
        """Return the model's output.

        Args:
            experts: (B,) int64, the expert of each row of the batch.
            inputs: As the model takes them.
        """
        self._experts = experts
        return self.model(**inputs)

    def _chosen(
        self, gate: nn.Module, args: Any, output: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Put weight 1 and the records' experts in the place of what the router says (B, S, K)."""
        assert self._experts is not None
        logits, weights, index = output
        return logits, torch.ones_like(weights), self._experts[:, None, None].expand_as(index)
