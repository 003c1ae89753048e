"""Drift: do the pictures of a day look like those of the reference?

Of each picture some numbers are kept as counts in bins, by the domain that the router takes it for.
PSI and KS (the largest distance of the distribution functions, at the edges of the bins) say how
far a day is from the reference. When either is an alarm is no rule of thumb: were both drawn from
the same pictures, every way to deal out the counts of both would be as likely as the one found, so
the p-value is the share of random deals that lie as far apart (a permutation test, exact for any
distribution and any numbers of pictures). All tests of a day share `FALSE_ALARM_DAYS` / 365
(Bonferroni).

The bins come from one half of the reference, its counts from the other: bins that were fitted to
the very counts that they hold would make the deals unequal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from medmoe.inference.answer import Routing

#: Days a year on which there is an alarm although nothing has changed: so many at most, on average.
FALSE_ALARM_DAYS = 1.0
#: Pictures that a test needs, of a day or of it and some days before.
LEAST, DAYS_BACK = 30, 6
#: What is kept -> what a reader is told that it is.
QUANTITIES = {
    "share": "share of all pictures",
    "confidence": "confidence of the answer",
    "domain_probability": "the router's probability",
    "out_of_domain": "share warned of as out of domain",
    "brightness": "mean brightness",
    "contrast": "spread of the brightness",
    "black": "share of black",
    "white": "share of white",
    "sharpness": "sharpness",
}
STATISTICS = ("PSI", "KS")
#: The domain of a model without router.
ALL = "all"
_SIDE, _BINS = 224, 10
#: Random deals: exceedances after which no alarm is possible, and deals made at once.
_EXCEEDED, _FIRST, _MOST_AT_ONCE = 5, 200, 20_000

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
#: A picture as it is counted: its domain, and the numbers that are known of it.
Seen = tuple[str, dict[str, float]]
_Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Histogram(_Part):
    """Counts in bins, and the sum of the values."""

    counts: list[_Count]
    sum: float = 0.0


class Tally(_Part):
    """Pictures by domain, and their histograms by domain and quantity; how many were left out."""

    mix: dict[str, _Count] = {}
    cells: dict[str, dict[str, Histogram]] = {}
    left_out: _Count = 0

    def counted(self, domain: str, name: str) -> tuple[Counts, float]:
        """Return the counts (bins,) of a quantity, (1,) where there are none, and the sum."""
        if name == "share":
            own = self.mix.get(domain, 0)
            return np.array([sum(self.mix.values()) - own, own]), float(own)
        cell = self.cells.get(domain, {}).get(name, Histogram(counts=[0]))
        return np.array(cell.counts), cell.sum


class Watch(_Part):
    """A whole file; bin i of a quantity holds values above ``edges[i - 1]``, up to ``edges[i]``."""

    medmoe_monitor: Literal[1] = 1
    model: str
    edges: dict[str, dict[str, list[float]]]
    reference: Tally = Tally()
    days: dict[date, Tally] = {}

    @model_validator(mode="after")
    def _fits(self) -> Watch:
        for tally in (self.reference, *self.days.values()):
            for domain, cells in tally.cells.items():
                for name, cell in cells.items():
                    if len(cell.counts) != len(self.edges.get(domain, {}).get(name, ())) + 1:
                        raise ValueError("bins and edges do not fit each other")
        return self

    def add(self, tally: Tally, picture: Seen) -> None:
        """Count a picture."""
        domain, numbers = picture
        tally.mix[domain] = tally.mix.get(domain, 0) + 1
        for name, edges in self.edges.get(domain, {}).items():
            if name in numbers:
                cells = tally.cells.setdefault(domain, {})
                cell = cells.setdefault(name, Histogram(counts=[0] * (len(edges) + 1)))
                cell.counts[int(np.searchsorted(edges, numbers[name]))] += 1
                cell.sum = round(cell.sum + numbers[name], 4)


def seen(image: Image.Image, routing: Routing | None, confidence: float | None) -> Seen:
    """Return an RGB picture as it is counted; None for what is not known of it."""
    small = image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    values = np.asarray(small.convert("L"), dtype=np.float32) / 255
    steps = np.abs(np.diff(values, axis=0)).mean() + np.abs(np.diff(values, axis=1)).mean()
    numbers = {
        "confidence": confidence,
        "domain_probability": routing and routing.domain_probability,
        "out_of_domain": routing and routing.out_of_domain.warning,
        "brightness": values.mean(),
        "contrast": values.std(),
        "black": (values < 8 / 255).mean(),
        "white": (values > 247 / 255).mean(),
        "sharpness": steps / (values.std() + 1 / 255),
    }
    # Rounded: the last bits of a number, which hang on the batch, must move nothing over an edge.
    known = {name: round(float(x), 4) for name, x in numbers.items() if x is not None}
    return (ALL if routing is None else routing.domain), known


def reference_of(model: str, pictures: Sequence[Seen], domains: Sequence[str]) -> Watch:
    """Return a watch without days; which pictures give the bins is drawn by a fixed seed."""
    order = np.random.default_rng(0).permutation(len(pictures)).tolist()
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    edges: dict[str, dict[str, list[float]]] = {domain: {} for domain in domains or (ALL,)}
    for domain, own in edges.items():
        taught = [numbers for d, numbers in (pictures[i] for i in first) if d == domain]
        for name in QUANTITIES if len(taught) >= LEAST else ():
            if values := [numbers[name] for numbers in taught if name in numbers]:
                inner = np.unique(np.quantile(values, np.linspace(0, 1, _BINS + 1))).tolist()
                own[name] = [math.nextafter(inner[0], -math.inf), *inner]
    watch = Watch(model=model, edges=edges, reference=Tally())
    for i in second:
        watch.add(watch.reference, pictures[i])
    # The shares need no bins, and so have all pictures.
    watch.reference.mix = {name: sum(d == name for d, _ in pictures) for name in edges}
    return watch


@dataclass(frozen=True, slots=True)
class Compared:
    """One quantity of one domain: pictures of how many days, means of reference and days.

    The ``chances`` of its `STATISTICS` are p-values; those ``alarms`` are at or below the rate.
    """

    domain: str
    quantity: str
    pictures: int
    days: int
    before: float
    after: float
    statistics: dict[str, float]
    chances: dict[str, float]
    alarms: tuple[str, ...]

    def sentence(self) -> str:
        """Return in plain words what moved, how far, and by which statistic."""
        way = "rose" if self.after > self.before else "fell"
        if abs(self.after - self.before) < 0.0005:
            way = "is spread otherwise, on average"
        told = [f"{name} {self.statistics[name]:.2f}" for name in self.alarms or STATISTICS]
        told += [f"{self.pictures:,} pictures" + f" of {self.days} days" * (self.days > 1)]
        told += [f"p ≤ {self.chances[name]:.1g}" for name in self.alarms[:1]]
        return (
            f"{self.domain}: {QUANTITIES[self.quantity]} {way} from {self.before:.3f} to "
            f"{self.after:.3f} ({', '.join(told)})"
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of a day: all that was tested, and the domains of too few pictures for it."""

    day: date
    compared: tuple[Compared, ...]
    too_few: tuple[str, ...]

    @property
    def alarms(self) -> list[Compared]:
        """What has an alarm."""
        return [one for one in self.compared if one.alarms]


def judge(watch: Watch, day: date) -> Verdict:
    """Hold a day that is over against the reference.

    Where it has fewer than `LEAST` pictures, up to `DAYS_BACK` days before it are added.
    """
    tallies = [
        watch.days[d] for n in range(DAYS_BACK + 1) if (d := day - timedelta(n)) in watch.days
    ]
    enough = []
    for domain in watch.edges:
        for name in ("share", *watch.edges[domain]):
            before, after = watch.reference.counted(domain, name), tallies[0].counted(domain, name)
            days, some = 1, after[0].any()
            while after[0].sum() < LEAST and days < len(tallies):
                more = tallies[days].counted(domain, name)
                after, days = (after[0] + more[0], after[1] + more[1]), days + 1
            varied = name != "share" or len(watch.edges) > 1
            if some and varied and min(before[0].sum(), after[0].sum()) >= LEAST:
                enough.append((domain, name, before, after, days))
    rate = FALSE_ALARM_DAYS / 365 / max(1, len(enough) * len(STATISTICS))
    compared = []
    for domain, name, (old, old_sum), (new, new_sum), days in enough:
        statistics, chances = chances_of(old, new, rate)
        means, pictures = (old_sum / int(old.sum()), new_sum / int(new.sum())), int(new.sum())
        alarms = tuple(each for each in STATISTICS if chances[each] <= rate)
        compared.append(Compared(domain, name, pictures, days, *means, statistics, chances, alarms))
    tested = {one.domain for one in compared if one.quantity != "share"}
    too_few = (name for name, n in tallies[0].mix.items() if n and name not in tested)
    return Verdict(day, tuple(compared), tuple(too_few))


def chances_of(
    reference: Counts, day: Counts, rate: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the statistics of two histograms (bins,), and their p-values.

    Deals are drawn until no alarm at ``rate`` is possible any more, at most 5 / ``rate`` of them:
    whether a p-value is at or below the rate is the same as if all were drawn.
    """
    pooled, size = reference + day, int(day.sum())
    day, pooled = day[pooled > 0], pooled[pooled > 0]
    found = _distances(pooled, day[None])[:, 0]
    rng, most = np.random.default_rng(0), math.ceil(_EXCEEDED / rate)
    exceeded, drawn, step = np.zeros(len(found), dtype=np.int64), 0, _FIRST
    while drawn < most and exceeded.min() < _EXCEEDED:
        step = min(step, most - drawn)
        deals = rng.multivariate_hypergeometric(pooled, size, step, method="marginals")
        exceeded += (_distances(pooled, deals) >= found[:, None] - 1e-12).sum(1)
        drawn, step = drawn + step, min(2 * step, _MOST_AT_ONCE)
    told = (found.tolist(), ((1 + exceeded) / (1 + drawn)).tolist())
    statistics, chances = (dict(zip(STATISTICS, each, strict=True)) for each in told)
    return statistics, chances


def _distances(pooled: Counts, deals: Counts) -> Floats:
    """Return PSI and KS (2, deals) between deals (deals, bins) and what they leave of the pool."""
    size, bins = int(deals[0].sum()), len(pooled)
    rest, others = pooled - deals, int(pooled.sum()) - size
    # Half a picture more in each bin: an empty one has a logarithm too.
    p, q = (rest + 0.5) / (others + bins / 2), (deals + 0.5) / (size + bins / 2)
    psi: Floats = ((q - p) * np.log(q / p)).sum(1)
    ks: Floats = np.abs(np.cumsum(deals / size - rest / others, axis=1)).max(1)
    return np.stack([psi, ks])
