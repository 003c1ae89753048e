"""How fast pictures are read, from the image cache and without it, beside what training takes.

Warm: one thread fetches squared pictures from the cache; pictures a second of processor time, which
is the rate of one core (its limit is 2,000). Cold: all cores decode, pad and resize into an empty
cache. A training step of phases 1 to 3 of the tiny model on 16 pictures says how many of them a
second training consumes; cold reading should be 5 times that.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from packing import batches, step
from support.pictures import pictures
from support.timing import options
from support.tiny import Tiny, tiny

from medmoe.config.schema import PhaseName
from medmoe.data.cache import ImageCache
from medmoe.data.intake.sandbox import default_pool
from medmoe.data.pixels import cache_policy, cached, pixel_table
from medmoe.data.schema import ImageRecord
from medmoe.model.processing_medmoe import square_image_processor
from medmoe.training.trainable import set_trainable

BATCH = 16
SIDES = (64, 128, 336)  # the phantom's encoder, the real-data demo's, the paper's
PHASES: tuple[tuple[PhaseName, int], ...] = (
    ("phase1_alignment", 1),
    ("phase2_instruction", 6),
    ("phase3_moe", 6),
)


def seconds(run: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    run()
    return clock() - start


def consumed(parts: Tiny, repeats: int) -> dict[str, float]:
    """Return how many pictures a second a training step takes, by phase."""
    rates = {}
    for phase, questions in PHASES:
        model = parts.moe if phase == "phase3_moe" else parts.dense
        set_trainable(model, phase)
        packed, _ = batches(parts, questions)
        run = step(model, packed)
        run()
        rates[phase] = BATCH / statistics.median(seconds(run) for _ in range(repeats))
    return rates


def read(records: list[ImageRecord], side: int, folder: Path, repeats: int) -> tuple[float, float]:
    """Return warm pictures a second of one core, and cold pictures a second of all."""
    processor = square_image_processor(side, (0.5,) * 3, (0.5,) * 3)
    policy = cache_policy(processor)
    cold, warm = [], []
    for turn in range(min(repeats, 3)):
        cache = ImageCache(folder / f"{side}-{turn}")
        cold.append(seconds(lambda: pixel_table(records, processor, cache=cache)))  # noqa: B023
        for _ in range(repeats):
            fetch = lambda: [cached(image, policy, cache) for image in records]  # noqa: B023, E731
            warm.append(seconds(fetch, time.process_time))
    return len(records) / statistics.median(warm), len(records) / statistics.median(cold)


def main() -> None:
    values = options(__doc__.splitlines()[0])
    rates = consumed(tiny(BATCH), values.repeats)
    for phase, rate in rates.items():
        print(f"a step of {phase:<20} takes {rate:8.0f} pictures a second")
    fastest = max(rates.values())
    with tempfile.TemporaryDirectory() as folder:
        name, records = pictures(Path(folder), 400)
        default_pool().decode(Path(records[0].source).read_bytes())
        print(f"{name}, {default_pool().workers} decoder processes")
        print(
            f"{'side':<6}{'warm, one core':>16}{'cold, all cores':>17}{'cold ÷ fastest step':>21}"
        )
        for side in SIDES:
            warm, cold = read(records, side, Path(folder), values.repeats)
            print(f"{side:<6}{warm:>14.0f}/s{cold:>15.0f}/s{cold / fastest:>20.1f}×")


if __name__ == "__main__":
    main()
