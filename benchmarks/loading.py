"""A phase that prepares its samples while the step before computes, against one that does not.

Phase 2 of the tiny model, one question on each of 16 pictures a step. On demand: pictures are read
from files, squared and encoded in the step that needs them, out of the image cache or not. Kept:
features are there already and samples are only drawn and tokenised. All in multiples of the time of
a run whose batches are ready before it begins: what encoding takes is in it, and cannot be done
ahead. One thread computes, which leaves a second core to read with. The weights after both ways are
equal, which is checked.
"""

from __future__ import annotations

import copy
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from support.pictures import pictures
from support.timing import options, ratios
from support.tiny import Tiny, tiny

from medmoe.backbones.registry import vision_backbone
from medmoe.config.schema import PhaseSpec
from medmoe.data.collate import PackingCollator
from medmoe.data.intake.sandbox import default_pool
from medmoe.data.schema import ImageRecord, Record
from medmoe.training import engine
from medmoe.training.context import PhaseContext
from medmoe.training.features import FeaturesOnDemand
from medmoe.training.packed import packed_schedule
from medmoe.training.schedule import Ahead, Begin, Schedule
from medmoe.training.trainer import run_phase

BATCH, STEPS = 16, 12
SPEC = PhaseSpec(
    learning_rate=1e-4, batch_size=BATCH, warmup_ratio=0.0, weight_decay=0.0, max_grad_norm=1.0
)


class AtOnce(Ahead):
    """Draws a sample when it is asked for."""

    def __getitem__(self, index: int) -> Any:
        return self.schedule[index]


def context_of(parts: Tiny, images: list[ImageRecord], features: Any) -> PhaseContext:
    """Return a phase on each picture once, with one question."""
    records = [
        Record(
            image.id, image, "Is there a fracture?", "no", "closed", "presence", "vqa", "benchmark",
            "train", "none",
        )
        for image in images
    ]  # fmt: skip
    rows = {image.id: row for row, image in enumerate(images)}
    return PhaseContext(
        phase="phase2_instruction", spec=SPEC, steps=STEPS, seed=1, progress=silent,
        model=parts.dense, processor=parts.processor, tokenizer=parts.tokenizer,
        features=features, rows=rows, records=records, repeats={}, max_questions=1,
    )  # fmt: skip


def train(
    context: PhaseContext, schedule: Schedule[Any], collate: Any, begin: Begin | None = None
) -> Any:
    """Train a copy of the dense model, and return it."""
    model = copy.deepcopy(context.model)
    run_phase(context, model, schedule, collate, begin)
    return model


def compare(parts: Tiny, images: list[ImageRecord], features: Any, repeats: int) -> str:
    """Return what preparing at once costs, and what is left of the cost ahead, as ratios."""
    collate = PackingCollator(features, parts.processor.tokenizer.pad_token_id)
    context = context_of(parts, images, features)
    plain = packed_schedule(context)
    batches = [
        collate([plain[i] for i in range(start, start + BATCH)])
        for start in range(0, len(plain), BATCH)
    ]
    ready: Schedule[Any] = Schedule(lambda i, _: batches[i // BATCH], len(plain), len(plain), 1)

    def begin(sample: Any) -> None:
        if isinstance(features, FeaturesOnDemand):
            features.begin(sample.image)

    def ahead() -> Any:
        setattr(engine, "Ahead", Ahead)  # noqa: B010
        return train(context, packed_schedule(context), collate, begin)

    def at_once() -> Any:
        setattr(engine, "Ahead", AtOnce)  # noqa: B010
        return train(context, packed_schedule(context), collate)

    def nothing() -> Any:
        return train(context, ready, lambda samples: samples[0])

    pairs = zip(ahead().parameters(), at_once().parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs), "not the same training"
    found = ratios({"ahead": ahead, "at once": at_once, "ready": nothing}, "ready", repeats)
    return f"{found['at once']!s:>24}{found['ahead']!s:>24}"


def silent(*_: Any) -> None:
    """Report progress to nobody."""


def main() -> None:
    values = options(__doc__.splitlines()[0])
    parts = tiny(BATCH)
    vision = vision_backbone("tiny_clip_64")
    with tempfile.TemporaryDirectory() as folder:
        name, images = pictures(Path(folder), BATCH * STEPS)
        default_pool().decode(Path(str(images[0].source)).read_bytes())
        print(f"{name}, {STEPS} steps of {BATCH}")
        tower = parts.dense.model.vision_tower
        on_demand = FeaturesOnDemand(tower, vision, parts.processor.image_processor, images)
        kept = on_demand[torch.arange(len(images))]
        print(f"{'÷ batches ready':<20}{'at once':>24}{'ahead':>24}")
        for title, features, cache in (
            ("on demand", on_demand, "off"),
            ("on demand, cached", on_demand, folder),
            ("kept", kept, "off"),
        ):
            os.environ["MEDMOE_CACHE"] = cache
            print(f"{title:<20}{compare(parts, images, features, values.repeats)}")


if __name__ == "__main__":
    main()
