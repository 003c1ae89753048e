"""The router's decision on every image, and who takes the tokens.

Each image passes once, without a question: its own tokens alone are routed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medmoe.data.images import open_record
from medmoe.data.schema import ImageRecord
from medmoe.evaluation.routes.router_score import RoutedPicture
from medmoe.inference.answer import Routing
from medmoe.inference.engine import MedMoe
from medmoe.routing.statistics import expert_share

_BATCH = 64


@dataclass(frozen=True, slots=True)
class RoutedImages:
    """Images with the decision of a model's router on each."""

    images: tuple[ImageRecord, ...]
    routings: tuple[Routing, ...]
    domains: tuple[str, ...]

    def pictures(self) -> list[RoutedPicture]:
        """Return what `router_score` counts."""
        return [
            RoutedPicture.of(image, routing.domain, routing.out_of_domain.warning)
            for image, routing in zip(self.images, self.routings, strict=True)
        ]

    def modalities(self) -> tuple[str, ...]:
        """Return the images' modalities, sorted: the rows of `expert_shares`."""
        return tuple(sorted({image.modality or "unknown" for image in self.images}))

    def expert_shares(self) -> dict[int, npt.NDArray[np.float64]]:
        """Return, by MoE layer, each modality's mean share of image tokens by expert."""
        modalities = self.modalities()
        sums: dict[int, npt.NDArray[np.float64]] = {}
        for image, routing in zip(self.images, self.routings, strict=True):
            row = modalities.index(image.modality or "unknown")
            for layer, experts in routing.experts.items():
                total = sums.setdefault(layer, np.zeros((len(modalities), len(self.domains))))
                total[row] += [experts[name] for name in self.domains]
        return {layer: expert_share(total) for layer, total in sums.items()}

    def lines(self) -> str:
        """Return one JSON line an image: its id, its modality and the router's domain."""
        rows = [
            {
                "id": image.id,
                "domain": routing.domain,
                "domain_probability": round(routing.domain_probability, 6),
                "modality": image.modality,
            }
            for image, routing in zip(self.images, self.routings, strict=True)
        ]
        return "".join(json.dumps(row) + "\n" for row in rows)


def route_images(engine: MedMoe, images: Sequence[ImageRecord]) -> RoutedImages:
    """Return a MoE model's routing of images.

    Raises:
        ImageError: A picture cannot be used; the record is named.
    """
    routings: list[Routing] = []
    for start in range(0, len(images), _BATCH):
        part = [open_record(image) for image in images[start : start + _BATCH]]
        routings += [each for each in engine.route(engine.encode(part)) if each is not None]
    return RoutedImages(tuple(images), tuple(routings), tuple(engine.model.config.domains))
