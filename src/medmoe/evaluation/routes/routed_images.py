"""The router's decision on every image, and who takes the tokens.

Each image passes once, without a question: its own tokens alone are routed.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from medmoe.data.images import open_record
from medmoe.data.schema import ImageRecord
from medmoe.evaluation.routes.router_score import RoutedPicture
from medmoe.inference.answer import Routing
from medmoe.inference.engine import MedMoe

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

    def token_shares(self) -> list[dict[str, Any]]:
        """Return each modality's mean share of image tokens by layer and expert, in percent.

        In the form of `medmoe.evaluation.routes.tables.token_shares`.
        """
        shares: dict[tuple[str, int, str], list[float]] = defaultdict(list)
        for image, routing in zip(self.images, self.routings, strict=True):
            for layer, experts in routing.experts.items():
                for name in self.domains:
                    shares[image.modality or "unknown", layer, name].append(experts[name])
        return [
            {"modality": modality, "layer": layer, "expert": expert, "image_share": 100 * fmean(of)}
            for (modality, layer, expert), of in sorted(shares.items(), key=lambda row: row[0][:2])
        ]

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
