"""The router (part of phase 2; paper, section 3.2 and Figure 6): modality from hidden states.

Tokens of at most 1,000 labelled images pass the frozen phase-2 model; what the FFNs of the future
MoE layers read is kept, and one router, shared by all these layers, learns the image's domain from
each token. The reference ships router weights but no code to train them.

Shapes: B images, T tokens kept per image (all MoE layers together), D hidden, E domains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from medmoe.data.collate import Packed, pack_batch
from medmoe.data.schema import ImageRecord
from medmoe.data.wording import question_text
from medmoe.domains import domain_index
from medmoe.errors import DataError
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.moe import Router
from medmoe.training.packed import PhaseContext
from medmoe.training.schedule import Schedule
from medmoe.training.trainer import PhaseResult, run_phase

#: Tokens kept of one image and layer; neighbouring patches tell the router little new.
TOKENS_KEPT = 32


class RouterTraining(nn.Module):
    """A router with its loss: cross-entropy of the domain, token by token."""

    def __init__(self, config: MedMoeConfig) -> None:
        super().__init__()
        self.router = Router(config)

    def forward(self, states: Tensor, domain: Tensor) -> dict[str, Tensor]:
        """Return the mean loss of states (B, T, D) float32 against domains (B,) int64."""
        logits = self.router.logits(states)
        target = domain[:, None].expand(logits.shape[:2])
        return {"loss": functional.cross_entropy(logits.flatten(0, 1), target.flatten())}


def choose_labelled(
    images: Sequence[ImageRecord], domains: Sequence[str], limit: int, seed: int
) -> list[ImageRecord]:
    """Return at most ``limit`` images with a domain, as equal in number per domain as they allow.

    Raises:
        DataError: Fewer than two domains have an image.
    """
    rng = np.random.default_rng(seed)
    pools = {name: [image for image in images if image.modality == name] for name in domains}
    if sum(bool(pool) for pool in pools.values()) < 2:
        have = ", ".join(name for name, pool in pools.items() if pool) or "none"
        raise DataError(
            f"the router needs labelled images of at least two of the domains "
            f"{', '.join(domains)}; found: {have}; add a data set with modality labels"
        )
    share = limit // len(pools)
    return [pool[i] for pool in pools.values() for i in rng.permutation(len(pool))[:share].tolist()]


def train_router(
    context: PhaseContext, config: MedMoeConfig, images: Sequence[ImageRecord]
) -> tuple[dict[str, Tensor], PhaseResult]:
    """Train one router for all MoE layers on the frozen dense model's hidden states.

    Args:
        context: Its model is the phase-2 model; it is not changed.
        config: Of the future MoE model: its layers, domains and router depth.
        images: Labelled images, as `choose_labelled` gives them.

    Returns:
        The router's state dict, as `upcycle` takes it, and the learning curve.
    """
    spec, steps = context.specs["phase2_router"], context.steps["phase2_router"]
    states = _collect(context, config.moe_layers or [], images)
    domains = [domain_index(image.modality, tuple(config.domains or ())) for image in images]
    torch.manual_seed(context.seed)
    model = RouterTraining(config)

    def draw(index: int, rng: np.random.Generator) -> int:
        return index

    def collate(rows: Sequence[int]) -> dict[str, Tensor]:
        return {
            "states": states[torch.tensor(rows)],
            "domain": torch.tensor([domains[row] for row in rows]),
        }

    schedule = Schedule(draw, len(images), steps * spec.batch_size, context.seed)
    result = run_phase(
        "phase2_router",
        model,
        schedule,
        collate,
        spec,
        steps,
        context.seed,
        context.progress,
        context.settings,
    )
    router = {name: tensor.detach().cpu() for name, tensor in model.router.state_dict().items()}
    return router, result


@torch.no_grad()
def _collect(context: PhaseContext, layers: Sequence[int], images: Sequence[ImageRecord]) -> Tensor:
    """Return what the FFNs of ``layers`` read for each image: (N, layers x TOKENS_KEPT, D)."""
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
        with _ffn_inputs(model, layers) as seen:
            model.model(**{name: tensor.to(model.device) for name, tensor in batch.items()})
        for i, sample in enumerate(part):
            length = len(sample.prefix) + len(sample.segments[0].ids)
            kept = torch.from_numpy(rng.integers(first, length, size=TOKENS_KEPT))
            rows.append(torch.cat([states[i, kept].float().cpu() for states in seen]))
    return torch.stack(rows)


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


@contextmanager
def _ffn_inputs(model: Any, layers: Sequence[int]) -> Iterator[list[Tensor]]:
    """Collect the inputs (B, S, D) of some layers' FFNs during one forward pass."""
    seen: list[Tensor] = []
    handles = [
        model.model.language_model.layers[layer].mlp.register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0])
        )
        for layer in layers
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
