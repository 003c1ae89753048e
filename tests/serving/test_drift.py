"""The alarms: at most as often as stated where nothing changes, and there where pictures do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from medmoe.data import registry
from medmoe.data.images import open_record, to_rgb
from medmoe.data.phantom import read_phantom
from medmoe.data.schema import ImageRecord, images_of
from medmoe.inference.answer import OutOfDomain, Routing
from medmoe.inference.engine import MedMoe
from medmoe.serving import drift
from medmoe.serving.drift import (
    FALSE_ALARM_DAYS,
    LEAST,
    QUANTITIES,
    Histogram,
    Seen,
    Tally,
    Verdict,
    Watch,
    chances_of,
    judge,
    reference_of,
    seen,
)

Pixels = npt.NDArray[np.uint8]
DAY = date(2026, 3, 2)


def same(pixels: Pixels) -> Pixels:
    return pixels


def inverted(pixels: Pixels) -> Pixels:
    return 255 - pixels


def windowed(pixels: Pixels) -> Pixels:
    """As another scanner's narrower default window shows it."""
    return np.clip((pixels.astype(float) - 60) * 1.6, 0, 255).astype(np.uint8)


def blurred(pixels: Pixels) -> Pixels:
    from scipy.ndimage import uniform_filter

    return np.asarray(uniform_filter(pixels, (5, 5, 1)))


def by_truth(image: ImageRecord, pixels: Pixels, names: Sequence[str]) -> Seen:
    """Return what is counted where the router is right; a modality that it does not know is CT."""
    domain = image.modality if image.modality in names else names[0]
    assert domain is not None
    checked = OutOfDomain(image.modality not in names, "", 1.0, 1.0)
    return seen(to_rgb(_image(pixels)), Routing(domain, 0.9, {}, {}, checked), 0.5)


def _image(pixels: Pixels):  # type: ignore[no-untyped-def]
    from PIL import Image

    return Image.fromarray(pixels)


def judged(watch: Watch, pictures: Sequence[Seen], day: date = DAY) -> Verdict:
    watch = watch.model_copy(deep=True)
    tally = watch.days.setdefault(day, Tally())
    for picture in pictures:
        watch.add(tally, picture)
    return judge(watch, day)


def moved(verdict: Verdict) -> set[str]:
    return {one.quantity for one in verdict.alarms}


# ---- what does not change ----


def simulated(rng: np.random.Generator, domains: Sequence[str], watch: Watch, tally: Tally) -> None:
    """A day of 70 or so pictures whose numbers are drawn as the reference's are."""
    for domain in domains:
        numbers = drawn(rng, size := int(rng.poisson(35)))
        tally.mix[domain] = size
        tally.cells[domain] = {
            name: Histogram(
                counts=np.bincount(np.searchsorted(edges, numbers[name]), minlength=len(edges) + 1)
                .tolist(),
                sum=float(numbers[name].sum()),
            )
            for name, edges in watch.edges[domain].items()
        }  # fmt: skip


def drawn(rng: np.random.Generator, size: int) -> dict[str, npt.NDArray[np.float64]]:
    """Numbers as of pictures: skewed, with ties, and depending on each other."""
    light = rng.beta(2, 4, size)
    return {
        "confidence": np.round(rng.beta(6, 1, size), 4),
        "domain_probability": np.round(np.minimum(1, rng.beta(30, 1, size) + 0.02), 4),
        "out_of_domain": (rng.random(size) < 0.02).astype(float),
        "brightness": np.round(light, 4),
        "contrast": np.round(light * rng.uniform(0.5, 0.6, size), 4),
        "black": np.round(np.maximum(0, 0.3 - light), 4),
        "white": np.zeros(size),
        "sharpness": np.round(rng.gamma(3, 0.1, size), 4),
    }


def simulated_year(seed: int) -> int:
    """Return on how many days of a year without any change there is an alarm."""
    rng, domains = np.random.default_rng(seed), ("ct", "xray")
    pictures: list[Seen] = []
    for domain in domains:
        numbers = drawn(rng, 200)
        pictures += [(domain, {k: float(v[i]) for k, v in numbers.items()}) for i in range(200)]
    watch = reference_of("model", pictures, domains)
    found = tested = 0
    for number in range(365):
        day = date(2026, 1, 1) + timedelta(number)
        watch.days[day] = Tally()
        simulated(rng, domains, watch, watch.days[day])
        verdict = judge(watch, day)
        tested += len(verdict.compared)
        found += bool(verdict.alarms)
    assert tested > 12 * 365
    return found


@pytest.mark.slow
def test_a_year_without_change_has_no_more_alarms_than_stated() -> None:
    found = [simulated_year(seed) for seed in range(2)]  # the seeds are fixed, and so are the days
    assert sum(found) <= 2 * FALSE_ALARM_DAYS, found


@pytest.mark.parametrize("sizes", [(40, 35), (60, 400), (500, 30)])
def test_a_p_value_is_below_a_rate_no_more_often_than_the_rate_says(sizes: tuple[int, int]) -> None:
    rng, rate, times = np.random.default_rng(1), 0.05, 600
    shares = np.array([0.55, 0.2, 0.1, 0.1, 0.04, 0.01, 0.0])  # as unlike a bell as can be
    below = np.zeros(2)
    for _ in range(times):
        reference, day = (rng.multinomial(size, shares) for size in sizes)
        _, chances = chances_of(reference, day, rate)
        below += [chance <= rate for chance in chances.values()]
    spread = 3.3 * np.sqrt(rate * (1 - rate) / times)
    assert (below / times <= rate + spread).all(), below / times
    assert (below / times >= 0.005).all()  # nor is it so cautious that it finds nothing


def test_whether_it_is_an_alarm_does_not_hang_on_when_the_deals_are_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng, rate, alarms = np.random.default_rng(5), 0.02, set()
    for _ in range(60):
        reference, day = rng.multinomial(80, [0.25] * 4), rng.multinomial(50, [0.4, 0.2, 0.2, 0.2])
        monkeypatch.setattr(drift, "_FIRST", 10)
        _, early = chances_of(reference, day, rate)
        monkeypatch.setattr(drift, "_FIRST", 10**6)
        _, all_drawn = chances_of(reference, day, rate)
        found = [chance <= rate for chance in early.values()]
        assert found == [chance <= rate for chance in all_drawn.values()]
        alarms.update(found)
    assert alarms == {True, False}


def test_psi_and_ks_are_what_the_books_say() -> None:
    reference, day = np.array([60, 40]), np.array([20, 80])
    statistics, chances = chances_of(reference, day, 0.01)
    p, q = np.array([60.5, 40.5]) / 101, np.array([20.5, 80.5]) / 101
    assert statistics["PSI"] == pytest.approx(float(((q - p) * np.log(q / p)).sum()))
    assert statistics["KS"] == pytest.approx(0.4)
    assert max(chances.values()) <= 0.01


# ---- what does: the phantom, and a tiny model of random weights ----


@pytest.fixture(scope="module")
def tiny_watch(
    tiny: MedMoe,
) -> tuple[Watch, Callable[[str, int, int, Callable[..., Pixels]], list[Seen]]]:
    def pictures(
        split: str, start: int, stop: int, change: Callable[[Pixels], Pixels]
    ) -> list[Seen]:
        images = images_of(read_phantom(split, stop, seed=3))[start:stop]
        shown = [_image(change(np.asarray(open_record(image)))) for image in images]
        routings = tiny.route(tiny.encode(shown))
        return [seen(*each, 0.5) for each in zip(shown, routings, strict=True)]

    return reference_of("m", pictures("validation", 0, 320, same), tiny.domains), pictures


def test_pictures_like_those_of_the_reference_are_no_alarm(tiny_watch) -> None:  # type: ignore[no-untyped-def]
    watch, pictures = tiny_watch
    verdict = judged(watch, pictures("validation", 320, 420, same))
    assert verdict.compared
    assert not verdict.alarms


@pytest.mark.parametrize(
    ("change", "among"),
    [(inverted, "brightness"), (windowed, "brightness"), (blurred, "sharpness")],
)
def test_pictures_of_another_look_are_an_alarm(tiny_watch, change, among: str) -> None:  # type: ignore[no-untyped-def]
    watch, pictures = tiny_watch
    verdict = judged(watch, pictures("validation", 320, 420, change))
    assert among in moved(verdict), [one.sentence() for one in verdict.alarms]


@pytest.fixture(scope="module")
def phantom() -> list[tuple[ImageRecord, Pixels]]:
    images = images_of(read_phantom("validation", 600, seed=4))
    return [(image, np.asarray(open_record(image))) for image in images]


def test_a_new_modality_and_another_mix_of_domains_are_alarms(
    phantom: list[tuple[ImageRecord, Pixels]],
) -> None:
    names = ("ct", "mri", "xray")
    known = [by_truth(*each, names) for each in phantom if each[0].modality in names]
    watch = reference_of("m", known[:300], names)
    assert not judged(watch, known[300:400]).alarms
    new = [by_truth(*each, names) for each in phantom if each[0].modality == "pathology"]
    verdict = judged(watch, [*known[300:370], *new[:30]])
    assert "out_of_domain" in moved(verdict), [one.sentence() for one in verdict.alarms]
    more = [one for one in known[300:] if one[0] == "xray"]
    verdict = judged(watch, [*known[300:340], *more[:50]])
    assert moved(verdict) == {"share"}
    (line,) = [one.sentence() for one in verdict.alarms if one.domain == "xray"]
    assert line.startswith("xray: share of all pictures rose from 0.3")
    assert "PSI" in line and "90 pictures" in line  # noqa: PT018


# ---- real pictures ----


@pytest.fixture(scope="module")
def real(shared: Path) -> dict[str, list[tuple[ImageRecord, Pixels]]]:
    root, found = shared / "data", {}
    for name, split in (("mednist", "validation"), ("rocov2", "validation")):
        images = images_of(registry.read(name, root, split))
        order = np.random.default_rng(0).permutation(len(images))
        found[name] = [images[i] for i in order]
    parts = {
        "known": found["mednist"][:420],
        "new": [image for image in found["rocov2"] if image.modality == "ultrasound"][:40],
    }
    return {
        name: [(image, np.asarray(open_record(image))) for image in images]
        for name, images in parts.items()
    }


def test_real_pictures_alarm_where_they_change_and_not_where_they_do_not(real) -> None:  # type: ignore[no-untyped-def]
    names = ("ct", "mri", "xray")
    count = {name: len(pictures) for name, pictures in real.items()}
    known = [by_truth(*each, names) for each in real["known"]]
    watch = reference_of("m", known[:300], names)
    day = real["known"][300:]
    assert not judged(watch, known[300:]).alarms, count
    for change in (inverted, windowed, blurred):
        verdict = judged(watch, [by_truth(image, change(p), names) for image, p in day])
        assert moved(verdict) & {"brightness", "contrast", "black", "sharpness"}, change
    new = [by_truth(*each, names) for each in real["new"]]
    assert judged(watch, [*known[300:360], *new]).alarms, count


# ---- few pictures ----


def test_too_few_pictures_are_said_to_be_few_and_are_added_up(
    phantom: list[tuple[ImageRecord, Pixels]],
) -> None:
    names = ("ct", "mri", "pathology", "xray")
    every = [by_truth(*each, names) for each in phantom]
    watch = reference_of("m", every[:400], names)
    turned = [
        by_truth(image, inverted(p), names) for image, p in phantom[400:] if image.modality == "ct"
    ]
    few = LEAST // 3
    verdict = judged(watch, turned[:few])
    assert (verdict.compared, verdict.too_few) == ((), ("ct",))
    for number in (0, 1):
        tally = watch.days[DAY - timedelta(number + 1)] = Tally()
        for picture in turned[few * (number + 1) : few * (number + 2)]:
            watch.add(tally, picture)
    verdict = judged(watch, turned[:few])
    assert "brightness" in moved(verdict)
    assert {one.days for one in verdict.compared} == {3}
    assert verdict.alarms[0].pictures == 3 * few
    assert " of 3 days" in verdict.alarms[0].sentence()


def test_a_domain_of_too_few_reference_pictures_has_its_share_watched_alone() -> None:
    rng = np.random.default_rng(2)
    values = drawn(rng, 100)
    many = [("ct", {k: float(v[i]) for k, v in values.items()}) for i in range(100)]
    watch = reference_of("m", [*many, ("mri", {"brightness": 0.5})], ("ct", "mri"))
    assert watch.edges["mri"] == {}
    verdict = judged(watch, [("mri", {"brightness": 0.5})] * 40)
    assert moved(verdict) == {"share"}
    assert verdict.too_few == ("mri",)


def test_the_file_of_a_day_does_not_grow_with_its_pictures() -> None:
    rng = np.random.default_rng(3)
    numbers = drawn(rng, 3000)
    pictures = [("ct", {k: float(v[i]) for k, v in numbers.items()}) for i in range(3000)]
    watch = reference_of("m", pictures[:200], ("ct",))
    sizes = []
    for part in (pictures[200:300], pictures[300:]):
        tally = watch.days.setdefault(DAY, Tally())
        for picture in part:
            watch.add(tally, picture)
        sizes.append(len(watch.model_dump_json()))
    assert sizes[1] < 1.2 * sizes[0]
    assert set(QUANTITIES) - {"share"} == set(watch.edges["ct"])
