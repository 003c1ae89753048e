"""What recording the routing costs: answers generated with and without `record_routing`.

`generate` of the tiny MoE model with random weights, a batch of prompts with images and eight new
tokens each; the trace is read too. The answers must be the same. The bar is 5 % more time at most.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from support.timing import options, ratios
from support.tiny import Tiny, tiny

from medmoe.routing.trace import record_routing

BATCHES, NEW_TOKENS = (1, 16), 8


def prompts(parts: Tiny, count: int) -> dict[str, Any]:
    """Return the inputs of one question, asked of as many images."""
    prompt = parts.tokenizer.prompt(parts.records[0].question)
    ids = torch.tensor([prompt] * count)
    features = parts.features[torch.arange(count) % len(parts.features)]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "vision_features": features,
        "max_new_tokens": NEW_TOKENS,
        "min_new_tokens": NEW_TOKENS,
        "do_sample": False,
    }


def plain(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """Generate without recording."""
    out: torch.Tensor = model.generate(**inputs)
    return out


def recorded(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """Generate, record and read the sums."""
    with record_routing(model) as trace:
        out: torch.Tensor = model.generate(**inputs)
    for layer in trace.layers:
        assert trace.experts(layer).size > 0
    return out


@torch.no_grad()
def main() -> None:
    values = options(__doc__.splitlines()[0])
    parts = tiny(max(BATCHES))
    print(f"{'batch':<8}recorded ÷ plain generation (time)")
    for count in BATCHES:
        inputs = prompts(parts, count)
        runs: dict[str, Callable[[], torch.Tensor]] = {
            "plain": partial(plain, parts.moe, inputs),
            "recorded": partial(recorded, parts.moe, inputs),
        }
        outputs = [run() for run in runs.values()]
        assert all(torch.equal(outputs[0], out) for out in outputs)
        print(f"{count:<8}{ratios(runs, 'plain', 3 * values.repeats)['recorded']}")


if __name__ == "__main__":
    main()
