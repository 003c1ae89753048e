"""Hand-made records for the scoring tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medmoe.data.schema import ImageRecord, Record


def _record(id: str = "q1", answer: str = "yes", **changes: Any) -> Record:
    image = changes.pop("image", f"image of {id}")
    options = changes.get("options", ())
    fields: dict[str, Any] = {
        "question": "is there a mass?",
        "answer_type": "closed" if answer in ("yes", "no") or options else "open",
        "question_type": "presence",
        "task": "classification" if options else "vqa",
        "dataset": "hand_made",
        "split": "test",
        "licence": "none",
    } | changes
    return Record(id=id, image=ImageRecord(image, Path("none.png")), answer=answer, **fields)


@pytest.fixture(scope="session")
def make_record() -> Callable[..., Record]:
    """Make a record; the image is one of its own unless named."""
    return _record
