"""A toy problem for the phases: a tiny model, and the phantom's questions about random features."""

from __future__ import annotations

from typing import Any

import torch
from tests.model.tiny import (
    DOMAINS,
    IMAGE_TOKENS,
    MOE_LAYERS,
    WIDTH,
    Family,
    dense_model,
    processor,
    randomise,
)

from medmoe.config.phases import PHASE_TABLE
from medmoe.config.schema import PhaseName, PhaseSpec
from medmoe.data.phantom import read_phantom
from medmoe.data.schema import ImageRecord, Record, images_of
from medmoe.data.tokenize import ConversationTokenizer
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.model.upcycle import upcycle
from medmoe.training.context import PhaseContext

#: Far from the scale of a real run; tiny models learn in a few steps at this rate.
SPEC = PhaseSpec(
    learning_rate=3e-3, batch_size=4, warmup_ratio=0.0, weight_decay=0.0, max_grad_norm=1.0
)


def silent(phase: PhaseName, step: int, steps: int, loss: float | None) -> None:
    """Report progress to nobody."""


def phantom_records(count: int = 8) -> list[Record]:
    """Return the records of some small phantom images."""
    return read_phantom("train", count, seed=3, size=32)


def dense(family: Family = "stablelm") -> MedMoeForConditionalGeneration:
    """Return a dense model whose weights are small enough to train on."""
    model: MedMoeForConditionalGeneration = randomise(dense_model(family), seed=11, std=0.05)
    return model


def moe(family: Family = "stablelm") -> MedMoeForConditionalGeneration:
    """Return the MoE model that phase 3 starts from."""
    return upcycle(dense(family), moe_layers=MOE_LAYERS, domains=DOMAINS)


def record(name: str, image: ImageRecord, **changes: Any) -> Record:
    """Make a question about an image."""
    fields: dict[str, Any] = {
        "question": "is there a mass?",
        "answer": "yes",
        "answer_type": "closed",
        "question_type": "presence",
        "task": "vqa",
        "dataset": "hand_made",
        "split": "train",
        "licence": "none",
    }
    return Record(id=name, image=image, **(fields | changes))


def context(
    model: MedMoeForConditionalGeneration,
    steps: int = 6,
    records: list[Record] | None = None,
    phase: PhaseName | None = None,
) -> PhaseContext:
    """Return what a phase trains with, with one random feature map per image.

    Args:
        phase: Phase 3 of a MoE model, phase 1 of a dense one where none is given.
    """
    phase = phase or ("phase3_moe" if model.config.moe_layers else "phase1_alignment")
    records = phantom_records() if records is None else records
    ids = [image.id for image in images_of(records)]
    generator = torch.Generator().manual_seed(2)
    return PhaseContext(
        model=model,
        processor=processor(),
        tokenizer=ConversationTokenizer(processor(), IMAGE_TOKENS),
        features=torch.randn(len(ids), IMAGE_TOKENS, WIDTH, generator=generator),
        rows={name: row for row, name in enumerate(ids)},
        records=[r for r in records if r.task in PHASE_TABLE[phase].tasks],
        repeats={},
        phase=phase,
        spec=SPEC,
        steps=steps,
        max_questions=3,
        seed=5,
        progress=silent,
    )


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Return the names of the weights that differ in any bit."""
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of a model's weights."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
