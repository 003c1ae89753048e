"""The router (part of phase 2; paper, section 3.2 and Figure 6): modality from hidden states.

At most 1,000 labelled images pass the frozen phase-2 model, each with one of its questions; of each
future MoE layer a sample of what its FFN reads is kept, and the router learns the image's domain
from it: token by token or from their mean, one router shared by all layers (as the reference) or
one for each. The reference shipped router weights without the code to train them, and published
that later, as a notebook (its issue 18, December 2024), which was not read here.

Shapes: N images, B of them at once, L MoE layers, T tokens kept of an image and layer, D hidden,
E domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from medmoe.data.collate import Packed, pack_batch
from medmoe.data.schema import ImageRecord, question_text
from medmoe.domains import domain_index, domain_of
from medmoe.errors import ConfigError, DataError
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.moe import Router
from medmoe.model.upcycle import RouterState
from medmoe.processes import shared_out
from medmoe.routing.hooks import ffn_inputs
from medmoe.training.context import PhaseContext
from medmoe.training.schedule import Schedule
from medmoe.training.trainer import PhaseResult, run_phase

#: Tokens kept of one image and layer; neighbouring patches tell the router little new.
TOKENS_KEPT = 32
#: Images whose states are taken together.
_BATCH = 32


@dataclass(frozen=True, slots=True)
class LabelledStates:
    """Hidden states of images whose domain is known.

    Attributes:
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
    layers, by_picture = config.moe_layers or [], config.routing == "image"
    states = collect_states(context, layers[:1] if by_picture else layers, images, by_picture)
    labels = torch.tensor(domains, dtype=torch.int64)
    return LabelledStates(tuple(image.id for image in images), states, labels)


@torch.no_grad()
def collect_states(
    context: PhaseContext,
    layers: Sequence[int],
    images: Sequence[ImageRecord],
    by_picture: bool = False,
) -> Tensor:
    """Return a sample of what the FFNs of ``layers`` read for each image: (N, L, T, D) float32.

    By picture T is 1, the mean over the image's tokens: all that such a router reads.
    """
    rng = np.random.default_rng(context.seed)
    samples = _one_question_each(context, images, rng)
    pad = context.processor.tokenizer.pad_token_id
    model = context.model.eval()
    first = context.tokenizer.prefix().index(context.processor.image_token_id)
    lengths = [len(sample.prefix) + len(sample.segments[0].ids) for sample in samples]
    kept = [torch.from_numpy(rng.integers(first, n, size=TOKENS_KEPT)) for n in lengths]
    if by_picture:
        kept = [torch.arange(first, first + model.config.image_seq_length)] * len(samples)

    def states_of(start: int) -> Tensor:
        part = samples[start : start + _BATCH]
        batch: dict[str, Any] = dict(pack_batch(part, pad))
        batch.pop("labels")
        batch["vision_features"] = context.features[torch.tensor([s.image for s in part])]
        with ffn_inputs(model, layers) as seen:
            model.model(**{name: tensor.to(model.device) for name, tensor in batch.items()})
        chosen = enumerate(kept[start : start + _BATCH])
        rows = [torch.stack([s[i].cpu()[places].float() for s in seen]) for i, places in chosen]
        return torch.stack(rows).mean(2, keepdim=True) if by_picture else torch.stack(rows)

    width = model.config.text_config.hidden_size
    none = torch.empty(0, len(layers), 1 if by_picture else TOKENS_KEPT, width)
    return torch.cat([none, *shared_out(range(0, len(samples), _BATCH), states_of)])


def _one_question_each(
    context: PhaseContext, images: Sequence[ImageRecord], rng: np.random.Generator
) -> list[Packed]:
    """Return each image with one of its questions, or a plain one where it has none."""
    questions: dict[str, list[str]] = {}
    for record in context.records:
        for image in record.images:
            questions.setdefault(image.id, []).append(question_text(record))
    prefix = context.tokenizer.prefix()
    samples = []
    for image in images:
        known = questions.get(image.id, ["Describe the image."])
        text = known[rng.integers(len(known))]
        segment = context.tokenizer.segment(text, None)
        samples.append(Packed(context.rows[image.id], prefix, (segment,)))
    return samples


RouterLoss = Literal["token", "pooled"]


class RouterTraining(nn.Module):
    """Routers with their loss: cross-entropy of the domain, at each token or at their mean.

    Args:
        config: Gives the shapes and the number of MoE layers.
        loss: ``token`` or ``pooled``.
        per_layer: One router for each MoE layer instead of one for all.
    """

    def __init__(self, config: MedMoeConfig, loss: RouterLoss, per_layer: bool) -> None:
        super().__init__()
        count = len(config.moe_layers or []) if per_layer else 1
        self.router = nn.ModuleList(Router(config) for _ in range(count))
        self.loss = loss

    def forward(self, states: Tensor, domain: Tensor) -> dict[str, Tensor]:
        """Return the mean loss of states (B, L, T, D) float32 against domains (B,) int64."""
        if self.loss == "pooled":
            states = states.mean(dim=2, keepdim=True)
        logits = self.logits(states)
        target = domain[:, None].expand(logits.shape[:2])
        return {"loss": functional.cross_entropy(logits.flatten(0, 1), target.flatten())}

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits (B, L·T, E) of states (B, L, T, D)."""
        routers: list[Any] = list(self.router)
        if len(routers) == 1:
            logits: Tensor = routers[0].logits(states.flatten(1, 2))
            return logits
        parts = [router.logits(states[:, i]) for i, router in enumerate(routers)]
        return torch.cat(parts, dim=1)

    def states(self) -> RouterState | list[RouterState]:
        """Return the weights as `upcycle` takes them: of the one router, or of each layer's."""
        states: list[RouterState] = [
            {name: tensor.detach().cpu() for name, tensor in router.state_dict().items()}
            for router in self.router
        ]
        return states if len(states) > 1 else states[0]


def choose_labelled(
    images: Sequence[ImageRecord], domains: Sequence[str], limit: int, seed: int
) -> list[ImageRecord]:
    """Return at most ``limit`` images with a domain, as equal in number per domain as they allow.

    A smaller limit chooses some of the images that a larger one chooses.

    Raises:
        ConfigError: The limit is not one image for each domain.
        DataError: No domain has an image.
    """
    if limit < len(domains):
        raise ConfigError(
            f"router.labels ({limit}) must be at least the number of domains ({len(domains)}); "
            "use --set router.labels=1000"
        )
    rng = np.random.default_rng(seed)
    pools: dict[str, list[ImageRecord]] = {name: [] for name in domains}
    for image in images:
        name = domain_of(image.modality, domains)
        if name is not None:
            pools[name].append(image)
    if not any(pools.values()):
        raise DataError(
            "phase2_router needs pictures that name their modality, and none of its data is of "
            f"{', '.join(domains)}; --modality X labels all pictures of a set that names none"
        )
    share = limit // len(pools)
    return [pool[i] for pool in pools.values() for i in rng.permutation(len(pool))[:share].tolist()]


def fit_router(
    context: PhaseContext,
    config: MedMoeConfig,
    labelled: LabelledStates,
    loss: RouterLoss = "token",
    per_layer: bool = False,
) -> tuple[RouterState | list[RouterState], PhaseResult]:
    """Train the router of all MoE layers on the frozen dense model's hidden states.

    Args:
        config: Of the future MoE model: its layers, domains and router depth.
        labelled: Of the images that `choose_labelled` gives, from `labelled_states`.
        loss: At each token, or at the mean of an image's tokens.
        per_layer: One router for each MoE layer instead of one for all.

    Returns:
        The router's weights, as `upcycle` takes them, and the learning curve.
    """
    torch.manual_seed(context.seed)
    model = RouterTraining(config, loss, per_layer)

    def draw(index: int, rng: np.random.Generator) -> int:
        return index

    def collate(rows: Sequence[int]) -> dict[str, Tensor]:
        chosen = torch.tensor(rows)
        return {"states": labelled.states[chosen], "domain": labelled.domains[chosen]}

    total = context.steps * context.spec.batch_size
    schedule = Schedule(draw, len(labelled.images), total, context.seed, names=labelled.images)
    result = run_phase(context, model, schedule, collate)
    return model.states(), result


@torch.no_grad()
def route(
    config: MedMoeConfig, router: RouterState | Sequence[RouterState], states: Tensor
) -> Tensor:
    """Return each image's domain (N,) int64 by a router, from states (N, L, T, D).

    The domain is that of the highest mean probability over the image's tokens and layers.
    """
    given = [router] if not isinstance(router, Sequence) else list(router)
    model = RouterTraining(config, "token", per_layer=len(given) > 1)
    for module, state in zip(model.router, given, strict=True):
        module.load_state_dict(dict(state))
    return model.logits(states).softmax(-1).mean(dim=1).argmax(-1)
