"""The map of images before and after the router, with silhouettes (paper, figures 3 and 10).

One point is one image: the mean over its image tokens, all MoE layers side by side. *Before* is
what the FFNs of those layers read, in the phase-2 model where one is given, else in the model
itself; *after* is the router's logits. Silhouettes are computed in these spaces, never on the map,
which is for looking only. The paper does not say of which tokens, layers or distance its 0.173 and
0.579 are.

Shapes: M images, L MoE layers, D hidden, E experts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medmoe.data.readers.common import hash_share
from medmoe.data.schema import ImageRecord
from medmoe.evaluation.statistics import clustered_bootstrap

Floats = npt.NDArray[np.float32]
#: Images of the map at most, and the fewest of a modality and in all that are drawn.
POINTS, FEWEST_OF_ONE, FEWEST = 500, 2, 8
METRICS = ("euclidean", "cosine")


@dataclass(frozen=True, slots=True)
class Embedding:
    """The map and its numbers.

    Attributes:
        method: How the map was projected.
        points: Per image: ``image``, ``modality``, ``before_x``, ``before_y``, ``after_x``,
            ``after_y``.
        silhouettes: Per layer (and ``all`` side by side) and metric: ``before``, ``after``,
            ``difference`` with 95 % intervals by a bootstrap over images, and ``images``.
    """

    method: str
    points: list[dict[str, Any]]
    silhouettes: list[dict[str, Any]]


def mapped_images(images: Sequence[ImageRecord], seed: int) -> list[str]:
    """Return the ids of the images that the map shows: at most `POINTS`, drawn by the seed.

    Modalities with a single image have no silhouette and are left out; the list is empty where
    fewer than two modalities or `FEWEST` images are left.
    """
    sizes = Counter(image.modality for image in images if image.modality)
    shown = [i.id for i in images if i.modality and sizes[i.modality] >= FEWEST_OF_ONE]
    if sum(size >= FEWEST_OF_ONE for size in sizes.values()) < 2 or len(shown) < FEWEST:
        return []
    return sorted(shown, key=lambda name: hash_share(name, seed))[:POINTS]


def embed(
    images: Sequence[ImageRecord], layers: Sequence[int], before: Floats, after: Floats, seed: int
) -> Embedding:
    """Project the images and compute their silhouettes.

    Args:
        images: The M images, each of a modality that two of them have.
        before: States (M, L, D).
        after: Router logits (M, L, E).
        seed: Of the projection and of the intervals.
    """
    labels = [str(image.modality) for image in images]
    flat = {"before": before.reshape(len(before), -1), "after": after.reshape(len(after), -1)}
    maps = {name: _project(values, seed) for name, values in flat.items()}
    points = [
        {
            "image": image.id,
            "modality": label,
            **{
                f"{name}_{axis}": float(places[i, a])
                for name, places in maps.items()
                for a, axis in enumerate("xy")
            },
        }
        for i, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    spaces: list[tuple[int | str, Floats, Floats]] = [("all", flat["before"], flat["after"])]
    spaces += [(layer, before[:, i], after[:, i]) for i, layer in enumerate(layers)]
    silhouettes = [
        _silhouettes(layer, metric, first, second, labels, seed)
        for layer, first, second in spaces
        for metric in METRICS
    ]
    perplexity = _perplexity(len(images))
    method = f"t-SNE of scikit-learn, perplexity {perplexity:g}, started from PCA, seed {seed}"
    return Embedding(method, points, silhouettes)


def _perplexity(count: int) -> float:
    """Return scikit-learn's default, or less where there are few images."""
    return min(30.0, (count - 1) / 3)


def _project(values: Floats, seed: int) -> npt.NDArray[np.float64]:
    from sklearn.manifold import TSNE

    # Images with equal values would divide by zero in the start from PCA.
    if float(values.std()) == 0:
        return np.zeros((len(values), 2))
    model = TSNE(perplexity=_perplexity(len(values)), init="pca", random_state=seed)
    projected: npt.NDArray[np.float64] = model.fit_transform(values).astype(np.float64)
    return projected


def _silhouettes(
    layer: int | str,
    metric: str,
    before: Floats,
    after: Floats,
    labels: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    from sklearn.metrics import silhouette_samples

    each = [
        silhouette_samples(v.astype(np.float64), labels, metric=metric) for v in (before, after)
    ]
    row: dict[str, Any] = {"layer": layer, "metric": metric}
    for name, values in zip(
        ("before", "after", "difference"), (*each, each[1] - each[0]), strict=True
    ):
        low, high = clustered_bootstrap(values, range(len(labels)), seed=seed).tolist()
        row |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
    return row | {"images": len(labels)}
