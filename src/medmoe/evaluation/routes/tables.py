"""The numbers of the routing figures as rows: what a CSV holds is what its figure shows.

The paper's figures 4, 5 and 11, and beside them load entropy and specialisation.
Shares are percent, 0–100; entropy and normalised values 0–1; mutual information bits. Nothing is
drawn.

Shapes: N images, L MoE layers, C token kinds, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medmoe.data.schema import ImageRecord
from medmoe.domains import domain_of
from medmoe.evaluation.routes.observe import Observation
from medmoe.evaluation.statistics import finite
from medmoe.routing.statistics import expert_share, routing_entropy, specialisation
from medmoe.routing.trace import KINDS

Row = dict[str, Any]
#: Kinds of tokens that are shown together -> their places in a trace.
GROUPS: dict[str, tuple[int, ...]] = {
    "image": (KINDS.index("image"),),
    "text": (KINDS.index("question"), KINDS.index("answer")),
}


def modalities_of(observation: Observation, domains: Sequence[str]) -> list[str]:
    """Return the modalities of the images: the model's domains first, then others by name."""
    present = {image.modality for image in observation.images if image.modality}
    return [name for name in domains if name in present] + sorted(present - set(domains))


def labels_of(images: Sequence[ImageRecord], domains: Sequence[str]) -> list[str | None]:
    """Return each image's domain, None where it has none.

    Where no image is of any of the model's domains, as with experts of a converted model whose
    domains are not known, its modality stands for it.
    """
    known = [domain_of(image.modality, domains) for image in images]
    return known if any(known) else [image.modality or None for image in images]


def token_shares(
    observation: Observation, modalities: Sequence[str], experts: Sequence[str]
) -> list[Row]:
    """Return figures 4 and 11: of a modality's image and text tokens, the share of each expert.

    Returns:
        Per modality, layer and expert: ``image_tokens``, ``text_tokens`` (choices), their
        ``image_share`` and ``text_share`` of all the modality's tokens of that kind in the layer,
        and ``text_part``, the share of text among the expert's own tokens.
    """
    rows = []
    for modality in modalities:
        counts = _of_modality(observation, modality)
        for place, layer in enumerate(observation.layers):
            parts = {name: counts[place, list(at)].sum(0) for name, at in GROUPS.items()}
            shares = {name: 100 * expert_share(choices) for name, choices in parts.items()}
            for e, expert in enumerate(experts):
                image, text = int(parts["image"][e]), int(parts["text"][e])
                rows.append(
                    {
                        "modality": modality,
                        "layer": layer,
                        "expert": expert,
                        "image_tokens": image,
                        "text_tokens": text,
                        "image_share": finite(shares["image"][e]),
                        "text_share": finite(shares["text"][e]),
                        "text_part": 100 * text / (image + text) if image + text else None,
                    }
                )
    return rows


def most_used(
    observation: Observation, router: str, modalities: Sequence[str], experts: Sequence[str]
) -> list[Row]:
    """Return figure 5: per layer and modality the expert that most of the image tokens chose."""
    rows = []
    for place, layer in enumerate(observation.layers):
        for modality in modalities:
            choices = _of_modality(observation, modality)[place, list(GROUPS["image"])].sum(0)
            best = int(choices.argmax())
            rows.append(
                {
                    "router": router,
                    "layer": layer,
                    "modality": modality,
                    "expert": experts[best],
                    "share": 100 * float(choices[best]) / float(choices.sum()),
                    "tokens": int(choices.sum()),
                }
            )
    return rows


def by_layer(observation: Observation, domains: Sequence[str], seed: int) -> list[Row]:
    """Return load entropy and specialisation index, per layer and kind of token.

    Returns:
        ``load_entropy`` (0 one expert takes all, 1 all take alike), ``bits``, ``domain_bits``,
        ``normalised``, ``by_chance`` (bits), ``p`` and ``images`` (of a domain) of
        `specialisation`.
    """
    labels = labels_of(observation.images, domains)
    names = sorted({label for label in labels if label is not None})
    known = np.array([-1 if label is None else names.index(label) for label in labels])
    rows = []
    for place, layer in enumerate(observation.layers):
        for name, at in GROUPS.items():
            counts = observation.counts[:, place, list(at)].sum(1)
            index = specialisation(counts, known, seed=seed)
            rows.append(
                {
                    "layer": layer,
                    "tokens": name,
                    "load_entropy": finite(routing_entropy(counts.sum(0))),
                    "bits": index.bits,
                    "domain_bits": index.domain_bits,
                    "normalised": finite(index.normalised),
                    "by_chance": index.by_chance,
                    "p": index.p,
                    "images": index.n,
                }
            )
    return rows


def _of_modality(observation: Observation, modality: str) -> npt.NDArray[np.int64]:
    """Return the choices (L, C, E) of all tokens of a modality's images."""
    own = [image.modality == modality for image in observation.images]
    counts: npt.NDArray[np.int64] = observation.counts[np.array(own)].sum(0)
    return counts
