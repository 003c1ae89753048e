"""What the router learns from and is scored on: the frozen phase-2 model's hidden states.

One pass per image with one of its questions; of each future MoE layer a sample of what its FFN
reads is kept.

Shapes: N images, B of them at once, S sequence, L MoE layers, T tokens kept, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medmoe.data.collate import Packed, pack_batch
from medmoe.data.schema import ImageRecord, question_text
from medmoe.domains import domain_index
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.routing.hooks import ffn_inputs
from medmoe.training.context import PhaseContext

#: Tokens kept of one image and layer; neighbouring patches tell the router little new.
TOKENS_KEPT = 32


@dataclass(frozen=True, slots=True)
class LabelledStates:
    """Hidden states of images whose domain is known.

    Attributes:
        images: Names of the images.
        states: (N, L, T, D) float32.
        domains: (N,) int64, index of each image's domain.
    """

    images: tuple[str, ...]
    states: Tensor
    domains: Tensor

    def of(self, images: Sequence[ImageRecord]) -> LabelledStates:
        """Return the states of some of the images, in the order given."""
        places = {name: row for row, name in enumerate(self.images)}
        rows = torch.tensor([places[image.id] for image in images], dtype=torch.int64)
        names = tuple(image.id for image in images)
        return LabelledStates(names, self.states[rows], self.domains[rows])


def labelled_states(
    context: PhaseContext, config: MedMoeConfig, images: Sequence[ImageRecord]
) -> LabelledStates:
    """Return the hidden states of labelled images.

    Args:
        context: Its model is the phase-2 model; it is not changed.
        config: Of the future MoE model: its layers and domains.
        images: Each of one of the config's domains.
    """
    domains = [domain_index(image.modality, config.domains or ()) for image in images]
    states = collect_states(context, config.moe_layers or [], images)
    labels = torch.tensor(domains, dtype=torch.int64)
    return LabelledStates(tuple(image.id for image in images), states, labels)


@torch.no_grad()
def collect_states(
    context: PhaseContext, layers: Sequence[int], images: Sequence[ImageRecord]
) -> Tensor:
    """Return a sample of what the FFNs of ``layers`` read for each image: (N, L, T, D) float32."""
    rng = np.random.default_rng(context.seed)
    samples = _one_question_each(context, images, rng)
    pad = context.processor.tokenizer.pad_token_id
    rows = []
    model = context.model.eval()
    first = context.tokenizer.prefix().index(context.processor.image_token_id)
    for start in range(0, len(samples), 32):
        part = samples[start : start + 32]
        batch: dict[str, Any] = dict(pack_batch(part, pad))
        batch.pop("labels")
        batch["vision_features"] = context.features[torch.tensor([s.image for s in part])]
        with ffn_inputs(model, layers) as seen:
            model.model(**{name: tensor.to(model.device) for name, tensor in batch.items()})
        for i, sample in enumerate(part):
            length = len(sample.prefix) + len(sample.segments[0].ids)
            kept = torch.from_numpy(rng.integers(first, length, size=TOKENS_KEPT))
            rows.append(torch.stack([states[i].cpu()[kept].float() for states in seen]))
    width = model.config.text_config.hidden_size
    return torch.stack(rows) if rows else torch.empty(0, len(layers), TOKENS_KEPT, width)


def _one_question_each(
    context: PhaseContext, images: Sequence[ImageRecord], rng: np.random.Generator
) -> list[Packed]:
    """Return each image with one of its questions, or a plain one where it has none."""
    questions: dict[str, list[str]] = {}
    for record in context.records:
        questions.setdefault(record.image.id, []).append(question_text(record))
    prefix = context.tokenizer.prefix()
    samples = []
    for image in images:
        known = questions.get(image.id, ["Describe the image."])
        text = known[rng.integers(len(known))]
        segment = context.tokenizer.segment(text, None)
        samples.append(Packed(context.rows[image.id], prefix, (segment,)))
    return samples
