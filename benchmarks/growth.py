"""How cost grows with experts, tokens, batch, picture tokens, context and records.

Each row is a size that grows, and two exponents over it, fitted on a log-log scale: of the time,
and of the method's own work, which is counted (torch's FlopCounterMode) or known. A time that grows
faster than its method is a fault of ours; one that grows slower still pays for what is the same at
any size. SmolLM2-135M's widths, six layers, random weights, float32.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from picture_index import MadeUp, fingerprints
from scoring import RESAMPLES, SEED, pairs
from support.timing import Ratio, options
from support.tiny import tiny
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from medmoe.data.near_duplicates import repeated_pictures
from medmoe.evaluation.score.rows import cells_of
from medmoe.evaluation.score.table import score_table
from medmoe.evaluation.statistics import clustered_bootstrap
from medmoe.model.upcycle import upcycle

DEPTH, PICTURE, WORDS = 6, 196, 60
#: The exponent of time may lie above that of the work by this: it is fitted to noisy seconds.
TOLERANCE = 0.1
Run = Callable[[], Any]


@dataclass(frozen=True)
class Growth:
    """A size that grows.

    Attributes:
        runs: By size.
        work: Exponent of the method's own work; None has it counted.
        repeats: At most; None for as many as are asked for.
    """

    name: str
    runs: Mapping[int, Run]
    work: float | None = None
    repeats: int | None = None


def exponent(costs: Mapping[int, float]) -> float:
    """Return the slope of log cost on log size."""
    return float(np.polyfit(np.log(list(costs)), np.log(list(costs.values())), 1)[0])


def operations(run: Run) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def row(growth: Growth, repeats: int) -> str:
    """Time all sizes in turn, and return the row of the table."""
    for run in growth.runs.values():
        run()
    fitted = []
    for _ in range(min(repeats, growth.repeats or repeats)):
        seconds = {}
        for size, run in growth.runs.items():
            start = time.perf_counter()
            run()
            seconds[size] = time.perf_counter() - start
        fitted.append(exponent(seconds))
    time_exponent = Ratio(statistics.median(fitted), min(fitted), max(fitted))
    counted = {size: operations(run) for size, run in growth.runs.items() if growth.work is None}
    work = growth.work if growth.work is not None else exponent(counted)
    above = " above" if time_exponent.median > work + TOLERANCE else ""
    sizes = f"{min(growth.runs):,} to {max(growth.runs):,}"
    return f"{growth.name:<46}{sizes:<22}{time_exponent!s:<22}{work:6.2f}{above}"


def model_growths() -> list[Growth]:
    """Return what a model's cost grows with."""
    parts = tiny(1, "smollm2_135m")
    del parts.dense.model.language_model.layers[DEPTH:]
    parts.dense.config.text_config.num_hidden_layers = DEPTH

    def med_moe(experts: int) -> Any:
        names = [f"domain{place}" for place in range(experts)]
        layers = list(range(0, DEPTH, 2))
        made = upcycle(parts.dense, moe_layers=layers, domains=names, num_experts_per_tok=2)
        with torch.no_grad():
            for block in made.moe_blocks.values():  # tokens are spread over all experts
                block.gate.get_parameter("fc1.weight").normal_(std=1.0)
        return made.eval()

    model = med_moe(4)
    block = next(iter(model.moe_blocks.values()))
    width = model.config.text_config.hidden_size
    blocks = {n: next(iter(med_moe(n).moe_blocks.values())) for n in (2, 4, 8, 16)}
    few, many = torch.randn(1, 16, width), torch.randn(1, 640, width)
    return [
        Growth(
            "experts, a MoE block, 640 tokens", {n: partial(b, many) for n, b in blocks.items()}
        ),
        # Sixteen tokens meet up to all experts, and each one's weights are read.
        Growth(
            "experts, a MoE block, 16 tokens", {n: partial(b, few) for n, b in blocks.items()}, 1
        ),
        Growth(
            "tokens, a MoE block",
            {n: partial(block, torch.randn(1, n, width)) for n in (256, 512, 1024, 2048, 4096)},
        ),
        Growth("batch, reading a question", {n: reading(model, n, PICTURE) for n in (1, 2, 4, 8)}),
        Growth(
            "picture tokens, reading a question",
            {n: reading(model, 1, n) for n in (49, 98, 196, 392, 784, 1568)},
        ),
        Growth(
            "context, saying a token",
            {n: saying(model, n) for n in (256, 512, 1024, 2048, 4096)},
            1,  # at most: of a step only attention reads the context, and the counter misses it
        ),
    ]


def reading(model: Any, batch: int, picture: int) -> Run:
    """Return a forward pass over pictures of so many tokens and a question each."""
    ids = torch.full((batch, picture + WORDS), 5)
    ids[:, :picture] = model.config.image_token_id
    features = torch.randn(batch, picture, model.config.vision_config.hidden_size)
    return partial(model, input_ids=ids, vision_features=features, logits_to_keep=1)


def saying(model: Any, context: int) -> Run:
    """Return a step of generation behind so many tokens."""
    cache = DynamicCache(config=model.config.text_config)
    model(input_ids=torch.full((1, context), 5), past_key_values=cache, logits_to_keep=1)
    one: Tensor = torch.full((1, 1), 5)

    def run() -> None:
        model(input_ids=one, past_key_values=cache, logits_to_keep=1)
        cache.crop(-1)

    return run


def record_growths(most: int) -> list[Growth]:
    """Return what the cost of scoring, statistics and the data audit grows with."""
    sizes = [size for size in (1_000, 10_000, 100_000, 1_000_000) if size <= most]
    records, predictions = pairs(max(sizes))
    rng = np.random.default_rng(SEED)
    values, images = rng.random((max(sizes), 4)), [record.image.id for record in records]
    made_up = MadeUp()
    # The index begins above 4,096 pictures; below, all are compared.
    pictures = [size for size in (5_000, 10_000, 20_000, 40_000) if size <= most]

    def scored(size: int) -> Run:
        return lambda: cells_of(score_table(records[:size], predictions[:size], seed=SEED))

    def resampled(size: int) -> Run:
        return lambda: clustered_bootstrap(
            values[:size], images[:size], seed=SEED, resamples=RESAMPLES
        )

    def audited(size: int) -> Run:
        return lambda: repeated_pictures(fingerprints(made_up, size))

    return [
        Growth("records, scoring by every protocol", {n: scored(n) for n in sizes}, 1, 1),
        Growth("records, intervals", {n: resampled(n) for n in sizes}, 1, 1),
        # Of N pictures in √N clusters each is held against those of some clusters.
        Growth(
            "pictures, near-duplicates by the index",
            {n: audited(n) for n in pictures},
            1.5,
            1,
        ),
    ]


@torch.no_grad()
def main() -> None:
    values = options(__doc__.splitlines()[0])
    print(f"{'what grows':<46}{'from, to':<22}{'exponent of time':<22}of the work")
    for growth in [*model_growths(), *record_growths(10_000 if values.quick else 100_000)]:
        print(row(growth, values.repeats), flush=True)


if __name__ == "__main__":
    main()
