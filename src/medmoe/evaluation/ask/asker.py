"""Asks a model what is not answered yet, chunk by chunk, and keeps the answers in files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from PIL import Image

from medmoe.data.images import open_record
from medmoe.data.schema import Record
from medmoe.evaluation.ask.answers import BATCHES, AnswerFile, chunks_of
from medmoe.evaluation.ask.plan import EvalPlan
from medmoe.evaluation.ask.predict import predict
from medmoe.evaluation.files.predictions import Prediction, read_predictions
from medmoe.inference.engine import MedMoe

Progress = Callable[[str, int, int], None]  # what is asked, questions done, questions in all
Change = Callable[[str, Image.Image], Image.Image]  # an image's id and picture to another picture


class Asker:
    """Asks what is not answered yet; the model is loaded when the first question is asked."""

    def __init__(self, plan: EvalPlan, progress: Progress) -> None:
        self._plan = plan
        self._progress = progress
        self.asked = 0

    @cached_property
    def engine(self) -> MedMoe:
        """The model, loaded once."""
        plan = self._plan
        return MedMoe.load(
            plan.model, batch_size=plan.batch_size, max_new_tokens=plan.max_new_tokens
        )

    def ask(
        self,
        name: str,
        records: Sequence[Record],
        path: Path,
        change: Change | None = None,
        *,
        questions: bool = False,
    ) -> list[Prediction]:
        """Return the predictions in a file once every record is answered there.

        Args:
            change: Makes another picture of an image's id and picture.
            questions: Also write the questions, which are not those of the data set.
        """
        chunks = chunks_of(records, BATCHES * self._plan.batch_size)
        file = AnswerFile(path, chunks, questions=questions)
        whole = file.resume()
        done = sum(len(chunk) for chunk in chunks[:whole])
        for chunk in chunks[whole:]:
            self._progress(name, done, len(records))
            file.append(chunk, ask_chunk(self.engine, chunk, change))
            done += len(chunk)
            self.asked += len(chunk)
        self._progress(name, done, len(records))
        return read_predictions(path)


def ask_chunk(
    engine: MedMoe,
    records: Sequence[Record],
    change: Change | None = None,
) -> list[Prediction]:
    """Answer records, each image encoded once for all its questions.

    Raises:
        ImageError: A picture cannot be used; the record is named.
    """
    images = list({record.image.id: record.image for record in records}.values())
    pictures = [open_record(image) for image in images]
    if change is not None:
        pictures = [change(i.id, picture) for i, picture in zip(images, pictures, strict=True)]
    features = engine.encode(pictures)
    return predict(engine, records, features, {image.id: i for i, image in enumerate(images)})
