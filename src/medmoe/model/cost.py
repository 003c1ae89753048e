"""What a model costs: weights in all and weights a token passes (paper, Table 13).

Memory, latency and FLOPs are not counted here.
"""

from __future__ import annotations

from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration


def activated_parameters(model: MedMoeForConditionalGeneration) -> int:
    """Return how many weights one token passes: all but the experts that are not chosen."""
    total = sum(p.numel() for p in model.parameters())
    for block in model.moe_blocks.values():
        stacked = sum(p.numel() for p in block.experts.parameters())
        experts = block.experts.num_experts
        total -= stacked * (experts - block.gate.top_k) // experts
    return int(total)
