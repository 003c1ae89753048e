"""What is asked while a phase trains: every question of a conversation, each with what was said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.model.tiny import dense_model, processor
from torch import Tensor

from medmoe.data.schema import ImageRecord, Record
from medmoe.evaluation.files.predictions import Prediction
from medmoe.experiments import job

IMAGE = ImageRecord("set/a", b"", "ct")


def record(number: int, *further: tuple[str, str]) -> Record:
    return Record(
        *(str(number), IMAGE, "Is there a mass?", "no", "closed", "is", "vqa", "set", "train", ""),
        further=further,
    )


def test_the_later_questions_of_a_conversation_count(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Record] = []

    def answers(engine: Any, records: Sequence[Record], *_: Any) -> list[Prediction]:
        seen.extend(records)
        return [Prediction(r.id, "lung" if r.earlier else "yes") for r in records]

    monkeypatch.setattr(job, "predict", answers)
    records = [record(1, ("Which organ is this?", "lung")), record(2)]
    features: Tensor = torch.zeros(1, 1, 1)
    score = job.strict_score(processor(), records, features, {"set/a": 0})
    assert score(dense_model("stablelm")) == pytest.approx(100 / 3)
    assert [r.question for r in seen] == [
        "Is there a mass?",
        "Which organ is this?",
        "Is there a mass?",
    ]
    assert [r.earlier for r in seen] == [(), (("Is there a mass?", "no"),), ()]
    assert len({r.id for r in seen}) == 3
