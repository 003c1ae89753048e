"""Scores the trained models of a demonstration: systems, controls, router, routing pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medmoe.data.schema import ImageRecord
from medmoe.domains import domain_index
from medmoe.evaluation.ask.predict import predict
from medmoe.evaluation.compare import compare_task
from medmoe.evaluation.files.predictions import Prediction, write_predictions
from medmoe.evaluation.score.rows import ScoreRow, score_task
from medmoe.evaluation.statistics import wilson
from medmoe.experiments.demo_corpus import Corpus, EvalTask
from medmoe.experiments.pipeline import Trained
from medmoe.inference.engine import MedMoe, Routing
from medmoe.routing.statistics import confusion_matrix, expert_share, router_accuracy


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores and what is needed to show them.

    Attributes:
        rows: Score rows of all systems, tasks and controls.
        predictions: Of the MoE model by task.
        comparisons: MoE against SFT, paired, by task and subset.
        router: ``accuracy``, ``low``, ``high`` (percent), ``n`` and the same by data set.
        confusion: (D, D) images by true domain and the router's.
        expert_share: MoE layer → share (modality, expert) of image tokens.
        modalities: Row names of ``expert_share``.
    """

    rows: list[ScoreRow]
    predictions: dict[str, list[Prediction]]
    comparisons: list[dict[str, Any]]
    router: dict[str, Any]
    confusion: npt.NDArray[np.int64]
    expert_share: dict[int, npt.NDArray[np.float64]]
    modalities: tuple[str, ...]


def score_all(corpus: Corpus, trained: Trained, folder: Path, seed: int) -> Scored:
    """Ask both systems every question, and the MoE model again with a blank picture.

    Args:
        folder: Where ``predictions/<system>-<task>[-<control>].jsonl`` are written.
    """
    moe = MedMoe(trained.moe, trained.processor)
    sft = MedMoe(trained.sft, trained.processor)
    rows: list[ScoreRow] = []
    predictions: dict[str, list[Prediction]] = {}
    comparisons: list[dict[str, Any]] = []
    for task in corpus.tasks:
        both = {
            name: predict(engine, task.records, trained.features, trained.rows)
            for name, engine in (("moe", moe), ("sft", sft))
        }
        for name, found in both.items():
            rows += _scores(name, task, found, seed)
            _write(folder, task, found, name)
        predictions[task.name] = both["moe"]
        a_and_b = {name: both[name] for name in ("sft", "moe")}
        comparisons += compare_task(task.name, task.split, task.records, a_and_b, seed)
        nothing = dict.fromkeys(trained.rows, 0)
        found = predict(moe, task.records, trained.blank, nothing)
        rows += _scores("moe", task, found, seed, control="blank")
        _write(folder, task, found, "moe", "blank")
    routings = route_images(moe, trained, corpus.router_test)
    _write_routings(folder / "predictions" / "moe-router.jsonl", corpus.router_test, routings)
    router, confusion = _score_router(corpus, routings, moe)
    modalities, share = _shares(corpus.router_test, routings, moe)
    return Scored(rows, predictions, comparisons, router, confusion, share, modalities)


def route_images(engine: MedMoe, trained: Trained, images: Sequence[ImageRecord]) -> list[Routing]:
    """Return the router's decision on each image."""
    found = engine.route(trained.features[[trained.rows[image.id] for image in images]])
    return [routing for routing in found if routing is not None]


def _write(
    folder: Path, task: EvalTask, predictions: Sequence[Prediction], system: str, *control: str
) -> None:
    name = "-".join([system, task.name, *control])
    write_predictions(folder / "predictions" / f"{name}.jsonl", task.records, predictions)


def _write_routings(path: Path, images: Sequence[ImageRecord], routings: Sequence[Routing]) -> None:
    lines = [
        json.dumps(
            {
                "id": image.id,
                "domain": routing.domain,
                "domain_probability": round(routing.domain_probability, 6),
                "modality": image.modality,
            }
        )
        for image, routing in zip(images, routings, strict=True)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _scores(
    system: str,
    task: EvalTask,
    predictions: Sequence[Prediction],
    seed: int,
    control: str | None = None,
) -> list[ScoreRow]:
    rows = score_task(
        system=system,
        task=task.name,
        split=task.split,
        records=task.records,
        predictions=predictions,
        train_records=task.train_records,
        seed=seed,
        control=control,
    )
    return [replace(row, shared_images=task.shared_images or None) for row in rows]


def _score_router(
    corpus: Corpus, routings: Sequence[Routing], engine: MedMoe
) -> tuple[dict[str, Any], npt.NDArray[np.int64]]:
    """Return the router's accuracy, of the main set and of each set, and the confusion of all."""
    images = corpus.router_test
    domains = list(engine.model.config.domains)
    pairs = [
        (image, truth, domains.index(routing.domain))
        for image, routing in zip(images, routings, strict=True)
        if (truth := domain_index(image.modality, domains)) is not None
    ]
    confusion = confusion_matrix([t for _, t, _ in pairs], [p for _, _, p in pairs], len(domains))
    sets = sorted({_dataset(image) for image, _, _ in pairs})
    by_dataset = {
        name: _accuracy(
            confusion_matrix(
                [t for i, t, _ in pairs if _dataset(i) == name],
                [p for i, _, p in pairs if _dataset(i) == name],
                len(domains),
            )
        )
        for name in sets
    }
    main = by_dataset[corpus.main_router_set]
    return main | {"dataset": corpus.main_router_set, "by_dataset": by_dataset}, confusion


def _dataset(image: ImageRecord) -> str:
    return image.id.partition("/")[0]


def _accuracy(confusion: npt.NDArray[np.int64]) -> dict[str, Any]:
    n, right = int(confusion.sum()), int(np.trace(confusion))
    low, high = wilson(right, n)
    return {
        "accuracy": 100 * router_accuracy(confusion),
        "low": 100 * low,
        "high": 100 * high,
        "n": n,
    }


def _shares(
    images: Sequence[ImageRecord], routings: Sequence[Routing], engine: MedMoe
) -> tuple[tuple[str, ...], dict[int, npt.NDArray[np.float64]]]:
    """Return, per MoE layer, each modality's mean share of image tokens by expert."""
    modalities = tuple(sorted({image.modality or "unknown" for image in images}))
    layers = engine.model.config.moe_layers
    domains = engine.model.config.domains
    totals = {layer: np.zeros((len(modalities), len(domains))) for layer in layers}
    for image, routing in zip(images, routings, strict=True):
        row = modalities.index(image.modality or "unknown")
        for layer in layers:
            totals[layer][row] += [routing.experts[layer][name] for name in domains]
    return modalities, {layer: expert_share(total) for layer, total in totals.items()}
