"""How often a router names the right domain, counted so that no common domain can hide the others.

Beside the accuracy stand each domain's recall and their mean, the macro accuracy, and what always
answering the commonest domain would reach. A domain whose pictures all come from a source that
shows nothing else may be told by the look of that source: its recall stands apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medmoe.data.schema import ImageRecord
from medmoe.domains import domain_of
from medmoe.evaluation.statistics import accuracy_of

#: What a run knows of a data set that its router is tested on, in the order of the rows.
SOURCES = {
    "taught": "sources that the router was taught on",
    "seen": "sources that other phases trained on, the router did not",
    "new": "sources never trained on",
}


@dataclass(frozen=True, slots=True)
class RoutedPicture:
    """What a router made of one picture.

    Attributes:
        domain: The one that the router chose.
        warned: Whether the out-of-domain check warns of it; None without a check.
    """

    dataset: str
    modality: str | None
    domain: str
    warned: bool | None = None

    @classmethod
    def of(cls, image: ImageRecord, domain: str, warned: bool | None = None) -> RoutedPicture:
        """Return an image with the domain that a router chose."""
        return cls(image.id.partition("/")[0], image.modality, domain, warned)


def router_score(
    pictures: Sequence[RoutedPicture],
    domains: Sequence[str],
    *,
    per_domain: int | None = None,
    seed: int = 0,
    sources: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the object ``router`` of a summary, in percent; without a known domain ``n`` is 0.

    Args:
        per_domain: At most so many pictures of each domain, equal in number, drawn by the seed;
            None counts all.
        sources: Data set → a key of `SOURCES`. The first kind that has pictures stands on top, all
            of them ``by_source``.
    """
    known = [p for p in pictures if domain_of(p.modality, domains)]
    score: dict[str, Any] = {"n": 0, "by_dataset": {}}
    rows = {}
    for kind in SOURCES if sources else ():
        of_kind = [p for p in known if sources and sources.get(p.dataset, "new") == kind]
        if of_kind:
            rows[kind] = _row(of_kind, domains, per_domain, seed)
    if known:
        score |= next(iter(rows.values())) if rows else _row(known, domains, per_domain, seed)
        of_sets = {p.dataset: [q for q in known if q.dataset == p.dataset] for p in known}
        score["by_dataset"] = {n: _row(of, domains, None, seed) for n, of in of_sets.items()}
    if sources:
        score["by_source"] = rows
    others = [p for p in pictures if p.modality and not domain_of(p.modality, domains)]
    score["outside"] = {
        name: _fate([p for p in others if p.modality == name])
        for name in sorted({str(p.modality) for p in others})
    }
    return score


def _fate(pictures: Sequence[RoutedPicture]) -> dict[str, Any]:
    """Return what happens to pictures of no domain: how many are warned of, who takes them."""
    warned = [p.warned for p in pictures if p.warned is not None]
    return {
        "n": len(pictures),
        "warned": sum(warned) if warned else None,
        "domains": dict(Counter(p.domain for p in pictures).most_common()),
    }


def _row(
    pictures: Sequence[RoutedPicture], domains: Sequence[str], per_domain: int | None, seed: int
) -> dict[str, Any]:
    """Return the score of pictures of known domain."""
    pools = {
        name: [p for p in pictures if domain_of(p.modality, domains) == name] for name in domains
    }
    pools = {name: pool for name, pool in pools.items() if pool}
    apart = _apart(pools)
    if per_domain is not None:
        rng = np.random.default_rng(seed)
        per_domain = min(per_domain, *(len(pools[name]) for name in pools.keys() - apart))
        pools = {
            name: [pool[i] for i in rng.permutation(len(pool))[:per_domain].tolist()]
            for name, pool in pools.items()
        }
    counts = np.zeros((len(domains), len(domains)), dtype=np.int64)
    for name, pool in pools.items():
        for picture in pool:
            counts[list(domains).index(name), list(domains).index(picture.domain)] += 1
    recall = {n: accuracy_of(int(counts[i, i]), int(counts[i].sum()))
              for i, n in enumerate(domains) if n in pools}  # fmt: skip
    commonest = max(pools, key=lambda name: len(pools[name]))
    macro = [name for name in recall if name not in apart]
    return accuracy_of(int(np.trace(counts)), int(counts.sum())) | {
        "macro_accuracy": float(np.mean([recall[name]["accuracy"] for name in macro])),
        "recall": recall,
        "apart": sorted(apart),
        "commonest": {
            "domain": commonest,
            "accuracy": 100 * len(pools[commonest]) / int(counts.sum()),
            "macro_accuracy": 100 / len(macro),
        },
        "per_domain": per_domain,
        "domains": list(domains),
        "confusion": counts.tolist(),
    }


def _apart(pools: Mapping[str, Sequence[RoutedPicture]]) -> set[str]:
    """Return the domains that one source alone has, which has no other; none if it is all."""
    of_set: dict[str, set[str]] = {}
    for name, pool in pools.items():
        for picture in pool:
            of_set.setdefault(picture.dataset, set()).add(name)
    apart = {
        name
        for name, pool in pools.items()
        if len(sets := {p.dataset for p in pool}) == 1 and of_set[next(iter(sets))] == {name}
    }
    return apart if len(apart) < len(pools) else set()
