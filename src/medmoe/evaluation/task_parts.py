"""What a task's answers are turned into, each part asking what further answers it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from PIL import Image

from medmoe.evaluation.ask.asker import Asker
from medmoe.evaluation.ask.controls import controlled
from medmoe.evaluation.ask.corruptions import corrupted
from medmoe.evaluation.ask.plan import EvalPlan, protocols_of
from medmoe.evaluation.ask.records import TaskRecords
from medmoe.evaluation.files.predictions import Prediction
from medmoe.evaluation.pairs.measure import pair_scores
from medmoe.evaluation.pairs.rewriting import rewritten
from medmoe.evaluation.reliability.measure import answered_by_kind, reliability
from medmoe.evaluation.reliability.robustness import robustness_row
from medmoe.evaluation.score.breakdowns import breakdowns
from medmoe.evaluation.score.rows import ScoreRow, score_task
from medmoe.model.checkpoint import provenance, read_config


def score_rows(
    plan: EvalPlan,
    task: TaskRecords,
    predictions: Sequence[Prediction],
    control: str | None = None,
) -> list[ScoreRow]:
    """Return the rows of every protocol that applies, with breakdowns where no control is named."""
    rows = score_task(
        system="moe" if read_config(plan.model).moe_layers else "dense",
        task=task.spec.name,
        split=task.split,
        records=task.records,
        predictions=predictions,
        train_records=task.train,
        seed=plan.seed,
        control=control,
        protocols=protocols_of(plan, task),
        subsets=breakdowns(task.records) if control is None else None,
    )
    scored = f"{task.spec.dataset}/{task.split}"
    shared = (provenance(plan.model).get("shared_images") or {}).get(scored)
    return [replace(row, shared_images=shared) for row in rows]


def control_rows(plan: EvalPlan, task: TaskRecords, asker: Asker) -> list[ScoreRow]:
    """Ask with each control's pictures; return the rows of all."""
    rows: list[ScoreRow] = []
    for control in plan.controls:
        records = controlled(task.records, control, plan.seed)
        path = plan.out / task.spec.name / "controls" / f"{control}.jsonl"
        found = asker.ask(f"{task.spec.name}, {control}", records, path)
        rows += score_rows(plan, task, found, control)
    return rows


def pairs_of(
    plan: EvalPlan, task: TaskRecords, predictions: Sequence[Prediction], asker: Asker
) -> list[dict[str, Any]]:
    """Ask the questions in other words; return what is found of each kind of pair."""
    found = []
    for kind in plan.pairs:
        records = rewritten(task.records, kind)
        path = plan.out / task.spec.name / "pairs" / f"{kind}.jsonl"
        name = f"{task.spec.name}, {kind}"
        answers = asker.ask(name, records, path, questions=True) if records else []
        scores = pair_scores(kind, task.records, predictions, records, answers, plan.seed)
        found.append({"task": task.spec.name, "split": task.split, "pair": kind, **scores})
    return found


def reliability_of(
    plan: EvalPlan, task: TaskRecords, predictions: Sequence[Prediction], asker: Asker
) -> dict[str, Any]:
    """Return what is said of a task's confidences, asking the calibration records if there are."""
    other = plan.calibration.get(task.spec.name)
    chosen = None
    if other is not None:
        path = plan.out / task.spec.name / "calibration.jsonl"
        found = asker.ask(f"{task.spec.name}, {other.split}", other.records, path)
        chosen = answered_by_kind(other.records, found)
    reported = answered_by_kind(task.records, predictions)
    return reliability(reported, chosen, target=plan.target_risk, seed=plan.seed)


def robustness_of(
    plan: EvalPlan, task: TaskRecords, predictions: Sequence[Prediction], asker: Asker
) -> list[dict[str, Any]]:
    """Ask about worse pictures; return the share of right answers of each, the clean ones first."""
    if not plan.corruptions:
        return []
    name, seed = task.spec.name, plan.seed
    clean = answered_by_kind(task.records, predictions)
    rows = [robustness_row(name, None, 0, kind, found, seed) for kind, found in clean.items()]
    for corruption in plan.corruptions:
        for severity in plan.severities:
            path = plan.out / name / "corruptions" / f"{corruption}-{severity}.jsonl"
            change = partial(_worse, corruption, severity, seed)
            said = asker.ask(f"{name}, {corruption} {severity}", task.records, path, change)
            rows += [
                robustness_row(name, corruption, severity, kind, found, seed)
                for kind, found in answered_by_kind(task.records, said).items()
            ]
    return rows


def _worse(corruption: str, severity: int, seed: int, key: str, image: Image.Image) -> Image.Image:
    return corrupted(image, corruption, severity, key, seed)
