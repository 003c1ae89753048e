"""VQA-RAD and PathVQA as tasks of lmms-eval, for any of its models: what their YAML files name.

Questions, pictures and answer types come from our readers, from the folder at ``$MEDMOE_DATA``, and
the scores from our protocols: so n, values and clusters are those of `medmoe eval`. Values are in
percent, as everywhere here. Standard errors are lmms-eval's, clustered on the image by its own
``cluster_key``. What it does not have: intervals, baselines and controls (`medmoe eval` does).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from medmoe.data import registry
from medmoe.data.images import open_record
from medmoe.data.schema import Record, question_text
from medmoe.errors import DataError, MedMoeError
from medmoe.evaluation.score.measures import measures, record_scores
from medmoe.evaluation.statistics import in_percent
from medmoe.evaluation.tasks import task_spec

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL import Image

#: What is scored: ours, and the paper's.
PROTOCOLS = ("strict", "reference")

Document = Mapping[str, Any]


def documents(task: str, _: object = None) -> Dataset:
    """Return the questions of a task's own split as lmms-eval's documents.

    Pictures are not among them: `doc_to_visual` opens them, so that they pass our limits, and no
    log of lmms-eval holds them.

    Raises:
        SystemExit: ``$MEDMOE_DATA`` is not set, or the set is not there or malformed; with the line
            that says so. lmms-eval asks five times after any other error, and then hides it.
    """
    from datasets import Dataset

    try:
        records = _records(task)
    except MedMoeError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    return Dataset.from_list(
        [
            {
                "task": task,
                "id": record.id,
                "image": record.image.id,
                "question": question_text(record),
                "answer": record.answer,
                "answer_type": record.answer_type,
                "question_type": record.question_type,
            }
            for record in records.values()
        ]
    )


# What the YAML files of the tasks name.
vqa_rad = partial(documents, "vqa_rad")
vqa_rad_disjoint = partial(documents, "vqa_rad_disjoint")
path_vqa = partial(documents, "path_vqa")


def doc_to_visual(document: Document) -> list[Image.Image]:
    """Return the picture of a document, RGB."""
    return [open_record(_record(document).image)]


def doc_to_text(document: Document, words: Mapping[str, str] | None = None) -> str:
    """Return the question between the words that the YAML file has for a model; none for ours."""
    words = words or {}
    return f"{words.get('pre_prompt', '')}{document['question']}{words.get('post_prompt', '')}"


def process_results(document: Document, answers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the scores of one answer by metric: ``<protocol>_<subset>_<metric>``.

    Each is ``{score, share, image, id}``: in percent (for the standard errors), from 0 to 1, and
    the ids of image and question, which lmms-eval's log of samples has from here. Metrics of closed
    questions are left out for open ones and the other way round.
    """
    record = _record(document)
    kind = record.answer_type
    by_metric: dict[str, dict[str, Any]] = {}
    for subset in (kind, "all"):
        for measure in measures(subset, PROTOCOLS):
            key = measure.key(kind)
            if key is None:
                continue
            scores = record_scores(measure.protocol, record, answers[0].strip())
            share = scores[key]
            by_metric[f"{measure.protocol}_{subset}_{measure.metric}"] = {
                "score": 100.0 * share,
                "share": share,
                "image": record.image.id,
                "id": record.id,
            }
    return by_metric


def mean(scores: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the mean of a metric in percent, as a score row has it."""
    return in_percent(math.fsum(score["share"] for score in scores) / len(scores))


def _records(task: str) -> dict[str, Record]:
    """Return the questions of a task's own split by id."""
    return _read(task, os.environ.get(registry.ENVIRONMENT_VARIABLE, ""))


@lru_cache
def _read(task: str, folder: str) -> dict[str, Record]:
    root = registry.find_data(None, {registry.ENVIRONMENT_VARIABLE: folder})
    if root is None:
        raise DataError(
            f"task {task!r} needs its data set; set ${registry.ENVIRONMENT_VARIABLE} to the folder "
            "that holds it (`medmoe data get` fetches it)"
        )
    spec = task_spec(task)
    records = registry.read(spec.dataset, root, spec.split)
    return {record.id: record for record in records if record.task == "vqa"}


def _record(document: Document) -> Record:
    return _records(document["task"])[document["id"]]
