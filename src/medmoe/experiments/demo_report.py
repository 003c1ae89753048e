"""What a demonstration's report shows beside the scores: pictures, examples, next steps."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

from medmoe.data.images import open_image
from medmoe.domains import DOMAINS
from medmoe.evaluation.pages.report import Example, ReportData
from medmoe.evaluation.score.measures import is_right
from medmoe.experiments.demo_corpus import Corpus, unique_images
from medmoe.experiments.demo_plan import DemoPlan
from medmoe.experiments.pipeline import Trained
from medmoe.experiments.scoring import Scored
from medmoe.inference.engine import MedMoe


def report_data(
    plan: DemoPlan,
    corpus: Corpus,
    trained: Trained,
    scored: Scored,
    summary: dict[str, Any],
    out: Path,
) -> ReportData:
    """Return everything the report shows."""
    source = "the embedded phantom" if plan.root is None else f"real data ({plan.split} split)"
    return ReportData(
        title=f"Med-MoE on {source}",
        summary=summary,
        curves={name: result.curve for name, result in trained.phases.items()},
        expert_share=scored.expert_share,
        modalities=scored.modalities,
        domains=tuple(plan.model.domains),
        confusion=scored.confusion,
        sheet=_sheet(corpus),
        examples=_examples(corpus, trained, scored, plan.seed),
        notes=list(corpus.notes),
        next_steps=next_steps(plan, out),
    )


def example_pictures(corpus: Corpus, folder: Path) -> list[Path]:
    """Write one scored picture of every domain as ``<domain>.png``, to ask the model about."""
    folder.mkdir(parents=True, exist_ok=True)
    scored = unique_images(record for task in corpus.tasks for record in task.records)
    found: dict[str, Path] = {}
    for image in [*scored, *corpus.router_test]:
        if image.modality in DOMAINS and image.modality not in found:
            found[image.modality] = folder / f"{image.modality}.png"
            open_image(image.source).save(found[image.modality])
    return list(found.values())


def next_steps(plan: DemoPlan, out: Path) -> list[str]:
    """Return what a user may try next; commands stand in backticks."""
    question = "Is there any nodule?" if plan.root is None else "What imaging modality is this?"
    steps = [f'Ask: `medmoe ask {out / "model"} {out / "examples" / "ct.png"} "{question}"`.']
    if plan.root is None:
        steps.append("Train on real pictures: `medmoe demo --data DIR --minutes 60`.")
    else:
        command = f"medmoe demo --data DIR --split disjoint --minutes {plan.minutes}"
        steps.append(f"Score the image-disjoint split: `{command}`.")
    steps.append(f"See the spread of the scores with another seed: `--seed {plan.seed + 1}`.")
    return steps


def _sheet(corpus: Corpus) -> list[tuple[str, Any]]:
    """Return up to six scored pictures of every modality."""
    shown: dict[str, list[Any]] = {}
    for image in corpus.images():
        pictures = shown.setdefault(image.modality or "unknown", [])
        if len(pictures) < 6:
            pictures.append(np.asarray(open_image(image.source)))
    return [(name, picture) for name in sorted(shown) for picture in shown[name]]


def _examples(corpus: Corpus, trained: Trained, scored: Scored, seed: int) -> list[Example]:
    """Return twelve answered questions, drawn by the seed alone: right and wrong as they come."""
    engine = MedMoe(trained.moe, trained.processor)
    found = []
    rng = random.Random(seed)
    for task in corpus.tasks:
        chosen = sorted(rng.sample(range(len(task.records)), min(6, len(task.records))))
        rows = [trained.rows[task.records[i].image.id] for i in chosen]
        routings = engine.route(trained.features[rows])
        for i, routing in zip(chosen, routings, strict=True):
            record, prediction = task.records[i], scored.predictions[task.name][i]
            found.append(
                Example(
                    picture=np.asarray(open_image(record.image.source)),
                    question=record.question,
                    prediction=prediction.text,
                    truth=record.answer,
                    correct=is_right(record, prediction),
                    confidence=prediction.confidence,
                    domain=routing.domain if routing else None,
                    domain_probability=routing.domain_probability if routing else None,
                )
            )
    return found
