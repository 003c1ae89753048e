"""Pictures that are of no medical domain: noise, squares of one grey, and photographs.

What an out-of-domain check should warn of. The photographs are those that scikit-learn (china,
flower) and matplotlib (a portrait) ship.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medmoe.data.schema import ImageRecord, Pixels

_SIDE = 224


def far_pictures(seed: int) -> dict[str, list[ImageRecord]]:
    """Return by kind: 40 of noise, drawn by the seed, a black and a white square, 3 photographs."""
    from matplotlib import get_data_path
    from PIL import Image
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(seed)
    shapes = [(_SIDE, _SIDE, 3 if i % 2 else 1) for i in range(40)]
    noise = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    with Image.open(Path(get_data_path()) / "sample_data" / "grace_hopper.jpg") as portrait:
        photographs = [*load_sample_images().images, np.asarray(portrait.convert("RGB"))]
    kinds: dict[str, list[Pixels]] = {
        "noise": [np.ascontiguousarray(np.broadcast_to(p, (_SIDE, _SIDE, 3))) for p in noise],
        "one grey": [np.full((_SIDE, _SIDE, 3), value, dtype=np.uint8) for value in (0, 255)],
        "photograph": photographs,
    }
    return {
        kind: [ImageRecord(f"{kind}/{i}", pixels) for i, pixels in enumerate(pictures)]
        for kind, pictures in kinds.items()
    }
