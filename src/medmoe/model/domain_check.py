"""The out-of-domain check: is a picture unlike those that the router was taught on?

Of the vision encoder's states, which no later phase changes, the mean and the spread over the
patches, each scaled to length 1, are held against those of the taught pictures: Mahalanobis
distance to the nearest domain's mean, under the covariance that the domains share. What says
nothing to an encoder can lie near a domain all the same: a picture nearer to noise than to any
domain is a second reason, and one as good as without any detail, of a small mean spread, a third.
The limits are set on pictures that nothing was trained on.

Shapes: N pictures, P patches, W encoder width, E domains.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Share of pictures like the held-out ones that may be warned of, and how sure that is.
FALSE_ALARMS, CONFIDENCE = 0.02, 0.95
#: Part of the mean variance that is added to each: some directions hardly vary.
_SHRINKAGE = 1e-3


class DomainCheck(nn.Module):
    """The check of one model, as buffers that are saved with its weights.

    Args:
        facts: ``pooled_width`` and number of ``domains``; ``distance`` and ``spread``, the limits;
            ``held_out`` pictures and how many of them were ``warned`` of.
    """

    means: Tensor  # (E + 1, 2W), the last one of noise
    whitening: Tensor  # (2W, 2W)

    def __init__(self, facts: Mapping[str, Any]) -> None:
        super().__init__()
        self.facts = dict(facts)
        width = facts["pooled_width"]
        self.register_buffer("means", torch.zeros(facts["domains"] + 1, width))
        self.register_buffer("whitening", torch.zeros(width, width))

    def forward(self, states: Tensor) -> Tensor:
        """Return (N, 3) of `pooled` states (N, 2W): distance, distance to noise, mean spread."""
        states = states.to(self.means.device).float()
        away = (_scaled(states)[:, None] - self.means.float()) @ self.whitening.float()
        distances = away.norm(dim=-1)
        return torch.stack([distances[:, :-1].amin(1), distances[:, -1], _spread(states)], dim=1)

    def warns(self, states: Tensor) -> Tensor:
        """Return (N,) bool, whether each picture is warned of, from `pooled` states (N, 2W)."""
        distance, to_noise, spread = self(states).unbind(1)
        near = (distance <= self.facts["distance"]) & (distance <= to_noise)
        warned: Tensor = ~near | (spread < self.facts["spread"])
        return warned


def pooled(features: Tensor) -> Tensor:
    """Return mean and standard deviation over the patches (N, 2W) of features (N, P, W)."""
    features = features.float()
    return torch.cat([features.mean(1), features.std(1, correction=0)], dim=1)


def _scaled(states: Tensor) -> Tensor:
    """Return mean and spread, each scaled to length 1: how much there is of either says little."""
    return functional.normalize(states.unflatten(1, (2, -1)), dim=-1).flatten(1)


def _spread(states: Tensor) -> Tensor:
    spread: Tensor = states[:, states.shape[1] // 2 :].mean(1)
    return spread


def check_sentence(facts: Mapping[str, Any]) -> str:
    """Return what is known of a check from its facts: how it was set, and what it warned of."""
    if "pooled_width" not in facts:
        return f"none: {facts.get('missing', 'the model was saved without one')}"
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
    taught: Tensor, domains: Tensor, held_out: Tensor, noise: Tensor
) -> DomainCheck | dict[str, str]:
    """Return the check of a router's pictures, or in words, as ``missing``, why there is none.

    Args:
        taught: `pooled` states (N, 2W) of the pictures that the router was taught on.
        domains: Their domains (N,) int64.
        held_out: `pooled` states of pictures of these domains that nothing was trained on.
        noise: Those of pictures of noise.
    """
    allowed = allowed_warnings(len(held_out))
    if allowed < 0:
        least = next(n for n in range(1, 10_000) if allowed_warnings(n) >= 0)
        return {
            "missing": f"{len(held_out)} held-out pictures of a known domain are too few to set a "
            f"limit of {FALSE_ALARMS:.0%} false alarms; {least} are needed"
        }
    names, place = domains.unique(return_inverse=True)
    scaled = _scaled(taught.double())
    means = torch.stack([scaled[place == i].mean(0) for i in range(len(names))])
    away = scaled - means[place]
    variances, directions = torch.linalg.eigh(away.T @ away / len(away))
    floor = _SHRINKAGE * variances.mean()
    if floor < 1e-12:  # of directions whose length is 1
        return {"missing": "the encoder says the same of every picture"}
    facts = {"pooled_width": taught.shape[1], "domains": len(names), "distance": 0.0, "spread": 0.0}
    check = DomainCheck(facts)
    check.means.copy_(torch.cat([means, _scaled(noise.double()).mean(0, keepdim=True)]))
    check.whitening.copy_(directions * (variances.clamp(min=0) + floor).rsqrt())
    distance, to_noise, _ = check(held_out).unbind(1)
    distance[to_noise < distance] = torch.inf  # warned of by any limit
    limit = float(distance.sort(descending=True).values[allowed])
    if limit == torch.inf:
        return {"missing": f"the encoder takes more than {allowed} held-out pictures for noise"}
    check.facts |= {
        "distance": limit,
        "spread": float(torch.cat([_spread(held_out), _spread(taught)]).min()),
        "held_out": len(held_out),
    }
    check.facts["warned"] = int(check.warns(held_out).sum())
    return check
