"""Captions, questions and the classification item of an image, from its plan.

What is asked is drawn so that no question can be answered without the picture: each closed question
is asked as often where its answer is yes as where it is no, each open one has four or more answers
of nearly equal share, and a question about a finding names neither modality nor body part. Words
are few and sentences regular, so that a very small language model can learn them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from medmoe.data.phantom.plan import COUNTS, FACING, FINDINGS, SIZES, Plan, sides
from medmoe.data.schema import AnswerType, ImageRecord, Record, Task

MODALITY_WORDS = {"ct": "ct", "mri": "mri", "pathology": "pathology", "xray": "x-ray"}

#: Questions about one image with a finding; an image without one gets one fewer.
_PER_IMAGE = 8


_IS = "Is the finding on the {} side?"
#: Which of the two, and whether it is one of them, with the patient's sides in view and without.
_SIDE = {
    True: ("Is the finding on the patient's left or right side?", _IS.format("patient's {}")),
    False: ("Is the finding on the viewer's left or right side?", _IS.format("{}")),
}
_SIZE = "Is the finding small or large?", "Is the finding {}?"


class _Item(NamedTuple):
    """The fields of a record that an item decides, in their order."""

    question: str
    answer: str
    answer_type: AnswerType
    question_type: str


def records(plan: Plan, image: ImageRecord, rng: np.random.Generator) -> list[Record]:
    """Return the caption, the questions and the classification item of one image."""

    def record(name: str, item: _Item, task: Task, options: tuple[str, ...] = ()) -> Record:
        of_set = ("phantom", plan.split, "CC0-1.0")
        return Record(f"{image.id}/{name}", image, *item, task, *of_set, options)

    request = _pick(rng, "Describe the image.", "What does this image show?")
    caption = _Item(request, _caption(plan, rng), "open", "caption")
    label = _Item("Which class of finding is this?", plan.finding, "closed", "kind")
    asked = [record(f"vqa-{n}", item, "vqa") for n, item in enumerate(_questions(plan, rng))]
    return [
        record("caption", caption, "caption"),
        *asked,
        record("classification", label, "classification", FINDINGS),
    ]


def labels(plan: Plan) -> dict[str, str]:
    """Return every known fact by name; side, size and quadrant only where they have an answer."""
    facts = {
        "organ": plan.organ,
        "plane": plan.plane,
        "finding": plan.finding,
        "count": COUNTS[plan.count],
        "side": plan.side,
        "size": plan.size,
        "quadrant": plan.quadrant,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _pick(rng: np.random.Generator, *phrasings: str) -> str:
    return phrasings[int(rng.integers(len(phrasings)))]


def _caption(plan: Plan, rng: np.random.Generator) -> str:
    modality = MODALITY_WORDS[plan.domain]
    opening = _pick(
        rng,
        f"{plan.plane} {modality} image of the {plan.organ}",
        f"{modality} image of the {plan.organ}, {plan.plane} view",
    )
    if plan.side is None:
        return f"{opening}. normal, zero findings."
    plural = "" if plan.count == 1 else "s"
    facts = f"{COUNTS[plan.count]} {plan.size} {plan.finding}{plural} on the {plan.side} side"
    place = f", {plan.quadrant} quadrant" if plan.quadrant else ""
    return f"{opening}. {facts}{place}."


def _questions(plan: Plan, rng: np.random.Generator) -> list[_Item]:
    items = [*_about_findings(plan, rng), *_presence(plan, rng)]
    if plan.side is not None and plan.size is not None:
        words = _SIDE[plan.plane in FACING]
        items.append(_which("side", plan.side, sides(plan.plane), words, rng))
        items.append(_which("size", plan.size, SIZES, _SIZE, rng))
    general = list(_general(plan, rng))
    room = _PER_IMAGE - len(items)
    items += [general[int(n)] for n in rng.permutation(len(general))[:room]]
    return [items[int(n)] for n in rng.permutation(len(items))]


def _general(plan: Plan, rng: np.random.Generator) -> Iterator[_Item]:
    modality = _pick(rng, "Which modality is this?", "What is the modality of this image?")
    yield _Item(modality, MODALITY_WORDS[plan.domain], "open", "modality")
    view = _pick(rng, "Which view is shown?", "What is the view of this image?")
    yield _Item(view, plan.plane, "open", "plane")
    part = _pick(rng, "Which body part is shown?", "What is the body part in this image?")
    yield _Item(part, plan.organ, "open", "organ")


def _about_findings(plan: Plan, rng: np.random.Generator) -> Iterator[_Item]:
    """Yield the open questions about findings, which a normal image can be asked as well."""
    count = _pick(rng, "How many findings are there?", "What is the count of findings?")
    yield _Item(count, COUNTS[plan.count], "open", "count")
    kind = _pick(rng, "Which kind of finding is shown?", "What is the kind of finding?")
    yield _Item(kind, plan.finding, "open", "kind")
    if plan.quadrant:
        place = _pick(rng, "Which quadrant shows the finding?", "In which quadrant is the finding?")
        yield _Item(place, plan.quadrant, "open", "location")


def _presence(plan: Plan, rng: np.random.Generator) -> Iterator[_Item]:
    """Yield yes/no questions about presence, as often with yes as with no.

    A quarter of the images is normal: with any finding asked of all of those and of a third of the
    others, and the own kind asked of two thirds of the others, both answers are equally frequent.
    """
    normal = plan.finding == "normal"
    if normal or rng.random() < 1 / 3:
        question = _pick(rng, "Is there any finding?", "Does this image show any finding?")
        yield _Item(question, "no" if normal else "yes", "closed", "presence")
    others = [kind for kind in FINDINGS[1:] if kind != plan.finding]
    asked = plan.finding if not normal and rng.random() < 2 / 3 else _pick(rng, *others)
    question = _pick(rng, f"Is there any {asked}?", f"Does this image show any {asked}?")
    yield _Item(question, "yes" if asked == plan.finding else "no", "closed", "presence")


def _which(
    kind: str,
    answer: str,
    choices: tuple[str, ...],
    words: tuple[str, str],
    rng: np.random.Generator,
) -> _Item:
    """Return a closed question about one of two choices: which it is, or whether it is this one."""
    asked = _pick(rng, *choices, "")
    if not asked:
        return _Item(words[0], answer, "closed", kind)
    return _Item(words[1].format(asked), "yes" if asked == answer else "no", "closed", kind)
