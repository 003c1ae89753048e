"""A phase in one of several processes: ``torchrun distributed.py OUT SETTINGS STOP_AT``.

It is broken off after a step and resumed in the same process, as phases follow each other in one.
The first process writes its learning curve and the sum of its weights to OUT as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from medmoe.training.context import RunSettings
from medmoe.training.packed import train_packed

STEPS = 6


class _Sharded(TrainerCallback):
    """Looks whether the weights are spread over the processes, and the router is not."""

    def __init__(self) -> None:
        self.trained = self.router = False

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        named = dict(model.named_parameters())
        trained = [p for p in named.values() if p.requires_grad]
        self.trained = all(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in trained)
        self.router = any(isinstance(p, DTensor) for n, p in named.items() if ".mlp.gate." in n)


def run(changes: dict[str, Any], stop_at: int | None = None) -> dict[str, Any]:
    """Train phase 3 and return its curve, and what can be told of its weights."""
    from tests.training import toy

    sharded = _Sharded()
    if "checkpoints" in changes:
        changes = changes | {"checkpoints": Path(changes["checkpoints"])}

    def stop(phase: Any, step: int, steps: int, loss: float | None) -> None:
        if step == stop_at:
            raise KeyboardInterrupt

    model = toy.moe()
    settings = RunSettings(**changes, callbacks=(sharded,))
    result = train_packed(replace(toy.context(model, STEPS), settings=settings, progress=stop))
    weights = [p.detach() for p in model.parameters()]
    assert not any(isinstance(p, DTensor) for p in weights), "the caller's model is whole"
    return {
        "curve": [loss for _, loss in result.curve],
        "weights": sum(float(p.double().abs().sum()) for p in weights),
        "resumed_from": result.resumed_from,
        "sharded": sharded.trained,
        "router_sharded": sharded.router,
    }


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    torch.set_num_threads(1)
    out, words, stop = sys.argv[1:]
    with suppress(KeyboardInterrupt):
        run(json.loads(words), int(stop))
        raise AssertionError("it was not broken off")
    content = run(json.loads(words))
    if os.environ.get("RANK", "0") == "0":
        Path(out).write_text(json.dumps(content), encoding="utf-8")
