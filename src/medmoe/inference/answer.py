"""What an answer is: the words, their probability, and where the router sent the image.

Reading a routing out of the routers' trace stands here too; running the model does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor

from medmoe.data.intake.facts import ImageFacts
from medmoe.domains import domain_of
from medmoe.model.domain_check import pooled
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.routing.trace import RoutingTrace


@dataclass(frozen=True, slots=True)
class OutOfDomain:
    """Whether a picture is unlike those that the router was taught on (`DomainCheck`).

    Attributes:
        warning: None where the model has no check.
        sentence: The same in words, as they stand wherever an answer is shown.
        distance, limit: Of the picture, and the largest that is not warned of.
    """

    warning: bool | None = None
    sentence: str = "no out-of-domain check: the model was saved without one"
    distance: float | None = None
    limit: float | None = None


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
    out_of_domain: OutOfDomain = OutOfDomain()


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer in words. For research use only, not a medical device.

    Attributes:
        confidence: Probability, 0–1, the model gave to exactly this answer; not calibrated.
        routing: None for a dense model or a question without an image.
        cut: Whether the longest answer ended it, not the model.
        further: Routings of a conversation's further images; each image is decided on apart.
        options: Where it was chosen among some: all with their shares, the likeliest first.
    """

    text: str
    confidence: float
    routing: Routing | None
    cut: bool = False
    further: tuple[Routing | None, ...] = ()
    options: tuple[tuple[str, float], ...] = ()


def ranked(options: Sequence[str], scores: Sequence[float]) -> tuple[tuple[str, float], ...]:
    """Return options with their shares, which sum to 1, by log-likelihoods; the likeliest first."""
    shares = torch.tensor(scores, dtype=torch.float64).softmax(0).tolist()
    return tuple(sorted(zip(options, shares, strict=True), key=lambda pair: -pair[1]))


def told_confidence(confidence: float, *facts: ImageFacts | None) -> float | None:
    """Return the confidence to show: none where in a picture nothing is to be seen."""
    flat = any(one is not None and "flat_picture" in one.warnings for one in facts)
    return None if flat else confidence


def all_warnings(
    facts: Sequence[ImageFacts | None], routings: Sequence[Routing | None]
) -> list[str]:
    """Return the warnings about the pictures of a conversation; of several, each with its number.

    Args:
        facts: Of the pictures; one None where there is no picture.
        routings: Of its answer, none where there is no answer.
    """
    if len(facts) == 1:
        return warnings_of(facts[0], *routings)
    return [
        f"{len(facts)} images: a model that was trained on conversations about one image each may "
        "answer worse",
        *(
            f"image {number}: {warning}"
            for number, (one, routing) in enumerate(zip_longest(facts, routings), 1)
            for warning in warnings_of(one, routing)
        ),
    ]


def warnings_of(facts: ImageFacts | None, routing: Routing | None = None) -> list[str]:
    """Return the warnings about a picture and its answer, in words.

    Args:
        facts: Of the picture; None without one.
        routing: Of its answer: it is held against the modality that the file names.
    """
    warnings = facts.sentences() if facts else []
    if routing is not None and routing.out_of_domain.warning:
        warnings.append(routing.out_of_domain.sentence)
    if facts is None or facts.modality is None or routing is None:
        return warnings
    domains, told = list(routing.probabilities), f"the file says {facts.modality}"
    expected = domain_of(facts.modality, domains)
    if expected is None:
        warnings.append(f"{told}; this model knows only {', '.join(domains)}")
    elif expected != routing.domain:
        warnings.append(f"{told}, the router took it for {routing.domain}")
    return warnings


def read_check(model: MedMoeForConditionalGeneration, features: Tensor) -> list[OutOfDomain]:
    """Return what a model's out-of-domain check says of encoded images (N, P, D_vision)."""
    facts, check = model.config.domain_check or {}, model.domain_check
    if check is None:
        why = f"no out-of-domain check: {facts['missing']}" if "missing" in facts else None
        return [OutOfDomain(sentence=why) if why else OutOfDomain()] * len(features)
    states = pooled(features)
    limit, least = facts["distance"], facts["spread"]
    found: list[OutOfDomain] = []
    for distance, to_noise, spread in check(states).tolist():
        flat, told = spread < least, f"distance {distance:.1f}, usual is at most {limit:.1f}"
        noise = to_noise < distance
        warning = flat or noise or distance > limit
        text = f"not out of domain by the check ({told})"
        if warning:
            other = "it looks like noise" if noise else told
            why = "it has hardly any detail" if flat else other
            text = (
                "out of domain: the picture is unlike those that the router was taught on "
                f"({why}); do not rely on the answer"
            )
        found.append(OutOfDomain(warning, text, distance, limit))
    return found


def read_routings(
    trace: RoutingTrace,
    checks: Sequence[OutOfDomain],
    domains: Sequence[str],
    *,
    experts: bool,
) -> list[Routing]:
    """Return the routing of each image of a trace, in order: a row may have several.

    Args:
        trace: Of image tokens only, of which all images have equally many.
        checks: Of the images.
        domains: In the order of the experts.
        experts: Also give each expert's share of the tokens, layer by layer.
    """
    images, layers = len(checks), trace.layers
    means = [trace.probabilities(i).reshape(images, -1, len(domains)).mean(1) for i in layers]
    mean = np.mean(means, axis=0)
    chosen = {i: trace.experts(i).reshape(images, -1) for i in layers} if experts else {}
    routings: list[Routing] = []
    for image, check in enumerate(checks):
        best = int(mean[image].argmax())
        shares = {
            layer: {name: float((of[image] == e).mean()) for e, name in enumerate(domains)}
            for layer, of in chosen.items()
        }
        named = dict(zip(domains, mean[image].tolist(), strict=True))
        routings.append(Routing(domains[best], float(mean[image, best]), named, shares, check))
    return routings


class ChosenTokens:
    """Keeps the log-probability of each greedy token, instead of all logits of all steps.

    Of 64 answers of 24 tokens from a vocabulary of 262,144 these would be 1.6 GB.
    """

    def __init__(self) -> None:
        self._log_probs: list[Tensor] = []

    def __len__(self) -> int:
        """Return how many tokens were chosen, one of each row."""
        return len(self._log_probs)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Take a step's likeliest tokens; the logits (B, V) stay what they are."""
        self._log_probs.append(scores.float().log_softmax(-1).amax(-1))
        return scores

    def told(self, sequences: Tensor, ends: Sequence[int]) -> tuple[list[float], list[bool]]:
        """Return the probability of each greedy answer (B, T), and whether it has no end.

        Args:
            ends: Tokens that end an answer; the first of them belongs to it.
        """
        is_end = torch.isin(sequences, torch.tensor(ends, device=sequences.device))
        ended = is_end.cumsum(1)
        counted = (ended == 0) | ((ended == 1) & is_end)
        probabilities = (torch.stack(self._log_probs, 1) * counted).sum(1).exp()
        return probabilities.tolist(), (ended[:, -1] == 0).tolist()
