"""Which questions of a task have a pair, and the pair's records: the same ids, other words.

Of every kind of pair it is known what a model that contradicts itself on none of them must say:
``negated`` the opposite word, ``swapped_options`` the same answer, ``swapped_words`` not yes to
both. How a question is rewritten stands in `negation` and `swaps`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from medmoe.data.schema import Record
from medmoe.evaluation.metrics import normalise, yes_or_no
from medmoe.evaluation.pairs.negation import negated
from medmoe.evaluation.pairs.swaps import excluding, reordered

_OPPOSITE = {"yes": "no", "no": "yes"}
_OR = re.compile(r"\bor\b", re.IGNORECASE)
#: Options that speak of other options, by their place or letter.
_REFERS = re.compile(r"\b(above|below|all of|none of|both|neither|either)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Pairing:
    """One kind of pair.

    Attributes:
        concerns: Whether a record is of the kind of question that could have such a pair.
        rewrite: The pair's record, with its own question and truth; None where no rule is sure.
        agree: Whether the answers to the question as it is and as rewritten can both be true.
        must: The name of that in ``summary.json``, and in words.
    """

    concerns: Callable[[Record], bool]
    rewrite: Callable[[Record], Record | None]
    agree: Callable[[str, str], bool]
    must: tuple[str, str]


def rewritten(records: Sequence[Record], pair: str) -> list[Record]:
    """Return the pair's records of all questions that surely have one, in their order."""
    pairing = PAIRINGS[pair]
    others = (pairing.rewrite(record) for record in records if pairing.concerns(record))
    return [record for record in others if record is not None]


def _yes_no(record: Record) -> bool:
    return record.task == "vqa" and not record.options and normalise(record.answer) in _OPPOSITE


def _asked_as(record: Record, question: str | None, answer: str) -> Record | None:
    """Return a record with another question and truth; None where there is no question."""
    if question is None:
        return None
    return replace(record, question=question, answer=answer, references=())


def _offers_options(record: Record) -> bool:
    asked = record.task == "vqa" and not _yes_no(record) and bool(_OR.search(record.question))
    return len(record.options) > 1 or asked


def _reordered(record: Record) -> Record | None:
    if record.options:
        if any(_REFERS.search(option) for option in record.options):
            return None
        first, *others, last = record.options
        return replace(record, options=(last, *others, first))
    question = reordered(record.question)
    return None if question is None else replace(record, question=question)


PAIRINGS: Mapping[str, Pairing] = {
    "negated": Pairing(
        concerns=_yes_no,
        rewrite=lambda r: _asked_as(r, negated(r.question), _OPPOSITE[normalise(r.answer)]),
        agree=lambda one, other: {yes_or_no(one), yes_or_no(other)} == {"yes", "no"},
        must=("flips", "the other word"),
    ),
    "swapped_options": Pairing(
        concerns=_offers_options,
        rewrite=_reordered,
        agree=lambda one, other: normalise(one) == normalise(other),
        must=("stays", "the same answer"),
    ),
    "swapped_words": Pairing(
        concerns=lambda r: _yes_no(r) and normalise(r.answer) == "yes",
        rewrite=lambda r: _asked_as(r, excluding(r.question), "no"),
        agree=lambda one, other: not yes_or_no(one) == yes_or_no(other) == "yes",
        must=("excludes", "not yes to both"),
    ),
}
#: The kinds of pairs by name.
PAIRS = tuple(PAIRINGS)
