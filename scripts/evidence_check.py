"""Checks on a trained demo model what its evidence cards claim, over many phantom images.

`python scripts/evidence_check.py runs/demo/model`: by how much the regions that the attribution
names beat random ones in the deletion test, with a 95 % bootstrap interval over images, and how
often the out-of-domain rule warns on phantom images, on noise and on pictures like photographs.
The out-of-domain threshold was set on 60 pictures of the test split that is shown here (seed 7):
its rates are optimistic.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter

from medmoe.data.phantom import read_phantom
from medmoe.data.schema import Pixels
from medmoe.inference.attribution import attribute
from medmoe.inference.engine import MedMoe
from medmoe.inference.evidence import out_of_domain

RESAMPLES = 2000
SIDE = 64


def noise(draw: np.random.Generator) -> Pixels:
    """Return a picture of independent pixels."""
    return draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def clouds(draw: np.random.Generator) -> Pixels:
    """Return a picture of smooth colours."""
    field = gaussian_filter(draw.normal(size=(SIDE, SIDE, 3)), (6, 6, 0))
    field = (field - field.min()) / (field.max() - field.min())
    return np.asarray(255 * field, dtype=np.uint8)


def landscape(draw: np.random.Generator) -> Pixels:
    """Return sky above, ground below, coloured discs and grain: as a photograph is built."""
    down = np.linspace(0, 1, SIDE)[:, None, None]
    picture = np.array([90.0, 150, 230]) * (1 - down) + np.array([60.0, 130, 40]) * down
    picture = np.broadcast_to(picture, (SIDE, SIDE, 3)).copy()
    y, x = np.ogrid[:SIDE, :SIDE]
    for _ in range(6):
        (row, column), radius = draw.integers(0, SIDE, 2), draw.integers(4, 16)
        picture[(y - row) ** 2 + (x - column) ** 2 < radius**2] = draw.integers(0, 256, 3)
    picture += 8 * draw.normal(size=picture.shape)
    return np.asarray(picture.clip(0, 255), dtype=np.uint8)


def warned(engine: MedMoe, pictures: list[Pixels]) -> float:
    """Return the share of pictures, in percent, on which the rule warns."""
    routings = engine.route(engine.encode(pictures))
    return 100 * float(np.mean([bool(out_of_domain(routing).warning) for routing in routings]))


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
    images = {r.image.id: r.image.source for r in read_phantom("test", 200, seed=values.seed)}
    known = [np.asarray(source) for source in images.values()]
    print(f"out-of-domain warning: phantom test {warned(engine, known):.1f} % of {len(known)}")
    makers: tuple[Callable[[np.random.Generator], Pixels], ...] = (noise, clouds, landscape)
    for make in makers:
        print(f"  {make.__name__}: {warned(engine, [make(draw) for _ in range(100)]):.1f} % of 100")


if __name__ == "__main__":
    main()
