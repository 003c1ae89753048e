"""A model whose experts are spread over two processes: ``torchrun expert_parallel.py FOLDER``.

The first process writes to FOLDER/seen.json what differs from the whole model, for each family of
FFNs and each way of laying out the rest: all of it in both, or spread as well (FSDP2).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

#: Name of a layout -> keywords of transformers' own configuration of it.
LAYOUTS = {
    "one batch": {"tp_size": 2, "ep_size": 2},
    "a batch each": {"fsdp_size": 2, "ep_size": 2},
}


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def compare(one: Any, model: Any, saved: Path) -> dict[str, Any]:
    """Return how far logits, gradients and saved weights lie apart, and what a process holds."""
    from tests.model.tiny import pixels, prompt_ids

    ids = torch.tensor([prompt_ids("Is there a mass in the left lung? yes no")])
    inputs = {"input_ids": ids, "pixel_values": pixels(1), "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        logits = [each(**inputs).logits for each in (one, model)]
    answers = [each.generate(**inputs, max_new_tokens=4, do_sample=False) for each in (one, model)]
    for each in (one, model):
        each(**inputs, labels=ids).loss.backward()
    gradients = {n: whole(p.grad) for n, p in model.named_parameters() if p.grad is not None}
    alone = {n: p.grad for n, p in one.named_parameters() if p.grad is not None}
    assert alone.keys() == gradients.keys()
    experts = dict(model.model.language_model.layers[0].mlp.experts.named_parameters())
    model.save_pretrained(saved)
    return {
        "logits": float((logits[0] - logits[1]).abs().max()),
        "same_answer": torch.equal(*answers),
        "gradients": max(float((alone[n] - gradients[n]).abs().max()) for n in alone),
        "share": [p.to_local().shape[0] / p.shape[0] for p in experts.values()],
    }


def main(folder: Path) -> None:
    from transformers.distributed import DistributedConfig

    from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration

    load = MedMoeForConditionalGeneration.from_pretrained
    seen = {}
    for family in ("stablelm", "phi"):
        for name, keywords in LAYOUTS.items():
            spread = load(folder / family, distributed_config=DistributedConfig(**keywords))
            saved = folder / f"{family} {name}"
            seen[saved.name] = compare(load(folder / family), spread, saved)
    if os.environ["RANK"] == "0":
        (folder / "seen.json").write_text(json.dumps(seen), encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
