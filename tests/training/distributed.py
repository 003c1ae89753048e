"""A phase in one of several processes: ``torchrun distributed.py OUT SETTINGS STOP_AT``.

It is broken off after a step and resumed in the same process, as phases follow each other in one.
The first process writes its learning curve and the sum of its weights to OUT as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from medmoe.data.collate import Packed, PackingCollator
from medmoe.processes import processes
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
    """Train phase 3 and return its curve, and what can be told of its weights and samples.

    Args:
        changes: Of the settings, and under ``spec`` of the phase's values.
    """
    from tests.training import toy

    spec = toy.SPEC.model_copy(update=changes.get("spec", {}))
    changes = {name: value for name, value in changes.items() if name != "spec"}
    sharded, seen, collate = _Sharded(), list[list[Any]](), PackingCollator.__call__
    if "checkpoints" in changes:
        changes = changes | {"checkpoints": Path(changes["checkpoints"])}

    def stop(phase: Any, step: int, steps: int, loss: float | None) -> None:
        if step == stop_at:
            raise KeyboardInterrupt

    def look(collator: PackingCollator, samples: Sequence[Packed]) -> dict[str, Any]:
        batch = collate(collator, samples)
        questions = [[s.image, *(list(q.ids) for q in s.segments)] for s in samples]
        seen.append([len(batch["input_ids"]), questions])
        return batch

    model = toy.moe()
    settings = RunSettings(**changes, callbacks=(sharded,))
    context = replace(toy.context(model, STEPS), spec=spec, settings=settings, progress=stop)
    with patch.object(PackingCollator, "__call__", look):
        result = train_packed(context)
    parts = list(zip(*_of_all(seen), strict=True))
    weights = [p.detach() for p in model.parameters()]
    assert not any(isinstance(p, DTensor) for p in weights), "the caller's model is whole"
    return {
        "curve": [loss for _, loss in result.curve],
        "weights": sum(float(p.double().abs().sum()) for p in weights),
        "resumed_from": result.resumed_from,
        "sharded": sharded.trained,
        "router_sharded": sharded.router,
        "rows": [sum(rows for rows, _ in step) for step in parts],
        "samples": [sorted(chain(*(samples for _, samples in step))) for step in parts],
    }


def _of_all(seen: list[list[Any]]) -> list[list[list[Any]]]:
    """Return what each process has seen, step by step."""
    if processes() == 1:
        return [seen]
    from accelerate.utils import gather_object

    return gather_object([seen])


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
