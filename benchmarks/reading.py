"""How fast pictures are read, from the image cache and without it, beside what training takes.

Warm: squared pictures are fetched from the cache (at least 2,000 a second are wanted). Cold: they
are decoded, padded and resized into an empty cache. A training step of phases 1 to 3 of the tiny
model on 16 pictures says how many of them training consumes; cold reading should be 5 times that.
All rates are pictures a second of processor time, that of the decoder processes included, hence of
one core: a busy machine does not change them much. Cold reading uses all cores, a step here one.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
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


def spent() -> float:
    """Return the processor time of this process and of its decoder processes so far."""
    decoders = psutil.Process().children()
    times = [child.cpu_times() for child in decoders]
    return time.process_time() + sum(one.user + one.system for one in times)


def consumed(parts: Tiny, repeats: int) -> dict[str, float]:
    """Return how many pictures a second a training step takes, by phase."""
    rates = {}
    for phase, questions in PHASES:
        model = parts.moe if phase == "phase3_moe" else parts.dense
        set_trainable(model, phase)
        packed, _ = batches(parts, questions)
        run = step(model, packed)
        run()
        spent = [seconds(run, time.process_time) for _ in range(repeats)]
        rates[phase] = BATCH / statistics.median(spent)
    return rates


def read(records: list[ImageRecord], side: int, folder: Path, repeats: int) -> tuple[float, float]:
    """Return warm and cold pictures a second of one core."""
    processor = square_image_processor(side, (0.5,) * 3, (0.5,) * 3)
    policy = cache_policy(processor)
    cold, warm = [], []
    for turn in range(min(repeats, 3)):
        cache = ImageCache(folder / f"{side}-{turn}")
        cold.append(seconds(lambda: pixel_table(records, processor, cache=cache), spent))  # noqa: B023
        for _ in range(repeats):
            fetch = lambda: [cached(image, policy, cache) for image in records]  # noqa: B023, E731
            warm.append(seconds(fetch, time.process_time))
    return len(records) / statistics.median(warm), len(records) / statistics.median(cold)


def main() -> None:
    values = options(__doc__.splitlines()[0])
    rates = consumed(tiny(BATCH), values.repeats)
    for phase, rate in rates.items():
        print(f"a step of {phase:<20} takes {rate:8.0f} pictures a second")
    with tempfile.TemporaryDirectory() as folder:
        name, records = pictures(Path(folder), 400)
        default_pool().decode(Path(records[0].source).read_bytes())
        print(f"{name}, {default_pool().workers} decoder processes")
        head = "".join(f"{'÷ ' + phase.split('_')[0]:>12}" for phase in rates)
        print(f"{'side':<6}{'warm':>10}{'cold':>10}  cold{head}")
        for side in SIDES:
            warm, cold = read(records, side, Path(folder), values.repeats)
            shares = "".join(f"{cold / rate:>11.1f}×" for rate in rates.values())
            print(f"{side:<6}{warm:>8.0f}/s{cold:>8.0f}/s      {shares}")


if __name__ == "__main__":
    main()
