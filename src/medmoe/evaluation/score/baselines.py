"""What can be scored without looking at the picture: constant answers and the question alone.

A model that does not clear these has learned nothing from images (the paper reports none of them).
Each function returns an answer for each record, scored like any system's.
Answers are counted by their normalised form and given back in their most frequent spelling; ties
go to the first in alphabetical order, so that results do not depend on the order of the data.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

from medmoe.data.schema import Record
from medmoe.evaluation.metrics import normalise

Predictor = Callable[[Sequence[Record], Sequence[Record]], list[str]]
Key = Callable[[Record], Hashable]
#: What answers are counted by, the next where training does not hold one.
_TYPES: tuple[Key, ...] = (
    lambda record: (record.answer_type, record.question_type),
    lambda record: record.answer_type,
    lambda record: None,
)


def _question(record: Record) -> str:
    # Not `normalise`: what it merges (articles, inner spacing) a model can tell apart too, and the
    # baseline should know all that the words give away.
    return record.question.casefold().strip().rstrip(" ?.!:")


def most_frequent(answers: Iterable[str]) -> str:
    """Return the most frequent of some answers."""
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    for answer, count in Counter(answers).items():
        spellings[normalise(answer)][answer] += count
    _, counts = min(spellings.items(), key=lambda item: (-item[1].total(), item[0]))
    return min(counts, key=lambda spelling: (-counts[spelling], spelling))


def most_frequent_per_type(train: Sequence[Record], test: Sequence[Record]) -> list[str]:
    """Predict the most frequent training answer of the question type.

    Open and closed questions of one type are counted apart (which of them a question is can be
    told from its words), which makes the baseline stronger. A type that training does not hold
    falls back on the answer type, then on all training answers, of which there must be some.
    """
    return _backed_off(train, test, _TYPES)


def question_only(train: Sequence[Record], test: Sequence[Record]) -> list[str]:
    """Predict the most frequent training answer to that very question.

    Questions are the same up to case and closing punctuation. A question that training does not
    hold falls back as in `most_frequent_per_type`.
    """
    return _backed_off(train, test, (_question, *_TYPES))


#: The constant-answer baselines by name; ``yes`` and ``no`` everywhere need no training answers.
CONSTANTS: Mapping[str, Predictor] = {
    "always_yes": lambda _, test: ["yes"] * len(test),
    "always_no": lambda _, test: ["no"] * len(test),
    "most_frequent_per_type": most_frequent_per_type,
}


def _backed_off(train: Sequence[Record], test: Sequence[Record], keys: Sequence[Key]) -> list[str]:
    """Answer by the first key that training holds."""
    tables = [(key, _answers_by(train, key)) for key in keys]
    return [next(t[key(record)] for key, t in tables if key(record) in t) for record in test]


def _answers_by(train: Sequence[Record], key: Key) -> dict[Hashable, str]:
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for record in train:
        groups[key(record)].append(record.answer)
    return {name: most_frequent(answers) for name, answers in groups.items()}
