"""How fast pictures are read, from the image cache and without it, beside what training takes.

Warm: squared pictures are fetched from the cache by one core (at least 2,000 a second are wanted).
Cold: they are decoded, padded and resized into an empty cache, as the product does it on all cores,
which should be 5 times as fast as training takes them, on all cores too. What training takes is
measured of the tiny models of the recipes, 16 pictures a step of phases 1 to 3, and of the smallest
model with real backbones (CLIP-L), 2 pictures a step of phases 1 and 2: from kept features, and
from the pictures themselves, which a step then encodes.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from packing import batches, step
from support.pictures import pictures
from support.timing import options
from support.tiny import Tiny, tiny

from medmoe.config.schema import PhaseName
from medmoe.data.cache import ImageCache
from medmoe.data.intake.sandbox import default_pool
from medmoe.data.pixels import pixel_table
from medmoe.data.schema import ImageRecord
from medmoe.model.processing_medmoe import square_image_processor
from medmoe.training.trainable import set_trainable

#: Model, side of its encoder's pictures, pictures a step, phases.
MODELS = (("tiny", 64, 16, 3), ("tiny_real", 128, 16, 3), ("smollm2_135m", 336, 2, 2))
PHASES: tuple[tuple[PhaseName, int], ...] = (
    ("phase1_alignment", 1),
    ("phase2_instruction", 6),
    ("phase3_moe", 6),
)


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def consumed(parts: Tiny, phases: int, repeats: int) -> dict[str, tuple[float, float]]:
    """Return the pictures a second a step takes by phase: with kept features, and encoding."""
    pixels, size = parts.pixels, len(parts.pixels)
    encode = partial(parts.dense.model.encode_images, pixels)
    with torch.no_grad():
        encode()
        encoding = statistics.median(seconds(encode) for _ in range(repeats))
    rates: dict[str, tuple[float, float]] = {}
    for phase, questions in PHASES[:phases]:
        model = parts.moe if phase == "phase3_moe" else parts.dense
        set_trainable(model, phase)
        packed, _ = batches(parts, questions)
        run = step(model, packed)
        run()
        kept = statistics.median(seconds(run) for _ in range(repeats))
        rates[phase] = (size / kept, size / (kept + encoding))
    return rates


def read(records: list[ImageRecord], side: int, folder: Path, repeats: int) -> tuple[float, float]:
    """Return warm and cold pictures a second."""
    processor = square_image_processor(side, (0.5,) * 3, (0.5,) * 3)
    cold: list[float] = []
    warm: list[float] = []
    for turn in range(min(repeats, 3)):
        cache = ImageCache(folder / f"{side}-{turn}")
        read = partial(pixel_table, records, processor, cache=cache)
        cold.append(seconds(read))
        warm += [seconds(read) for _ in range(repeats)]
    return len(records) / statistics.median(warm), len(records) / statistics.median(cold)


def main() -> None:
    values = options(__doc__.splitlines()[0])
    torch.set_num_threads(default_pool().workers)
    with tempfile.TemporaryDirectory() as folder:
        name, records = pictures(Path(folder), 400)
        default_pool().decode(Path(str(records[0].source)).read_bytes())
        print(f"{name}, pictures a second; {default_pool().workers} decoders and threads")
        for model, side, size, phases in MODELS:
            rates = consumed(tiny(size, model), phases, values.repeats)
            warm, cold = read(records, side, Path(folder), values.repeats)
            print(f"{model}, {side} px: warm {warm:,.0f}, cold {cold:.0f}")
            for phase, (kept, encoding) in rates.items():
                print(
                    f"  a step of {phase:<20}{kept:>6.3g}, cold ÷ it {cold / kept:6.1f}×"
                    f"   encoding too {encoding:>6.3g}, {cold / encoding:6.1f}×"
                )


if __name__ == "__main__":
    main()
