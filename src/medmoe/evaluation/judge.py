"""A language model as judge of answers in words: a protocol of its own, mixed with no other.

Any OpenAI-compatible endpoint is sent question, true and given answer, but no picture. Its verdict
stands beside what ``strict`` says of the same answers, with what it cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medmoe.data.schema import Record
from medmoe.errors import DataError
from medmoe.evaluation.files.json_lines import named
from medmoe.evaluation.files.known_records import known_records, with_question
from medmoe.evaluation.files.predictions import Prediction, pair, without_thinking
from medmoe.evaluation.metrics import yes_or_no
from medmoe.evaluation.score.measures import Mask, is_right
from medmoe.evaluation.statistics import in_percent, shares_of
from medmoe.inference.endpoint import Endpoint

#: What the judge is told; frozen, since another wording judges otherwise.
PROMPT = """You grade an answer to a question about a medical image, which you do not see.
Question: {question}
True answer: {answer}
Given answer: {prediction}
Does the given answer mean the same as the true answer? Answer with one word: yes or no."""


@dataclass(frozen=True, slots=True)
class Judge:
    """Who judges.

    Attributes:
        root: Folder of the data sets, for questions that the truth does not hold.
    """

    endpoint: Endpoint
    name: str
    root: Path | None

    def scores(
        self, records: Sequence[Record], predictions: Sequence[Prediction], seed: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the accuracy of each subset as `score --json` has it, and what the judge did.

        The same answer to the same question is judged once. A verdict that is neither yes nor no,
        or did not come, counts as wrong.

        Raises:
            DataError: A question is not known.
            ConfigError: The endpoint answers nothing.
        """
        known = known_records(records, self.root, seed)
        pairs = [(with_question(r, known), said) for r, said in pair(records, predictions)]
        if unknown := [record.id for record, _ in pairs if not record.question]:
            raise DataError(
                f"a judge needs the questions, and those of {named(unknown)} are not known; give "
                "a truth that holds them, or the data by --data"
            )
        told = [_told(record, said) for record, said in pairs]
        asked = list(dict.fromkeys(told))
        replies = self.endpoint.answers([None] * len(asked), [[("user", text)] for text in asked])
        given = [yes_or_no(without_thinking(reply.text)) for reply in replies]
        verdicts = dict(zip(asked, given, strict=True))
        right = np.array([verdicts[text] == "yes" for text in told])
        strict = np.array([is_right(*each) for each in pairs])
        return _cells([record for record, _ in pairs], right, seed), {
            "model": self.name,
            "prompt": PROMPT,
            "asked": len(asked),
            "without_verdict": given.count(None),
            "prompt_tokens": sum(reply.tokens[0] for reply in replies),
            "completion_tokens": sum(reply.tokens[1] for reply in replies),
            **_agreement(right, strict),
            "verdicts": {
                said.id: {
                    "question": record.question,
                    "answer": record.answer,
                    "prediction": said.text,
                    "judge": verdicts[text],
                    "strict": bool(also),
                }
                for (record, said), text, also in zip(pairs, told, strict, strict=True)
            },
        }


def _told(record: Record, said: Prediction) -> str:
    true = " or ".join((record.answer, *record.references))
    return PROMPT.format(question=record.question, answer=true, prediction=said.text)


def _cells(records: Sequence[Record], right: Mask, seed: int) -> dict[str, Any]:
    cells = {}
    for subset in ("closed", "open", "all"):
        rows = [i for i, record in enumerate(records) if subset in (record.answer_type, "all")]
        if rows:
            images = [records[row].image.id for row in rows]
            (share,) = shares_of(right[rows, None].astype(np.float64), images, seed)
            cells[subset] = {"accuracy": share | {"n": len(rows)}}
    return cells


def _agreement(right: Mask, strict: Mask) -> dict[str, Any]:
    """Return how far two agree: in percent, and beyond chance (Cohen's kappa)."""
    same, a, b = float((right == strict).mean()), float(right.mean()), float(strict.mean())
    chance = a * b + (1 - a) * (1 - b)
    return {
        "agreement_with_strict": in_percent(same),
        "kappa": None if chance == 1 else round((same - chance) / (1 - chance), 4),
        "right_for_judge_only": int((right & ~strict).sum()),
        "right_for_strict_only": int((strict & ~right).sum()),
    }
