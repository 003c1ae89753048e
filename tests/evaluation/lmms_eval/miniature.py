"""VQA-RAD and PathVQA in their official layouts, small, and a tiny model that has a few right.

The model is random and says words and noise. The truth of some questions is what it says, so that
scores lie between 0 and 100 and a picture that goes with another question would show.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tests.data.readers.parquet import Row, write_hub
from tests.model.tiny import moe_model, processor

from medmoe.inference.engine import MedMoe
from medmoe.model.checkpoint import save_model

QUESTIONS = ("Is there a mass in the left lung?", "What organ is this?", "Is there a mass?")
PICTURES = 7


def save_tiny_model(folder: Path) -> Path:
    save_model(moe_model("phi"), processor(), folder, {})
    return folder


def write_data(root: Path, model: Path) -> Path:
    """Write both sets under ``root``; more questions than fit in one batch of 4, mixed images."""
    write_vqa_rad(root / "vqa-rad", MedMoe.load(model))
    rows: Sequence[Row] = [
        (40 * (number % 5), question, answer)
        for number, (question, answer) in enumerate(
            [("what is seen?", "liver"), ("is there a mass?", "no"), ("what organ?", "left lung")]
            * 4
        )
    ]
    write_hub(root / "path-vqa", "test", rows)
    write_hub(root / "path-vqa", "train", rows[:2])
    return root


def write_vqa_rad(folder: Path, engine: MedMoe) -> None:
    (folder / "images").mkdir(parents=True)
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for question in QUESTIONS:  # questions about an image are apart, as in the real file
        for number in range(PICTURES):
            path = folder / "images" / f"synpic{number}.jpg"
            if not path.exists():
                values = np.random.default_rng(number).integers(0, 255, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(values).save(path, quality=95)
            said = engine.answer(path, question).text
            row = _row(len(rows["test"]), path.name, question, said if number % 3 else "liver lung")
            rows["test"].append(row)
    rows["train"] = [_row(1000, "synpic0.jpg", QUESTIONS[0], "no")]
    for split, content in rows.items():
        (folder / f"{split}set.json").write_text(json.dumps(content), encoding="utf-8")


def _row(number: int, image: str, question: str, answer: str) -> dict[str, Any]:
    return {
        "qid": number,
        "image_name": image,
        "image_organ": "CHEST",
        "question": question,
        "answer": answer,
        "answer_type": "OPEN" if question.startswith("What") else "CLOSED",
        "question_type": "PRES",
    }
