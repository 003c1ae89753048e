"""`medmoe demo`: trains, evaluates and shows a Med-MoE end to end.

``minutes`` picks a step plan from the recipe's table, never a clock: the same arguments do the same
work anywhere. Everything lands in one folder: model, run files, predictions, summary, report.
"""

from __future__ import annotations

import json
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medmoe.backbones.registry import vision_backbone
from medmoe.config.load import check, config_hash, recipe
from medmoe.config.schema import DemoSpec, ModelSpec, StepPlan
from medmoe.data.images import open_image
from medmoe.domains import DOMAINS
from medmoe.errors import ConfigError
from medmoe.evaluation.report import Example, ReportData, write_report
from medmoe.experiments.corpus import (
    Corpus,
    SplitName,
    phantom_corpus,
    real_corpus,
    unique_images,
)
from medmoe.experiments.pipeline import Trained, train_all
from medmoe.experiments.scoring import Scored, is_right, score_all
from medmoe.inference.engine import MedMoe
from medmoe.model.checkpoint import save_model
from medmoe.training.run_dir import git_commit, write_run
from medmoe.training.trainer import Progress


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """What a demonstration will do, settled before it starts.

    Attributes:
        source: Commit of the code, None outside a checkout, and whether it has changes: read now,
            since the checkout may move on while the run lasts.
    """

    root: Path | None
    split: SplitName
    seed: int
    minutes: int
    model: ModelSpec
    spec: DemoSpec
    steps: StepPlan
    source: tuple[str | None, bool]

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration, as written into the run directory."""
        return {
            "experiment": "demo_phantom" if self.root is None else "demo_real",
            "split": self.split,
            "minutes": self.minutes,
            "seed": self.seed,
            "model": self.model.model_dump(mode="json"),
            "spec": self.spec.model_dump(mode="json", exclude={"plans"}),
            "plan": self.steps.model_dump(mode="json"),
        }

    @property
    def config_sha256(self) -> str:
        """Hash of all that shapes the result but the seed."""
        return config_hash({key: value for key, value in self.config.items() if key != "seed"})


def plan_demo(root: Path | None, split: SplitName, minutes: int, seed: int) -> DemoPlan:
    """Settle the recipe and the step plan: the largest one that fits into ``minutes``.

    Args:
        root: Folder of the real data sets, None for the embedded phantom.

    Raises:
        ConfigError: No plan is that short, or the phantom is asked for another split.
    """
    name = "demo_phantom" if root is None else "demo_real"
    spec = check(DemoSpec, recipe("experiments", name), name)
    if root is None and split != "standard":
        raise ConfigError(f"--split {split} needs real data; add --data DIR or leave --split out")
    fitting = [length for length in spec.plans if length <= minutes]
    if not fitting:
        raise ConfigError(
            f"--minutes {minutes} is shorter than the shortest plan ({min(spec.plans)}); "
            f"plans: {', '.join(map(str, sorted(spec.plans)))}"
        )
    model = check(ModelSpec, recipe("models", spec.model), spec.model)
    steps = spec.plans[max(fitting)]
    return DemoPlan(root, split, seed, max(fitting), model, spec, steps, git_commit())


def run_demo(plan: DemoPlan, out: Path, progress: Progress) -> dict[str, Any]:
    """Train, score and write everything; return the object of ``summary.json``."""
    corpus = _corpus(plan)
    trained = train_all(corpus, plan.model, plan.spec, plan.steps, plan.seed, progress)
    # From here on the folder is the new run's: no scores of an older one beside its model.
    for name in ("summary.json", "report.html"):
        (out / name).unlink(missing_ok=True)
    start = time.perf_counter()
    scored = score_all(corpus, trained, out, plan.seed)
    trained.seconds["eval"] = time.perf_counter() - start
    summary = _summary(plan, corpus, trained, scored)
    data = {"name": corpus.name, "train_records": len(corpus.train), "notes": list(corpus.notes)}
    write_run(out, plan.config, plan.seed, plan.source, data, trained.phases)
    save_model(trained.moe, trained.processor, out / "model", _provenance(plan, corpus))
    report = _report(plan, corpus, trained, scored, summary, out)
    write_report(out / "report.html", report)
    example_pictures(corpus, out / "examples")
    _write_atomically(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


def _corpus(plan: DemoPlan) -> Corpus:
    if plan.root is None:
        size = vision_backbone(plan.model.vision_encoder).image_size
        return phantom_corpus(plan.steps, plan.seed, size)
    return real_corpus(plan.root, plan.split, plan.spec, plan.seed)


def _summary(plan: DemoPlan, corpus: Corpus, trained: Trained, scored: Scored) -> dict[str, Any]:
    total = sum(p.numel() for p in trained.moe.parameters())
    return {
        "version": 1,
        "seed": plan.seed,
        "data": corpus.name,
        "commit": plan.source[0],
        "config_sha256": plan.config_sha256,
        "seconds": {name: round(value, 1) for name, value in trained.seconds.items()},
        "parameters": {"total": total, "activated": activated_parameters(trained.moe)},
        "router": scored.router,
        "model": "model/",
        "scores": [row.to_dict() for row in scored.rows],
    }


def activated_parameters(model: Any) -> int:
    """Return how many weights one token passes: all but the experts that are not chosen."""
    total = sum(p.numel() for p in model.parameters())
    for block in model.moe_blocks.values():
        stacked = sum(p.numel() for p in block.experts.parameters())
        experts = block.experts.num_experts
        total -= stacked * (experts - block.gate.top_k) // experts
    return int(total)


def _provenance(plan: DemoPlan, corpus: Corpus) -> dict[str, Any]:
    return {
        "data": corpus.name,
        "notes": list(corpus.notes),
        "seed": plan.seed,
        "commit": plan.source[0],
        "dirty": plan.source[1],
        "config_sha256": plan.config_sha256,
        "use": "Research use only, not a medical device.",
    }


def _report(
    plan: DemoPlan,
    corpus: Corpus,
    trained: Trained,
    scored: Scored,
    summary: dict[str, Any],
    out: Path,
) -> ReportData:
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
        steps.append("Score the image-disjoint split: `medmoe demo --data DIR --split disjoint`.")
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


def _write_atomically(path: Path, text: str) -> None:
    staging = path.with_name(f".{path.name}.staging")
    staging.write_text(text, encoding="utf-8")
    os.replace(staging, path)
