"""The reference code's names of our tensors: one table for Phi and StableLM, stages 2 and 3.

A name of ours gives the reference's; a stack of experts gives one name per expert and part. The
other way round needs no table: what is not asked for is either a known by-product or refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from medmoe.backbones.ffn import GATED, PLAIN

Shape = tuple[int, ...]

#: Our beginning of a name -> the reference's; the first that fits is taken.
_BEGINNINGS = (
    ("model.vision_tower.vision_model.", "model.image_tower.image_tower.vision_model."),
    ("model.vision_tower.", "model.image_tower.image_tower.vision_model."),
    ("model.multi_modal_projector.linear_1.", "model.mm_projector.image_spatial_proj.0."),
    ("model.multi_modal_projector.linear_2.", "model.mm_projector.image_spatial_proj.2."),
    ("model.language_model.", "model."),
)
_BLOCK = (
    (".mlp.gate.fc1.", ".mlp.deepspeed_moe.gate.wg."),
    (".mlp.meta_expert.", ".mlp.meta_moe."),
)
_EXPERTS = re.compile(r"(.*\.mlp\.)experts\.(\w+)")
#: Our stack of experts -> the parts of one expert, in the order in which they are stacked.
_PARTS = {**GATED.stacks, **PLAIN.stacks}
#: Computed from the config, not learned: older transformers wrote them into checkpoints.
_BY_PRODUCTS = re.compile(r".*\.(rotary_emb\.(inv_freq|(cos|sin)_cached)|embeddings\.position_ids)")

TOWER = "model.image_tower.image_tower.vision_model."


def reference_names(name: str, shape: Shape) -> list[tuple[str, Shape]]:
    """Return the reference's names and shapes of what one tensor of ours is made of.

    Args:
        name: A key of our model's state dict.
        shape: Its shape; that of stacked experts is (E, …).
    """
    for ours, theirs in _BEGINNINGS:
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
            break
    for ours, theirs in _BLOCK:
        name = name.replace(ours, theirs)
    match = _EXPERTS.fullmatch(name)
    if match is None:
        return [(name, shape)]
    block, stack = match.groups()
    parts = _PARTS[stack]
    experts, rows, *columns = shape
    one = (rows // len(parts), *columns)
    place = f"{block}deepspeed_moe.experts.deepspeed_experts"
    return [(f"{place}.{e}.{part}", one) for e in range(experts) for part in parts]


def assembled(name: str, like: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return one tensor of ours, shaped as ``like``, from the reference's tensors by name."""
    parts = [tensors[key] for key, _ in reference_names(name, tuple(like.shape))]
    return parts[0] if len(parts) == 1 else torch.cat(parts).view(like.shape)


def is_by_product(key: str) -> bool:
    """Return whether a key of a checkpoint holds nothing that was learned."""
    return _BY_PRODUCTS.fullmatch(key) is not None
