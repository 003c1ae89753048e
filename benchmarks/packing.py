"""A training step on packed questions against one on the same questions unpacked.

Packed: the questions about an image stand behind one image prefix, which is read once. Unpacked:
each question is a row of its own with its own copy of the prefix. Both give the same loss on the
same answers (checked here), so the ratio is what packing saves: forward, backward and the
optimiser's step of phase 2 (dense) and phase 3 (MoE) of the tiny model, 8 images a step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from support.timing import options, ratios
from support.tiny import Tiny, tiny
from torch import Tensor

from medmoe.config.schema import PhaseName
from medmoe.data.collate import Packed, pack_batch
from medmoe.data.tokenize import Segment
from medmoe.training.trainable import set_trainable

IMAGES = 8


def batches(parts: Tiny, questions: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the same questions as one packed batch and as one unpacked batch."""
    by_image: dict[int, list[Segment]] = defaultdict(list)
    for record in parts.records:
        row = parts.rows[record.image.id]
        if len(by_image[row]) < questions:
            by_image[row].append(parts.tokenizer.segment(record.question, record.answer))
    prefix = parts.tokenizer.prefix()
    packed = [Packed(row, prefix, tuple(found)) for row, found in by_image.items()]
    alone = [Packed(row, prefix, (one,)) for row, found in by_image.items() for one in found]
    pad = parts.processor.tokenizer.pad_token_id

    def batch(samples: list[Packed]) -> dict[str, Tensor]:
        rows = [sample.image for sample in samples]
        return pack_batch(samples, pad) | {"vision_features": parts.features[rows]}

    return batch(packed), batch(alone)


def step(model: torch.nn.Module, batch: dict[str, Tensor]) -> Callable[[], float]:
    """Return one training step as a function; its learning rate is 0, so that repeats are alike."""
    chosen = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(chosen, lr=0.0, weight_decay=0.0)

    def run() -> float:
        optimiser.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    return run


def main() -> None:
    values = options(__doc__.splitlines()[0])
    parts = tiny(IMAGES)
    phases: tuple[tuple[str, torch.nn.Module, PhaseName], ...] = (
        ("phase 2, dense", parts.dense, "phase2_instruction"),
        ("phase 3, MoE", parts.moe, "phase3_moe"),
    )
    print(f"{'':<16}{'questions an image':>20}{'tokens':>10}  unpacked ÷ packed (time)")
    for title, model, phase in phases:
        set_trainable(model, phase)
        for questions in (2, 4, 8):
            packed, alone = batches(parts, questions)
            runs = {"packed": step(model, packed), "unpacked": step(model, alone)}
            losses = [run() for run in runs.values()]
            # float32 sums in another order
            assert abs(losses[0] - losses[1]) < 1e-4, f"not the same training: losses {losses}"
            saved = alone["input_ids"].numel() / packed["input_ids"].numel()
            found = ratios(runs, "packed", values.repeats)["unpacked"]
            print(f"{title:<16}{questions:>20}{saved:>9.2f}×  {found}")


if __name__ == "__main__":
    main()
