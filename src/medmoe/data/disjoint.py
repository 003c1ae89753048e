"""Splits in which no picture, and no copy of one, stands on two sides.

Copies are put together first, the groups are then dealt out by a hash and a seed, organ by organ
(or modality by modality), so that every part sees the same mixture. The file is the one that
`medmoe.data.readers.vqa_rad` reads as ``image_disjoint.json``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medmoe.data.readers.common import hash_share
from medmoe.data.schema import ImageRecord

#: Share of the pictures of each part.
SHARES: Mapping[str, float] = {"train": 0.7, "val": 0.1, "test": 0.2}


def disjoint_split(
    images: Sequence[ImageRecord], alike: Iterable[tuple[str, str]], seed: int
) -> dict[str, list[str]]:
    """Deal images out to train, val and test.

    Args:
        images: All images, each once.
        alike: Pairs of ids that show one picture.

    Returns:
        Part -> sorted image ids.
    """
    by_id = {image.id: image for image in images}
    strata: defaultdict[str, list[list[str]]] = defaultdict(list)
    for group in groups_of(by_id, alike):
        first = by_id[group[0]]
        strata[first.organ or first.modality or "unknown"].append(group)
    parts: dict[str, list[str]] = {part: [] for part in SHARES}
    for _, groups in sorted(strata.items()):
        dealt: Counter[str] = Counter()
        total = sum(map(len, groups))
        # Large groups first: a small one can still fill what is missing.
        for group in sorted(groups, key=lambda g: (-len(g), hash_share(g[0], seed))):
            part = max(SHARES, key=lambda p: SHARES[p] * total - dealt[p])
            dealt[part] += len(group)
            parts[part] += group
    return {part: sorted(names) for part, names in parts.items()}


def groups_of(ids: Iterable[str], alike: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Return the ids joined by any chain of pairs, each group sorted."""
    row = {name: number for number, name in enumerate(sorted(ids))}
    pairs = [(row[left], row[right]) for left, right in alike if left in row and right in row]
    lefts, rights = np.array(pairs, np.intp).reshape(-1, 2).T
    joined = coo_array((np.ones(len(pairs)), (lefts, rights)), shape=(len(row), len(row)))
    groups: defaultdict[int, list[str]] = defaultdict(list)
    for name, group in zip(row, connected_components(joined, directed=False)[1], strict=True):
        groups[int(group)].append(name)
    return list(groups.values())


def split_content(parts: Mapping[str, Sequence[str]], seed: int) -> dict[str, Any]:
    """Return what the split's file holds; ids of one set stand without its name."""
    names = [name for members in parts.values() for name in members]
    sets = {name.partition("/")[0] for name in names}
    prefix = f"{sets.pop()}/" if len(sets) == 1 else ""
    return {"seed": seed} | {
        p: [n.removeprefix(prefix) for n in names] for p, names in parts.items()
    }
