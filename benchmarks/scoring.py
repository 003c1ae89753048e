"""All protocols with intervals in one go against a plain loop over resamples.

10,000 made-up pairs, one image for three questions, every protocol, 2,000 resamples: the whole of
`medmoe score` but reading and printing. Both ways use the same draws, so their intervals are equal
(checked here). The bar is in seconds, so this script also prints seconds, of this machine as it is.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from support.timing import options, ratios

from medmoe.data.schema import ImageRecord, Record
from medmoe.evaluation.files.predictions import Prediction
from medmoe.evaluation.score.rows import cells_of
from medmoe.evaluation.score.table import score_table
from medmoe.evaluation.statistics import (
    Floats,
    cluster_indices,
    clustered_bootstrap,
    drawn_counts,
)

PAIRS, PER_IMAGE, RESAMPLES, SEED = 10_000, 3, 2000, 7
METRICS = 24  # what all protocols together measure on the open questions
WORDS = (
    *("left", "right", "lower", "upper", "lobe", "lung", "liver", "mass", "effusion", "axial"),
    *("coronal", "ct", "mri", "of", "in", "heart", "enlarged", "small", "opacity", "nodule"),
)


def pairs(count: int = PAIRS) -> tuple[list[Record], list[Prediction]]:
    """Return made-up questions with answers of one to six words, no two alike."""
    rng = random.Random(SEED)
    records, predictions = [], []
    for i in range(count):
        closed = rng.random() < 0.5
        answer = (
            rng.choice(["yes", "no"])
            if closed
            else f"{' '.join(rng.choices(WORDS, k=rng.randint(1, 6)))} {i}"
        )
        said = (
            rng.choice(["yes", "no", "yes, there is"])
            if closed
            else f"{' '.join(rng.choices(WORDS, k=rng.randint(1, 6)))} {rng.choice([i, i + 1])}"
        )
        image = ImageRecord(f"image {i // PER_IMAGE}", Path("none"))
        kind = rng.choice(["place", "plane", "presence", "size"])
        records.append(
            Record(
                id=f"q{i}",
                image=image,
                question="",
                answer=answer,
                answer_type="closed" if closed else "open",
                question_type=kind,
                task="vqa",
                dataset="made_up",
                split="",
                licence="",
            )
        )
        predictions.append(Prediction(f"q{i}", said))
    return records, predictions


def plain_loop(values: Floats, images: list[str]) -> Floats:
    """Return the intervals (M, 2), resample by resample and metric by metric."""
    index, count = cluster_indices(images)
    members = [np.flatnonzero(index == cluster) for cluster in range(count)]
    times = np.concatenate(list(drawn_counts(count, seed=SEED, resamples=RESAMPLES)))
    draws = [np.repeat(np.arange(count), row.astype(int)) for row in times]
    ends = []
    for column in values.T:
        means = [
            float(np.mean(column[np.concatenate([members[c] for c in drawn])])) for drawn in draws
        ]
        ends.append(np.quantile(means, [0.025, 0.975]))
    return np.asarray(ends)


def seconds(run: Callable[[], object]) -> str:
    """Return wall time, and the process's own, which other programs do not stretch as much."""
    wall, own = time.perf_counter(), time.process_time()
    run()
    wall, own = time.perf_counter() - wall, time.process_time() - own
    return f"{wall:.2f} s, of which {own:.2f} s of processor"


def main() -> None:
    values = options(__doc__.splitlines()[0])
    records, predictions = pairs()
    print(f"{PAIRS} pairs, {RESAMPLES} resamples, every protocol and question type")
    found = seconds(lambda: cells_of(score_table(records, predictions, seed=SEED)))
    print(f"import of NLTK and BLEU included: {found} (the bar: 10 s)")

    # The loop is measured on a tenth of the images and one metric, and the other on the same.
    few = PAIRS // 10
    rng = np.random.default_rng(SEED)
    data = rng.random((few, METRICS))
    images = [record.image.id for record in records[:few]]
    one = data[:, :1]
    together = clustered_bootstrap(one, images, seed=SEED, resamples=RESAMPLES)
    # Means summed in another order
    assert np.allclose(together, plain_loop(one, images), atol=1e-12), "not the same intervals"
    runs = {
        "loop": lambda: plain_loop(one, images),
        "one metric": lambda: clustered_bootstrap(one, images, seed=SEED, resamples=RESAMPLES),
        f"{METRICS} metrics": lambda: clustered_bootstrap(
            data, images, seed=SEED, resamples=RESAMPLES
        ),
    }
    timed = ratios(runs, "one metric", values.repeats)
    print(f"\n{few} pairs, {RESAMPLES} resamples, in multiples of one metric together")
    print(f"plain loop, one metric      {timed['loop']}")
    print(f"together, {METRICS} metrics        {timed[f'{METRICS} metrics']}")


if __name__ == "__main__":
    main()
