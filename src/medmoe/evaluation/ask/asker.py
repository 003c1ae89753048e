"""Asks a model what is not answered yet, chunk by chunk, and keeps the answers in files.

An image is encoded once for all its questions. Scoring the answers is another matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, cached_property, partial
from math import isnan
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from medmoe.data.images import digest_of, open_record
from medmoe.data.schema import Record, images_of, question_text, spoken
from medmoe.errors import ConfigError, DataError
from medmoe.evaluation.ask.answers import BATCHES, AnswerFile, chunks_by_image
from medmoe.evaluation.ask.plan import EvalPlan, longest_answer
from medmoe.evaluation.files.json_lines import named
from medmoe.evaluation.files.predictions import Prediction, read_predictions
from medmoe.inference.answer import Answer, Routing
from medmoe.inference.endpoint import Reply
from medmoe.inference.engine import MedMoe
from medmoe.model.blind import BlindConfig
from medmoe.processes import from_main, is_main, shared_out

_PROBABILITY_DECIMALS = 6
Progress = Callable[[str, int, int], None]  # what is asked, questions done, questions in all
Turns = tuple[tuple[str, str], ...]
Change = Callable[[str, Image.Image], Image.Image]  # an image's id and picture to another picture


class Asker:
    """Asks what is not answered yet; the model is loaded when the first question is asked."""

    def __init__(self, plan: EvalPlan, progress: Progress) -> None:
        self._plan = plan
        self._progress = progress
        self.asked = 0

    @cached_property
    def engine(self) -> Any:
        """The model, or what is asked in its place, loaded once."""
        if self._plan.other is not None:
            return self._plan.other.begin()
        plan = self._plan
        return MedMoe.load(plan.model, dtype=plan.dtype, batch_size=plan.batch_size)

    def unfit(self, records: Sequence[Record]) -> list[tuple[Record, str]]:
        """Return the records that the model cannot be asked, each with the reason."""
        self.engine.max_new_tokens = longest_answer(self._plan, records)
        return [] if self._plan.other else unfit(self.engine, records)

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

        Raises:
            DataError: Questions are longer than the model can read; they are named.
        """
        chunks = chunks_by_image(records, lambda r: r.image.id, BATCHES * self._plan.batch_size)
        file = AnswerFile(path, chunks, questions=questions)
        whole = from_main(file.resume)
        done = sum(len(chunk) for chunk in chunks[:whole])
        if whole < len(chunks) and (refused := self.unfit(records)):
            raise DataError(
                f"{name}: {len(refused)} of {len(records)} questions cannot be asked: "
                f"{named(record.id for record, _ in refused)}; the first: {refused[0][1]}"
            )
        left = chunks[whole:]
        self._progress(name, done, len(records))
        answers = shared_out(left, lambda chunk: ask_chunk(self.engine, chunk, change))
        for chunk, given in zip(left, answers, strict=True):
            if is_main():
                file.append(chunk, given)
            done += len(chunk)
            self.asked += len(chunk)
            self._progress(name, done, len(records))
        return from_main(partial(read_predictions, path))


def unfit(engine: MedMoe, records: Sequence[Record]) -> list[tuple[Record, str]]:
    """Return the records that a model cannot be asked, each with the reason."""

    @cache  # classes are asked in the same words again and again
    def reason(
        question: str, earlier: Turns, further: tuple[int, ...], options: tuple[str, ...]
    ) -> str:
        try:
            for option in options:
                engine.segment(question, option, 1 + len(further))
            if not options:
                engine.prompt(question, earlier, further=further)
        except ConfigError as error:
            return str(error)
        return ""

    asked = []
    for record in records:
        options = record.options if record.task == "classification" else ()
        further = tuple(turn for turn, _ in record.further_images)
        why = reason(question_text(record), record.earlier, further, options)
        asked.append((record, why))
    return [(record, why) for record, why in asked if why]


def ask_chunk(
    engine: Any,
    records: Sequence[Record],
    change: Change | None = None,
) -> list[Prediction]:
    """Answer records; a model of ours encodes each picture once for all its questions.

    Raises:
        ImageError: A picture cannot be used; the record is named.
    """
    images = images_of(records)
    pictures = [open_record(image) for image in images]
    if change is not None:
        pictures = [change(i.id, picture) for i, picture in zip(images, pictures, strict=True)]
    if not isinstance(engine, MedMoe):
        by_image = dict(zip((image.id for image in images), pictures, strict=True))
        talks = [[*spoken(r.earlier), ("user", question_text(r))] for r in records]
        further = [[(2 * turn, by_image[i.id]) for turn, i in r.further_images] for r in records]
        answers = engine.answers([by_image[r.image.id] for r in records], talks, further)
        return list(map(_prediction, records, answers))
    # A control shows the same picture in the place of many, and to a blind twin all are the same.
    blind = engine.model.config.vision_config.model_type == BlindConfig.model_type
    shown = [b"" if blind else digest_of(picture) for picture in pictures]
    different = dict(zip(shown, pictures, strict=True))
    places = {digest: place for place, digest in enumerate(different)}
    rows = {image.id: places[digest] for image, digest in zip(images, shown, strict=True)}
    return predict(engine, records, engine.encode(list(different.values())), rows)


def predict(
    engine: MedMoe, records: Sequence[Record], features: Tensor, rows: dict[str, int]
) -> list[Prediction]:
    """Return one prediction per record: an answer in words, or a score per option.

    Args:
        features: (N, P, D_vision), encoded images; an image is encoded once for all its questions.
        rows: Row of each image id in ``features``.
    """
    predictions: dict[str, Prediction] = {}
    for choose in (False, True):
        asked = [record for record in records if (record.task == "classification") == choose]
        if not asked:
            continue
        places = [rows[record.image.id] for record in asked]
        further = [[(turn, rows[i.id]) for turn, i in record.further_images] for record in asked]
        questions = [question_text(record) for record in asked]
        if choose:
            options = [record.options for record in asked]
            others = [[row for _, row in of_record] for of_record in further]
            scored = engine.scored_options(features, places, questions, options, others)
            for record, (scores, routings) in zip(asked, scored, strict=True):
                best = record.options[scores.index(max(scores))]
                predictions[record.id] = Prediction(
                    record.id, best, option_scores=scores, routing=_summary(*routings)
                )
        else:
            earlier = [record.earlier for record in asked]
            answers = engine.answer_features(
                features, places, questions, earlier=earlier, further=further
            )
            for record, answer in zip(asked, answers, strict=True):
                predictions[record.id] = _prediction(record, answer)
    return [predictions[record.id] for record in records]


def _prediction(record: Record, answer: Answer) -> Prediction:
    return Prediction(
        record.id,
        answer.text,
        None if isnan(answer.confidence) else answer.confidence,
        routing=_summary(answer.routing, *answer.further),
        cut=answer.cut,
        failed=answer.failed if isinstance(answer, Reply) else None,
    )


def _summary(routing: Routing | None, *further: Routing | None) -> dict[str, Any] | None:
    """Return what a prediction file says of the routing; None for a dense model.

    Args:
        further: Of the question's further images.
    """
    if routing is None:
        return None
    probability = round(routing.domain_probability, _PROBABILITY_DECIMALS)
    told: dict[str, Any] = {"domain": routing.domain, "domain_probability": probability}
    if (warning := routing.out_of_domain.warning) is not None:
        told["out_of_domain"] = warning
    return told | ({"further": [_summary(other) for other in further]} if further else {})
