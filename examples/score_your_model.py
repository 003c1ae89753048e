"""Score a model of your own code beside what any model must beat, as `medmoe score` does.

    python examples/score_your_model.py phantom_vqa runs/mine              # embedded pictures
    python examples/score_your_model.py vqa_rad runs/mine shared/data      # a set that you have

`answer` stands for your model: this one never looks, and says what was the answer most often in
training. Research use only, not a medical device.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from medmoe.data.images import open_picture
from medmoe.data.schema import Record
from medmoe.evaluation.ask.records import task_records
from medmoe.evaluation.tasks import task_spec


def main(task: str, out: str, data: str | None = None) -> None:
    root = Path(data) if data else None
    asked = task_records(task_spec(task), root, split=None, limit=200, seed=0)
    commonest = {
        kind: Counter(r.answer for r in asked.train if r.answer_type == kind).most_common(1)[0][0]
        for kind in ("closed", "open")
    }

    def answer(record: Record) -> str:
        _picture = open_picture(record.image.source).image  # a PIL image: your model would look
        return commonest[record.answer_type]

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "answers.jsonl", (row(r) | {"prediction": answer(r)} for r in asked.records))
    write(folder / "train.jsonl", (row(r) for r in asked.train))
    files = ["answers.jsonl", "--train", "train.jsonl", "--report", "report.html"]
    subprocess.run([sys.executable, "-m", "medmoe", "score", *files], cwd=folder, check=True)


def row(record: Record) -> dict[str, str]:
    """Return what a file of truth says of a question; intervals need to know its picture."""
    return {
        "id": record.id, "image": record.image.id, "question": record.question,
        "answer": record.answer, "answer_type": record.answer_type,
    }  # fmt: skip


def write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
