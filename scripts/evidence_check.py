"""Checks on a trained demo model what its evidence cards claim, over many phantom images.

`python scripts/evidence_check.py runs/demo/model`: by how much the regions that the attribution
names beat random ones in the deletion test, with a 95 % bootstrap interval over images, and what
becomes of phantom test images (by the model's own seed: --seed), noise, squares of one grey and
photographs: how many the out-of-domain check warns of, and what the router takes them for. With
`--data DIR` also of real pictures, by modality.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from medmoe.data.far_pictures import far_pictures
from medmoe.data.phantom import read_phantom
from medmoe.data.registry import parse_set
from medmoe.data.schema import ImageRecord, images_of
from medmoe.evaluation.routes.routed_images import route_images
from medmoe.inference.attribution import attribute
from medmoe.inference.engine import MedMoe

RESAMPLES = 2000
#: Real pictures of and outside the four domains.
SETS = ("vqa_med_2019/validation", "rocov2/validation", "pneumoniamnist/test", "lc25000/test")
SIDE = 64


def show(engine: MedMoe, name: str, images: Sequence[ImageRecord]) -> None:
    """Print how many pictures are warned of, and which domains the router takes them for."""
    pictures = route_images(engine, images).pictures()
    taken = Counter(picture.domain for picture in pictures).most_common()
    warned = sum(bool(picture.warned) for picture in pictures)
    print(f"  {name}: {warned} of {len(pictures)} warned of; {dict(taken)}")


def deletion(engine: MedMoe, images: int, seed: int) -> npt.NDArray[np.float64]:
    """Return (images, 2): the drops by the regions named and by random ones, one question each."""
    drops = []
    records = [r for r in read_phantom("test", images, seed=seed, size=SIDE) if r.task == "vqa"]
    for number, image in enumerate(dict.fromkeys(record.image.id for record in records)):
        mine = [record for record in records if record.image.id == image]
        record = mine[number % len(mine)]  # another kind of question each time
        answer = engine.answer(record.image.source, record.question).text
        pixels = engine.pixel_values([record.image.source])
        test = attribute(engine, pixels, record.question, answer).deletion
        drops.append((test.most_important, test.random))
    return np.array(drops)


def main() -> None:
    """Print both checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--set", nargs="*", default=SETS, metavar="SET/SPLIT")
    values = parser.parse_args()
    torch.set_num_threads(1)
    engine = MedMoe.load(values.model)
    draw = np.random.default_rng(values.seed)
    drops = deletion(engine, values.images, values.seed)
    gain = drops[:, 0] - drops[:, 1]
    means = gain[draw.integers(0, len(gain), (RESAMPLES, len(gain)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    print(f"deletion test, {len(gain)} images: drop of the answer's log-probability")
    print(f"  regions named {drops[:, 0].mean():.2f}, random {drops[:, 1].mean():.2f}")
    print(f"  difference {gain.mean():.2f}, 95 % interval [{low:.2f}, {high:.2f}]")
    print(f"  passed on {100 * np.mean(gain > 0):.0f} % of the images")
    print("out-of-domain check")
    images = images_of(read_phantom("test", 400, seed=values.seed, size=SIDE))
    show(engine, "phantom test", images)
    for name, pictures in far_pictures(values.seed).items():
        show(engine, name, pictures)
    for given in values.set if values.data else ():
        reader, split = parse_set(given)
        of_set: dict[str, list[ImageRecord]] = {}
        for image in images_of(reader.read(values.data, split or "test")):
            of_set.setdefault(image.modality or "unknown", []).append(image)
        for name, pictures in sorted(of_set.items()):
            show(engine, f"{given} {name}", pictures[: values.images])


if __name__ == "__main__":
    main()
