"""The out-of-domain check: is a picture unlike those that the router was taught on?

Of the vision encoder's states, which no later phase changes, the mean and the spread over the
patches are held against those of the taught pictures: Mahalanobis distance to the nearest domain's
mean, under the covariance that the domains share. A picture as good as without any detail has a
small spread and, under some encoders, a small distance too: its mean spread alone is a second
reason. Both limits are set on pictures that nothing was trained on.

Shapes: N pictures, P patches, W encoder width, E domains.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

#: Share of pictures like the held-out ones that may be warned of, and how sure that is.
FALSE_ALARMS, CONFIDENCE = 0.02, 0.95
#: Part of the mean variance that is added to each: some directions hardly vary.
_SHRINKAGE = 1e-3


class DomainCheck(nn.Module):
    """The check of one model, as buffers that are saved with its weights.

    Args:
        facts: ``width`` of `pooled` and number of ``domains``; ``distance`` and ``spread``, the
            limits; ``held_out`` pictures and how many of them were ``warned`` of.
    """

    means: Tensor  # (E, 2W)
    whitening: Tensor  # (2W, 2W)

    def __init__(self, facts: Mapping[str, Any]) -> None:
        super().__init__()
        self.facts = dict(facts)
        width = facts["width"]
        self.register_buffer("means", torch.zeros(facts["domains"], width))
        self.register_buffer("whitening", torch.zeros(width, width))

    def forward(self, states: Tensor) -> Tensor:
        """Return the distance and the mean spread (N, 2) of `pooled` states (N, 2W)."""
        states = states.to(self.means.device).float()
        away = (states[:, None] - self.means.float()) @ self.whitening.float()
        return torch.stack([away.norm(dim=-1).amin(1), _spread(states)], dim=1)

    def warns(self, states: Tensor) -> Tensor:
        """Return (N,) bool, whether each picture is warned of, from `pooled` states (N, 2W)."""
        distance, spread = self(states).unbind(1)
        warned: Tensor = (distance > self.facts["distance"]) | (spread < self.facts["spread"])
        return warned


def pooled(features: Tensor) -> Tensor:
    """Return mean and standard deviation over the patches (N, 2W) of features (N, P, W)."""
    features = features.float()
    return torch.cat([features.mean(1), features.std(1, correction=0)], dim=1)


def _spread(states: Tensor) -> Tensor:
    spread: Tensor = states[:, states.shape[1] // 2 :].mean(1)
    return spread


def check_sentence(facts: Mapping[str, Any]) -> str:
    """Return what is known of a check from its facts: how it was set, and what it warned of."""
    if "width" not in facts:
        return f"none: {facts.get('missing', 'the router was taught without one')}"
    measured = "".join(
        f", {found['warned']} of {found['n']} ({name})"
        for name, found in facts.get("measured", {}).items()
    )
    return (
        f"at most {FALSE_ALARMS:.0%} false alarms; it warns of {facts['warned']} of "
        f"{facts['held_out']} held-out pictures{measured}"
    )


def allowed_warnings(held_out: int) -> int:
    """Return how many held-out pictures may be warned of; -1 where they are too few for any limit.

    The most for which `CONFIDENCE` is kept that of all such pictures at most `FALSE_ALARMS` are.
    """
    from scipy.stats import binom

    chances = binom.cdf(range(held_out), held_out, FALSE_ALARMS) if held_out else []
    return sum(float(chance) <= 1 - CONFIDENCE for chance in chances) - 1


def fit_domain_check(
    taught: Tensor, domains: Tensor, held_out: Tensor
) -> DomainCheck | dict[str, str]:
    """Return the check of a router's pictures, or in words, as ``missing``, why there is none.

    Args:
        taught: `pooled` states (N, 2W) of the pictures that the router was taught on.
        domains: Their domains (N,) int64.
        held_out: `pooled` states of pictures of these domains that nothing was trained on.
    """
    allowed = allowed_warnings(len(held_out))
    if allowed < 0:
        least = next(n for n in range(1, 10_000) if allowed_warnings(n) >= 0)
        return {
            "missing": f"{len(held_out)} held-out pictures of a known domain are too few to set a "
            f"limit of {FALSE_ALARMS:.0%} false alarms; {least} are needed"
        }
    names, place = domains.unique(return_inverse=True)
    means = torch.stack([taught[place == i].double().mean(0) for i in range(len(names))])
    away = taught.double() - means[place]
    variances, directions = torch.linalg.eigh(away.T @ away / len(away))
    floor = _SHRINKAGE * variances.mean()
    if floor <= 0:
        return {"missing": "the encoder says the same of every picture"}
    facts = {"width": taught.shape[1], "domains": len(names), "distance": 0.0, "spread": 0.0}
    check = DomainCheck(facts)
    check.means.copy_(means)
    check.whitening.copy_(directions * (variances.clamp(min=0) + floor).rsqrt())
    distance, _ = check(held_out).unbind(1)
    check.facts |= {
        "distance": float(distance.sort(descending=True).values[allowed]),
        "spread": float(torch.cat([_spread(held_out), _spread(taught)]).min()),
        "held_out": len(held_out),
    }
    check.facts["warned"] = int(check.warns(held_out).sum())
    return check
