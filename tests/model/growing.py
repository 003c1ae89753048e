"""Tiny model folders with one expert more, of random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests.model.tiny import Family, moe_model, pixels, processor, prompt_ids

from medmoe.model.checkpoint import load_model, save_model
from medmoe.model.expert_tensors import renamed, tensors_hash
from medmoe.model.experts import Expert, MoeFolder, put_in
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.routing import record_routing

FACTS_OF = {"origin": "added", "data": "clinic/train", "licences": {"clinic": "CC-BY-4.0"}}
#: Of a bias, with which a row is chosen for some tokens, for all of them, and for none.
SOME, ALL, NONE = 0.0, 100.0, -100.0


def saved(folder: Path, family: Family = "stablelm", **shape: Any) -> Path:
    save_model(moe_model(family, **shape), processor(), folder, {"data": "phantom/train"})
    return folder


def new_expert(
    files: MoeFolder, bias: float = SOME, name: str = "ultrasound", seed: int = 1
) -> dict[str, torch.Tensor]:
    """Return random tensors of an expert that fits into a model."""
    drawn = torch.Generator().manual_seed(seed)
    first = files.domains[0]
    like = {renamed(n, first, name): t for n, t in sorted(files.expert(first).items())}
    found = {n: torch.randn(t.shape, generator=drawn) * 0.3 for n, t in like.items()}
    return {n: t + bias if ".bias[" in n else t for n, t in found.items()}


def hashes(files: MoeFolder) -> dict[str, str]:
    """Return the SHA-256 of every tensor, and of every row of a router."""
    return {name: tensors_hash({"": tensor}) for name, tensor in files.tensors.items()}


def grown(model: Path, out: Path, bias: float = SOME, name: str = "ultrasound") -> MoeFolder:
    files = MoeFolder(model)
    tensors = new_expert(files, bias, name, seed=sum(map(ord, name)))
    put_in(files, out, Expert(name, tensors, [*files.domains, name], FACTS_OF))
    return MoeFolder(out)


@torch.no_grad()
def run(model: Path | MedMoeForConditionalGeneration) -> tuple[torch.Tensor, Any]:
    """Return logits (B, S, V) on two prompts with pictures, and the routing of their tokens."""
    if isinstance(model, Path):
        model, _ = load_model(model)
    ids = torch.tensor([prompt_ids("Is there a mass?"), prompt_ids("What organ is ")[:24] * 1][:1])
    with record_routing(model) as trace:
        logits = model(input_ids=ids.repeat(2, 1), pixel_values=pixels(2)).logits
    return logits, trace
