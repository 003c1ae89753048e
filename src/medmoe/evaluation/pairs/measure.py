"""From the answers to pairs of questions to what is said of them: one object for ``summary.json``.

How often the two answers can both be true, and how often both are right, with intervals by image.
A model that hears the nouns only, or always gives one answer, never flips; that one never changes
its answer says nothing of whether it is right.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medmoe.data.schema import Record
from medmoe.evaluation.files.predictions import Prediction, pair
from medmoe.evaluation.pairs.rewriting import PAIRINGS
from medmoe.evaluation.score.measures import is_right
from medmoe.evaluation.statistics import shares_of

#: Examples that a summary keeps of either outcome.
_EXAMPLES = 3


def pair_scores(
    kind: str,
    records: Sequence[Record],
    predictions: Sequence[Prediction],
    others: Sequence[Record],
    answers: Sequence[Prediction],
    seed: int,
) -> dict[str, Any]:
    """Return what is found of one kind of pair.

    Args:
        records: All records of the task, as they are.
        others: The pair's records, as `rewritten` returns them.

    Returns:
        ``n`` pairs ``of`` so many questions that the kind concerns; ``scores``: metric → ``{value,
        low, high}`` in percent, strict protocol: ``right_as_asked``, ``right_rewritten``,
        ``both_right`` and ``flips`` (negated), ``stays`` (swapped_options) or ``excludes``
        (swapped_words); ``examples`` of both outcomes.

    Raises:
        DataError: Ids do not pair.
    """
    pairing = PAIRINGS[kind]
    result: dict[str, Any] = {
        "n": len(others),
        "of": sum(pairing.concerns(record) for record in records),
        "scores": {},
        "examples": [],
    }
    if not others:
        return result
    asked = {record.id: (record, said) for record, said in pair(records, predictions)}
    quartets = [(*asked[other.id], other, said) for other, said in pair(others, answers)]
    right = [
        [is_right(record, said), is_right(other, new)] for record, said, other, new in quartets
    ]
    agree = [pairing.agree(said.text, new.text) for _, said, _, new in quartets]
    columns = np.array(
        [[a, b, a and b, c] for (a, b), c in zip(right, agree, strict=True)], dtype=np.float64
    )
    names = ("right_as_asked", "right_rewritten", "both_right", pairing.must[0])
    shares = shares_of(columns, [record.image.id for record, *_ in quartets], seed)
    result["scores"] = dict(zip(names, shares, strict=True))
    rng = random.Random(seed)
    for outcome in (True, False):
        chosen = [q for q, agrees in zip(quartets, agree, strict=True) if agrees == outcome]
        drawn = rng.sample(chosen, min(_EXAMPLES, len(chosen)))
        result["examples"] += [_example(*quartet, outcome) for quartet in drawn]
    return result


def _example(
    record: Record, said: Prediction, other: Record, new: Prediction, agree: bool
) -> dict[str, Any]:
    return {
        "id": record.id,
        "questions": [_question(record), _question(other)],
        "truth": [record.answer, other.answer],
        "answers": [said.text, new.text],
        "agree": agree,
    }


def _question(record: Record) -> str:
    return f"Options: {', '.join(record.options)}" if record.options else record.question


def unasked(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each kind of pair that a task has no question for.

    Args:
        entries: Objects of `pair_scores` with ``task`` and ``pair``.
    """
    return [
        f"{entry['task']}: none of its questions was asked as {entry['pair']} "
        f"({entry['of']} concerned, none surely rewritten)."
        for entry in entries
        if not entry["n"]
    ]
