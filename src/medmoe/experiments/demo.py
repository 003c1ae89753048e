"""`medmoe demo`: trains, evaluates and shows a Med-MoE end to end.

Everything lands in one folder: model, run files, predictions, summary, report.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from medmoe.backbones.registry import language_backbone, vision_backbone
from medmoe.backbones.spec import LanguageBackbone, VisionBackbone
from medmoe.config.schema import PHASES
from medmoe.evaluation.pages.cards import CARDS, write_cards
from medmoe.evaluation.pages.report import write_report
from medmoe.experiments.demo_corpus import Corpus, phantom_corpus
from medmoe.experiments.demo_plan import DemoPlan
from medmoe.experiments.demo_report import example_pictures, report_data
from medmoe.experiments.pipeline import Trained, train_all
from medmoe.experiments.real_corpus import real_corpus
from medmoe.experiments.scoring import Scored, score_all
from medmoe.files import write_json
from medmoe.model.checkpoint import check_replaceable, save_model
from medmoe.model.cost import activated_parameters
from medmoe.training.context import Progress
from medmoe.training.saving.run_dir import write_run


def run_demo(plan: DemoPlan, out: Path, progress: Progress) -> dict[str, Any]:
    """Train, score and write everything; return the object of ``summary.json``."""
    check_replaceable(out / "model")  # before an hour of training, not after it
    corpus = _corpus(plan)
    trained = train_all(corpus, plan.model, plan.spec, plan.steps, plan.seed, progress)
    # From here on the folder is the new run's: no scores of an older one beside its model.
    for name in ("summary.json", "report.html", *CARDS):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / "predictions", ignore_errors=True)
    start = time.perf_counter()
    scored = score_all(corpus, trained, out, plan.seed)
    trained.seconds["eval"] = time.perf_counter() - start
    summary = _summary(plan, corpus, trained, scored)
    data = {"name": corpus.name, "sha256": corpus.hashes(), "notes": list(corpus.notes)}
    write_run(out, plan.config, plan.seed, plan.source, data, trained.phases)
    save_model(trained.moe, trained.processor, out / "model", _provenance(plan, corpus))
    report = report_data(plan, corpus, trained, scored, summary, out)
    write_report(out / "report.html", report)
    example_pictures(corpus, out / "examples")
    write_json(out / "summary.json", summary)
    write_cards(out)
    return summary


def _corpus(plan: DemoPlan) -> Corpus:
    if plan.root is None:
        size = vision_backbone(plan.model.vision_encoder).image_size
        return phantom_corpus(plan.steps, plan.split, plan.seed, size)
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
        "comparisons": scored.comparisons,
        "notes": list(corpus.notes),
        "scores": [row.to_dict() for row in scored.rows],
    }


def _provenance(plan: DemoPlan, corpus: Corpus) -> dict[str, Any]:
    backbones: dict[str, LanguageBackbone | VisionBackbone] = {
        "language_model": language_backbone(plan.model.language_model),
        "vision_encoder": vision_backbone(plan.model.vision_encoder),
    }
    return {
        "base_model": {
            part: {"name": found.name, "hub_id": found.hub_id, "revision": found.revision}
            for part, found in backbones.items()
        },
        "phases": {name: plan.steps.steps[name] for name in PHASES if name != "sft"},
        "data": corpus.name,
        "licences": {record.dataset: record.licence for record in corpus.train},
        "notes": list(corpus.notes),
        "seed": plan.seed,
        "commit": plan.source[0],
        "dirty": plan.source[1],
        "config_sha256": plan.config_sha256,
        "use": "Research use only, not a medical device.",
    }
