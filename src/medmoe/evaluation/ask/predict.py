"""Asks a model the questions of a task and returns predictions; scoring them is another matter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from medmoe.data.schema import Record
from medmoe.data.wording import question_text
from medmoe.evaluation.files.predictions import Prediction
from medmoe.inference.answer import Routing
from medmoe.inference.engine import MedMoe

_PROBABILITY_DECIMALS = 6


def predict(
    engine: MedMoe, records: Sequence[Record], features: Tensor, rows: dict[str, int]
) -> list[Prediction]:
    """Return one prediction per record: an answer in words, or a score per option.

    Args:
        features: (N, P, D_vision), encoded images; an image is encoded once for all its questions.
        rows: Row of each image id in ``features``.
    """
    open_ended = [record for record in records if record.task != "classification"]
    chosen = [record for record in records if record.task == "classification"]
    found = _answers(engine, open_ended, features, rows) if open_ended else {}
    if chosen:
        found |= _choices(engine, chosen, features, rows)
    return [found[record.id] for record in records]


def _answers(
    engine: MedMoe, records: Sequence[Record], features: Tensor, rows: dict[str, int]
) -> dict[str, Prediction]:
    answers = engine.answer_features(
        features, [rows[r.image.id] for r in records], [question_text(r) for r in records]
    )
    return {
        record.id: Prediction(
            record.id, answer.text, answer.confidence, routing=_summary(answer.routing)
        )
        for record, answer in zip(records, answers, strict=True)
    }


def _choices(
    engine: MedMoe, records: Sequence[Record], features: Tensor, rows: dict[str, int]
) -> dict[str, Prediction]:
    scored = engine.scored_options(
        features,
        [rows[r.image.id] for r in records],
        [question_text(r) for r in records],
        [r.options for r in records],
    )
    return {
        record.id: Prediction(
            record.id,
            record.options[values.index(max(values))],
            option_scores=values,
            routing=_summary(routing),
        )
        for record, (values, routing) in zip(records, scored, strict=True)
    }


def _summary(routing: Routing | None) -> dict[str, Any] | None:
    """Return what a prediction file says of the routing; None for a dense model."""
    if routing is None:
        return None
    probability = round(routing.domain_probability, _PROBABILITY_DECIMALS)
    return {"domain": routing.domain, "domain_probability": probability}
