"""A MoE block (4 domain experts and the meta expert) in multiples of one dense FFN's time.

Top-1 and top-2, at 1 token (a step of generation), 16 and 640 tokens (an image and a question), for
each experts implementation, forward only, float32. Arithmetic alone would give 2 for top-1 (one
expert and the meta expert) and 3 for top-2; a few tokens that meet many experts also read all their
weights. ``batched_mm`` copies an expert's weights for every token: it is left out beyond 16 tokens.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import torch
from support.timing import options, ratios
from transformers import AutoConfig, AutoModelForCausalLM

from medmoe.backbones.ffn import ffn_family
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.moe import MoeBlock

#: Half the width of StableLM-2-1.6B's FFN and of Phi-2's: a run of all cases stays under a minute.
SHAPES = {"stablelm": (1024, 2816), "phi": (1280, 5120)}
TOKENS = (1, 16, 640)
IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")
MOST_BATCHED = 16


def block(family: str, top_k: int, implementation: str) -> tuple[MoeBlock, Any]:
    """Return a random MoE block and a stock FFN of the same shape."""
    hidden, intermediate = SHAPES[family]
    text = AutoConfig.for_model(
        family,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=1,
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=8,
    )
    config = MedMoeConfig(text_config=text, moe_layers=[0], num_experts_per_tok=top_k)
    torch.manual_seed(0)
    ffn = AutoModelForCausalLM.from_config(text).model.layers[0].mlp
    config._experts_implementation = implementation  # not before: stock decoders refuse it
    made = MoeBlock(config, meta_expert=ffn, family=ffn_family(ffn))
    with torch.no_grad():
        # Strong enough to spread tokens over all experts, which is the common and slower case.
        made.gate.get_parameter("fc1.weight").normal_(std=1.0)
    return made.eval(), ffn.eval()


@torch.no_grad()
def main() -> None:
    values = options(__doc__.splitlines()[0])
    print(f"{'FFN':<10}{'top-k':<6}{'tokens':<8}{'experts':<12}MoE block ÷ one dense FFN (time)")
    for family, top_k, tokens in product(SHAPES, (1, 2), TOKENS):
        x = torch.randn(1, tokens, SHAPES[family][0])
        blocks = {
            name: block(family, top_k, name)
            for name in IMPLEMENTATIONS
            if name != "batched_mm" or tokens <= MOST_BATCHED
        }
        dense = blocks["eager"][1]
        runs = {name: partial(made, x) for name, (made, _) in blocks.items()}
        outputs = [run() for run in runs.values()]
        assert all(
            torch.allclose(outputs[0], y, atol=1e-4) for y in outputs
        )  # same sums, reordered
        found = ratios({"dense": partial(dense, x), **runs}, "dense", values.repeats)
        for name in runs:
            print(f"{family:<10}{top_k:<6}{tokens:<8}{name:<12}{found[name]}")


if __name__ == "__main__":
    main()
