"""The embedded data: deterministic, disjoint in anatomy, balanced, and true to its pictures."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import combinations, pairwise, product

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from medmoe.data import phantom
from medmoe.data.phantom import FINDINGS, SPLITS, draw_plan, read_phantom
from medmoe.data.phantom.anatomy import Anatomy, anatomies
from medmoe.data.phantom.plan import FACING, ORGANS, PLANES, Lesion, Plan, plan_image
from medmoe.data.schema import ImageRecord, Record
from medmoe.domains import DOMAINS
from medmoe.errors import ConfigError, DataError

SEED = 7


@pytest.fixture(scope="module")
def train() -> list[Record]:
    return read_phantom("train", 960, seed=SEED, size=32)


@pytest.fixture(scope="module")
def test_split() -> list[Record]:
    return read_phantom("test", 480, seed=SEED, size=32)


def _key(record: Record) -> tuple[object, ...]:
    image = record.image
    assert isinstance(image.source, np.ndarray)
    pixels = image.source.tobytes()
    return (record.id, record.question, record.answer, image.id, pixels, dict(image.labels))


def _images(records: list[Record]) -> dict[str, ImageRecord]:
    return {record.image.id: record.image for record in records}


def _share_right(train: list[Record], test: list[Record], answer_type: str) -> float:
    """Accuracy of always giving the most frequent training answer to that very question."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for record in train:
        seen[record.question][record.answer] += 1
    asked = [r for r in test if r.task == "vqa" and r.answer_type == answer_type]
    guesses = (seen[r.question].most_common(1)[0][0] for r in asked)
    return float(np.mean([r.answer == guess for r, guess in zip(asked, guesses, strict=True)]))


def test_same_seed_gives_the_same_records_and_another_seed_others() -> None:
    first, second = (read_phantom("train", 12, seed=SEED) for _ in range(2))
    assert [_key(r) for r in first] == [_key(r) for r in second]
    other = read_phantom("train", 12, seed=SEED + 1)
    assert _key(other[0])[4] != _key(first[0])[4]


def test_an_image_does_not_depend_on_how_many_are_read() -> None:
    few, many = (read_phantom("validation", count, seed=SEED) for count in (5, 30))
    assert [_key(r) for r in few] == [_key(r) for r in many[: len(few)]]


def test_no_two_splits_share_an_anatomy_or_a_picture() -> None:
    drawn, pictures = [], []
    for split in SPLITS:
        images = _images(read_phantom(split, 200, seed=SEED, size=32))
        drawn.append({plan_image(split, int(i.split("/")[2]), SEED).anatomy.id for i in images})
        pictures.append({np.asarray(image.source).tobytes() for image in images.values()})
        assert drawn[-1] <= {anatomy.id for anatomy in anatomies(split)}
        # 200 draws from 125 anatomies show about 100 of them (standard deviation 3.5).
        assert len(drawn[-1]) > 80
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not drawn[one] & drawn[other]
        assert not pictures[one] & pictures[other]


def test_every_level_of_every_anatomy_parameter_occurs_in_each_split() -> None:
    for split in SPLITS:
        ids = [plan_image(split, index, SEED).anatomy.id for index in range(300)]
        for place in range(6):
            assert {name[place] for name in ids} == set("01234")


def test_any_two_anatomies_differ_in_at_least_three_parameters() -> None:
    found = [anatomy for split in SPLITS for anatomy in anatomies(split)]
    assert [len(anatomies(split)) for split in SPLITS] == [375, 125, 125]
    digits = np.array([list(anatomy.id) for anatomy in found])
    apart = (digits[:, None] != digits[None]).sum(-1)
    assert apart[~np.eye(len(found), dtype=bool)].min() == 3


def test_any_two_parameters_take_all_their_values_equally_often_in_each_split() -> None:
    for split in SPLITS:
        names = [anatomy.id for anatomy in anatomies(split)]
        for one, other in combinations(range(6), 2):
            pairs = Counter((name[one], name[other]) for name in names)
            assert len(pairs) == 25
            assert set(pairs.values()) == {len(names) // 25}


_SCENES = [(d, o, p) for d in DOMAINS for o in ORGANS[d] for p in PLANES[d]]
#: Grey levels: above the noise of 1 to 5 (that of MRI is larger only where it is dark).
_VISIBLE = 8


def _bare(
    scene: tuple[str, str, str], anatomy: Anatomy, index: int, *, noise: bool = False
) -> npt.NDArray[np.int16]:
    """Draw an anatomy in a scene without findings; the index sets exposure and texture."""
    plan = Plan("test", index, *scene, anatomy, "normal", None, None, None, ())
    return draw_plan(plan, seed=SEED, noise=noise).astype(np.int16)


def _flat(picture: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    """Return (colours, pixels)."""
    return picture.reshape(64 * 64, -1).T.astype(np.float32)


@pytest.mark.parametrize("scene", _SCENES, ids=" ".join)
def test_one_level_of_any_parameter_changes_the_picture_visibly(
    scene: tuple[str, str, str],
) -> None:
    rng = np.random.default_rng(0)
    for place, index in product(range(6), range(6)):
        digits = rng.integers(5, size=6)
        pictures = []
        for level in range(5):
            digits[place] = level
            name = "".join(map(str, digits))
            pictures.append(_flat(_bare(scene, Anatomy(name, *(digits / 2 - 1)), index)))
        for one, other in pairwise(pictures):
            changed = np.abs(one - other).max(0) >= _VISIBLE
            # A smallest finding covers 45 pixels; half of that is still seen.
            assert changed.sum() >= 25, (scene, place, digits)


@pytest.mark.parametrize("scene", _SCENES, ids=" ".join)
def test_no_training_anatomy_looks_like_a_test_anatomy(scene: tuple[str, str, str]) -> None:
    index = _SCENES.index(scene)
    train = np.stack([_flat(_bare(scene, anatomy, index)) for anatomy in anatomies("train")])
    chosen = np.random.default_rng(index).permutation(len(anatomies("test")))[:20]
    for number in chosen:
        anatomy = anatomies("test")[number]
        picture = _flat(_bare(scene, anatomy, index))
        noise = (_flat(_bare(scene, anatomy, index, noise=True)) - picture).std()
        difference = np.abs(train - picture)
        # The energy of the difference against the noise: what is 5 standard deviations strong is
        # reliably seen (Rose, 1948). Colours share their noise, hence the mean over them.
        energy = np.einsum("ijk,ijk->i", difference, difference) / len(picture)
        assert np.sqrt(energy.min()) / noise >= 10, (scene, anatomy)
        assert (difference.max(1) >= _VISIBLE).sum(-1).min() >= 100, (scene, anatomy)


def test_most_frequent_training_answer_to_the_very_question_does_not_help(
    train: list[Record], test_split: list[Record]
) -> None:
    assert _share_right(train, test_split, "closed") <= 0.60
    assert _share_right(train, test_split, "open") <= 0.30


def test_every_question_text_has_balanced_answers(train: list[Record]) -> None:
    answers: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for record in train:
        if record.task == "vqa":
            answers[record.answer_type, record.question][record.answer] += 1
    for (answer_type, question), counts in answers.items():
        n = counts.total()
        # Four standard errors above the share that a balanced draw would give.
        fair = 0.5 if answer_type == "closed" else 0.25
        limit = fair + 4 * np.sqrt(fair * (1 - fair) / n)
        assert max(counts.values()) / n <= limit, (question, counts)
        assert len(counts) == 2 if answer_type == "closed" else len(counts) >= 4


def test_classes_and_domains_are_balanced(train: list[Record]) -> None:
    items = [r for r in train if r.task == "classification"]
    assert Counter(r.answer for r in items) == dict.fromkeys(FINDINGS, 240)
    assert Counter(r.image.modality for r in items) == dict.fromkeys(DOMAINS, 240)
    pairs = Counter((r.answer, r.image.modality) for r in items)
    assert set(pairs.values()) == {60}
    assert all(r.options == FINDINGS and r.answer in r.options for r in items)


def test_each_image_has_its_records_in_order(train: list[Record]) -> None:
    tasks: dict[str, list[str]] = defaultdict(list)
    for record in train:
        tasks[record.image.id].append(record.task)
    for names in tasks.values():
        assert names[0] == "caption"
        assert names[-1] == "classification"
        assert set(names[1:-1]) == {"vqa"}
        assert 6 <= len(names) - 2 <= 8
    assert len({record.id for record in train}) == len(train)


def test_question_types_words_and_answers_are_few_and_short(train: list[Record]) -> None:
    vqa = [r for r in train if r.task == "vqa"]
    types = {r.question_type for r in vqa}
    expected = {"presence", "count", "side", "size", "organ", "plane", "modality", "kind"}
    assert types == expected | {"location"}
    assert all(len(r.answer.split()) <= 3 and r.answer == r.answer.lower() for r in vqa)
    text = " ".join(f"{r.question} {r.answer}" for r in train).lower()
    assert len(set(re.findall(r"[a-z-]+", text))) < 150


def test_questions_about_findings_name_neither_modality_nor_body_part(
    train: list[Record],
) -> None:
    images = _images(train).values()
    names = {str(i.organ) for i in images} | {"ct", "mri", "x-ray", "pathology", "scan"}
    names |= {word for i in images for word in i.labels["plane"].split()}
    for record in train:
        assert not names & set(re.findall(r"[a-z-]+", record.question.lower())), record.question


def test_captions_say_all_labels(train: list[Record]) -> None:
    for record in train:
        if record.task != "caption":
            continue
        words = record.answer
        for name, value in record.image.labels.items():
            assert value in words, (name, record.answer)


def test_answers_agree_with_labels(train: list[Record]) -> None:
    told = {"organ": "organ", "plane": "plane", "count": "count", "location": "quadrant"}
    checked: Counter[str] = Counter()
    for record in train:
        facts, kind = record.image.labels, record.question_type
        if kind in told:
            expected = facts[told[kind]]
        elif record.task == "vqa" and kind in ("side", "size") and " or " not in record.question:
            expected = "yes" if re.search(rf"\b{facts[kind]}\b", record.question) else "no"
        elif kind in ("side", "size"):
            expected = facts[kind]
        elif kind == "presence" and "any finding" in record.question:
            expected = "no" if facts["finding"] == "normal" else "yes"
        elif kind == "presence":
            expected = "yes" if facts["finding"] in record.question else "no"
        else:
            continue
        checked[kind] += 1
        assert record.answer == expected, (record.question, facts)
    assert set(checked) == {*told, "side", "size", "presence"}


def _plans(count: int) -> Iterator[Plan]:
    return (plan_image("test", index, SEED) for index in range(count))


def _spots(plan: Plan, size: int) -> tuple[npt.NDArray[np.int64], int]:
    """Label the connected parts of what the findings change in the noise-free picture."""
    bare, full = (
        draw_plan(plan, seed=SEED, size=size, findings=shown, noise=False).astype(int)
        for shown in (False, True)
    )
    change = np.abs(full - bare)
    change = change if change.ndim == 2 else change.max(-1)
    # A finding of the same brightness as what it covers leaves a crack: close those of a pixel.
    closed = ndimage.binary_closing(np.pad(change > 5, 3))[3:-3, 3:-3]
    parts, count = ndimage.label(closed, structure=np.ones((3, 3)))
    return parts, int(count)


@pytest.mark.parametrize("size", [128, 192])
def test_stated_count_side_and_quadrant_are_drawn(size: int) -> None:
    middle, quadrants = size / 2 - 0.5, Counter[str]()
    for plan in _plans(200 if size == 128 else 40):
        parts, count = _spots(plan, size)
        assert count == plan.count, plan
        if plan.side is None:
            continue
        columns = np.nonzero(parts)[1]
        rows = np.nonzero(parts)[0]
        clear = 3.0 * size / 64
        assert (columns < middle - clear).all() or (columns > middle + clear).all(), plan
        # The patient's left is seen on the right; the viewer's left on the left.
        on_the_left = "right" if plan.plane in FACING else "viewer's left"
        assert (columns.mean() < middle) == (plan.side == on_the_left)
        if plan.quadrant:
            *whose, half, side = plan.quadrant.split()
            assert " ".join([*whose, side]) == plan.side
            assert (
                (rows < middle - clear).all() if half == "upper" else (rows > middle + clear).all()
            )
            quadrants[plan.quadrant] += 1
    assert len(quadrants) == 8


@pytest.mark.parametrize("size", [48, 64, 96, 224])
def test_letters_of_the_patients_sides_stand_off_the_body(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [
        Plan("test", 0, *scene, anatomy, "normal", None, None, None, ())
        for scene, anatomy in product(_SCENES, anatomies("test")[::25])
    ]
    marked = [draw_plan(plan, seed=SEED, size=size, noise=False) for plan in plans]
    monkeypatch.setattr(phantom, "stamp", lambda *_: None)
    for plan, picture in zip(plans, marked, strict=True):
        bare = draw_plan(plan, seed=SEED, size=size, noise=False)
        rows, columns = np.nonzero(picture != bare)[:2]
        found = {"R" if column < size / 2 else "L" for column in columns}
        letters = {"xray": {"L"}}.get(plan.domain, {"L", "R"})
        assert found == (letters if plan.plane in FACING else set()), plan
        for letter in found:
            own = (columns < size / 2) == (letter == "R")
            box = np.s_[
                rows[own].min() : rows[own].max() + 1, min(columns[own]) : max(columns[own]) + 1
            ]
            high, wide = bare[box].shape
            assert (high / 5, wide / 3) == (max(1, size // 64),) * 2
            assert bare[box].max() < 30, plan  # air
            assert set(picture[box].ravel()) - set(bare[box].ravel()) == {255}


def test_small_and_large_findings_have_a_gap_between_their_extents() -> None:
    extents: dict[tuple[bool, str | None], list[float]] = defaultdict(list)
    for plan in _plans(200):
        parts, count = _spots(plan, 128)
        for n in range(1, count + 1):
            spot = np.argwhere(parts == n)
            across = float(np.ptp(spot, axis=0).max() + 1) / 2  # in pixels at 64
            extents[plan.finding == "band", plan.size].append(across)
    for band in (False, True):
        assert min(extents[band, "small"]) >= 6
        assert min(extents[band, "large"]) >= 12
        assert min(extents[band, "large"]) - max(extents[band, "small"]) >= 2


def _disc(plan: Plan, lesion: Lesion, picture: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Mean brightness of a round finding in its centre and on its rim."""
    line = (np.arange(len(picture)) + 0.5) * 2 / len(picture) - 1
    away = np.hypot(line[None] - lesion.x, line[:, None] - lesion.y) / lesion.along
    rim = (away > 0.68) & (away < 0.84)
    return float(picture[away < 0.35].mean()), float(picture[rim].mean())


def test_rings_are_hollow_and_nodules_are_not() -> None:
    seen: Counter[tuple[str, str]] = Counter()
    for plan in _plans(200):
        if plan.finding not in ("nodule", "ring"):
            continue
        bare, full = (
            draw_plan(plan, seed=SEED, size=128, findings=shown, noise=False).astype(float)
            for shown in (False, True)
        )
        # A radiograph adds the finding to what lies behind it; the others show it instead.
        picture = full - bare if plan.domain == "xray" else full
        picture = picture if picture.ndim == 2 else picture.mean(-1)
        for lesion in plan.lesions:
            centre, rim = _disc(plan, lesion, picture)
            seen[plan.domain, plan.finding] += 1
            if plan.finding == "ring":
                assert abs(centre - rim) > 40, plan
            else:
                assert abs(centre - rim) < 25, plan
    assert len(seen) == 8


def test_bands_are_long_and_the_others_round() -> None:
    for plan in _plans(200):
        for lesion in plan.lesions:
            ratio = lesion.across / lesion.along
            assert ratio < 0.4 if plan.finding == "band" else ratio > 0.9


def test_findings_stand_out_from_the_noise() -> None:
    ratios = []
    for plan in _plans(300):
        if not plan.count:
            continue
        clean = draw_plan(plan, seed=SEED, noise=False).astype(float)
        bare = draw_plan(plan, seed=SEED, findings=False, noise=False).astype(float)
        noisy = draw_plan(plan, seed=SEED).astype(float)
        change = np.abs(clean - bare)
        ratios.append(change[change > 5].mean() / (noisy - clean).std())
    assert np.quantile(ratios, 0.02) >= 4


@pytest.mark.parametrize("size", [32, 64, 96])
def test_pictures_have_the_asked_size_and_use_the_grey_range(size: int) -> None:
    for image in _images(read_phantom("train", 64, seed=SEED, size=size)).values():
        pixels = image.source
        assert isinstance(pixels, np.ndarray)
        colours = (3,) if image.modality == "pathology" else ()
        assert pixels.dtype == np.uint8
        assert pixels.shape == (size, size, *colours)
        low, high = np.quantile(pixels, (0.01, 0.99))
        assert high - low > 60
        assert high > 80


def test_a_larger_picture_shows_the_same_content() -> None:
    for plan in _plans(64):
        small, large = (
            draw_plan(plan, seed=SEED, size=size, noise=False).astype(float) for size in (64, 128)
        )
        halved = large.reshape(64, 2, 64, 2, *large.shape[2:]).mean((1, 3))
        # Texture and exposure are drawn anew; the content decides most of the variance.
        assert np.corrcoef(halved.ravel(), small.ravel())[0, 1] > 0.8, plan


def test_modality_of_the_image_is_a_domain_in_turn() -> None:
    images = list(_images(read_phantom("train", 8, seed=SEED)).values())
    assert [image.modality for image in images] == [*DOMAINS, *DOMAINS]
    assert all("anatomy" not in name for image in images for name in image.labels)


def test_wrong_use_is_one_line_that_says_the_fix() -> None:
    with pytest.raises(DataError, match=r"'tset'.*did you mean 'test'"):
        read_phantom("tset", 4, seed=0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"count \(-1\) must not be negative"):
        read_phantom("test", -1, seed=0)
    with pytest.raises(ConfigError, match=r"seed \(-2\) must not be negative"):
        read_phantom("test", 1, seed=-2)
    with pytest.raises(ConfigError, match=r"size \(16\) must be at least 32"):
        read_phantom("test", 1, seed=0, size=16)
    assert read_phantom("test", 0, seed=0) == []
