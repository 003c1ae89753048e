"""The auxiliary loss of a learned router (paper, Table 6's alternative): experts share the tokens.

As in the Switch Transformer and the reference's DeepSpeed gate: E · Σ_e f_e · P_e in each MoE
layer, where f_e is the share of tokens whose first choice is expert e and P_e the mean router
probability of e. It is 1 where both are spread evenly. Padding takes no part. No label is read.

Shapes: B batch, S sequence, T tokens that are no padding, E experts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medmoe.data.collate import IGNORE
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.routing.hooks import hooked


def load_balance_loss(logits: Tensor) -> Tensor:
    """Return E · Σ_e f_e · P_e of router logits (T, E), a float32 scalar of at least about 1."""
    probabilities = logits.float().softmax(dim=-1)
    experts = logits.shape[-1]
    first = functional.one_hot(probabilities.argmax(dim=-1), experts).float()
    return experts * (first.mean(dim=0) * probabilities.mean(dim=0)).sum()


def is_token(attention_mask: Tensor) -> Tensor:
    """Return (B, S) bool: what is no padding.

    Args:
        attention_mask: (B, S), or (B, 1, S, S) bool as `pack_batch` makes it, where padding sees
            and is seen by nothing but itself.
    """
    if attention_mask.dim() == 2:
        return attention_mask.bool()
    visible = attention_mask[:, 0]
    return visible.sum(dim=1) + visible.sum(dim=2) > 2


class MoeWrapper(nn.Module):
    """A MoE model as the Trainer sees it, with something around it."""

    def __init__(self, model: MedMoeForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    @property
    def config(self) -> Any:
        """The model's configuration, which the Trainer looks at."""
        return self.model.config

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Recompute activations in the backward pass."""
        self.model.activation_checkpointing_enable(**kwargs)

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """Do the same, under its name in earlier releases of transformers."""
        self.model.gradient_checkpointing_enable(**kwargs)


class BalancedMoe(MoeWrapper):
    """A MoE model whose loss also asks that the experts share the tokens.

    Args:
        model: The MoE model; its routers are to be trained.
        weight: Of the auxiliary loss, the mean over the MoE layers.
    """

    def __init__(self, model: MedMoeForConditionalGeneration, weight: float) -> None:
        super().__init__(model)
        self.weight = weight

    def forward(
        self, attention_mask: Tensor | None = None, *, answers_only: bool = False, **inputs: Any
    ) -> dict[str, Tensor]:
        """Return ``loss``, with its parts ``answer_loss`` and ``balance_loss``.

        Args:
            attention_mask: (B, S) or (B, 1, S, S), also tells padding.
            answers_only: Run the head on the answers' positions only; the loss is the same.
        """
        logits: list[Tensor] = []
        with hooked(
            block.gate.register_forward_hook(lambda _, __, out: logits.append(out[0]))
            for block in self.model.moe_blocks.values()
        ):
            out = self.model(attention_mask=attention_mask, answers_only=answers_only, **inputs)
        real = None if attention_mask is None else is_token(attention_mask)
        parts = [load_balance_loss(x.flatten(0, 1) if real is None else x[real]) for x in logits]
        balance = torch.stack(parts).mean()
        loss = out.loss + self.weight * _share_of_step(inputs) * balance
        return {"loss": loss, "answer_loss": out.loss.detach(), "balance_loss": balance.detach()}


def _share_of_step(inputs: dict[str, Any]) -> Tensor | float:
    """Return which share of a step's answer tokens this part of an accumulated batch holds.

    The Trainer divides the answers' loss by the step's count, so that the parts add up to a mean;
    the auxiliary loss must follow.
    """
    count = inputs.get("num_items_in_batch")
    if count is None or "labels" not in inputs:
        return 1.0
    share: Tensor = (inputs["labels"] != IGNORE).sum() / count
    return share
