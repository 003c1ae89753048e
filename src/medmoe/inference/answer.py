"""What an answer is: the words, their probability, and where the router sent the image.

Reading a routing out of the routers' trace stands here too; running the model does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from medmoe.data.intake.facts import ImageFacts
from medmoe.domains import domain_of
from medmoe.routing.trace import RoutingTrace


@dataclass(frozen=True, slots=True)
class Routing:
    """Which domain the router takes an image for.

    Attributes:
        domain: The most probable domain.
        domain_probability: Its probability, 0–1: mean over the image's tokens and all MoE layers.
        probabilities: The same for every domain.
        experts: Where asked for: layer → share of the image's tokens per domain expert.
    """

    domain: str
    domain_probability: float
    probabilities: dict[str, float]
    experts: dict[int, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer in words. For research use only, not a medical device.

    Attributes:
        confidence: Probability, 0–1, the model gave to exactly this answer; not calibrated.
        routing: None for a dense model or a question without an image.
    """

    text: str
    confidence: float
    routing: Routing | None


def warnings_of(facts: ImageFacts | None, routing: Routing | None = None) -> list[str]:
    """Return the warnings about a picture and its answer, in words.

    Args:
        facts: Of the picture; None without one.
        routing: Of its answer: it is held against the modality that the file names.
    """
    warnings = facts.sentences() if facts else []
    if facts is None or facts.modality is None or routing is None:
        return warnings
    domains, told = list(routing.probabilities), f"the file says {facts.modality}"
    expected = domain_of(facts.modality, domains)
    if expected is None:
        warnings.append(f"{told}; this model knows only {', '.join(domains)}")
    elif expected != routing.domain:
        warnings.append(f"{told}, the router took it for {routing.domain}")
    return warnings


def read_routings(
    trace: RoutingTrace, count: int, domains: Sequence[str], *, experts: bool
) -> list[Routing]:
    """Return the routing of the first ``count`` rows of a trace, one image each.

    Args:
        trace: Of image tokens only.
        domains: In the order of the experts.
        experts: Also give each expert's share of the tokens, layer by layer.
    """
    mean = np.mean([trace.row_probabilities(layer) for layer in trace.layers], axis=0)
    counts = {layer: trace.row_counts(layer) for layer in trace.layers} if experts else {}
    routings: list[Routing] = []
    for row in range(count):
        best = int(mean[row].argmax())
        shares = {
            layer: dict(zip(domains, (c[row] / c[row].sum()).tolist(), strict=True))
            for layer, c in counts.items()
        }
        named = dict(zip(domains, mean[row].tolist(), strict=True))
        routings.append(Routing(domains[best], float(mean[row, best]), named, shares))
    return routings
