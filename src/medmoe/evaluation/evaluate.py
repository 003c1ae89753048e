"""`medmoe eval` without its printing: asks a model every question of some tasks and scores them.

The folder holds ``settings.json`` (what is asked of which model: a resumed run must be the same),
``<task>/predictions.jsonl`` (of multiple choice also ``<task>_letters``), beside it those of the
blind twin (``blind_twin``), the answers to other pictures (``controls``, ``corruptions``), in other
words (``pairs``) and to the calibration split, ``summary.json`` and ``report.html``. Answers that
stand there are not asked again, so a finished run is scored anew without loading the model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from medmoe.config.load import config_hash
from medmoe.evaluation.ask.asker import Asker, Progress
from medmoe.evaluation.ask.controls import controlled
from medmoe.evaluation.ask.corruptions import corrupted
from medmoe.evaluation.ask.plan import (
    TWIN,
    EvalPlan,
    hold_settings,
    longest_answer,
    parts_of,
    protocols_of,
)
from medmoe.evaluation.ask.records import TaskRecords
from medmoe.evaluation.files.predictions import Prediction, pair
from medmoe.evaluation.pages.report import write_report
from medmoe.evaluation.pages.run_report import report_of_run
from medmoe.evaluation.pairs.measure import pair_scores, unasked
from medmoe.evaluation.pairs.rewriting import rewritten
from medmoe.evaluation.reliability.measure import answered_by_kind, reliability, robustness_row
from medmoe.evaluation.routes.router_score import RoutedPicture, router_score
from medmoe.evaluation.score.breakdowns import breakdowns
from medmoe.evaluation.score.rows import ScoreRow, score_task
from medmoe.files import json_object, write_json
from medmoe.model.checkpoint import identity, provenance, read_config
from medmoe.processes import from_main, is_main


def questions_of(plan: EvalPlan) -> int:
    """Return how many questions are asked in all, of controls, pairs and the blind twin too.

    Raises:
        ConfigError: A task has no protocol.
    """
    times = 1 + (plan.twin is not None) + len(plan.controls)
    times += len(plan.corruptions) * len(plan.severities)
    parts = parts_of(plan)
    other = [len(rewritten(task.records, kind)) for task in parts for kind in plan.pairs]
    other += [len(task.records) for task in plan.calibration.values()]
    return times * sum(len(task.records) for task in parts) + sum(other)


def evaluate(plan: EvalPlan, progress: Progress) -> dict[str, Any]:
    """Ask, score and write everything; return the object of ``summary.json``.

    Raises:
        ConfigError: The folder holds another run, or a task has no protocol.
        DataError: A picture or an answer file cannot be used.
    """
    parts = parts_of(plan)
    settings = from_main(partial(hold_settings, plan))
    if isinstance(settings["max_new_tokens"], int):
        plan = replace(plan, max_new_tokens=settings["max_new_tokens"])
    asker = Asker(plan, progress)
    twin = Asker(replace(plan, model=plan.twin), progress) if plan.twin else None
    start = time.perf_counter()
    rows: list[ScoreRow] = []
    trusted: dict[str, Any] = {}
    worse: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    routed: dict[str, RoutedPicture] = {}
    given: dict[str, Sequence[Prediction]] = {}
    for task in parts:
        path = plan.out / task.spec.name / "predictions.jsonl"
        predictions = asker.ask(task.spec.name, task.records, path)
        routed |= _routed(task, predictions)
        given[task.spec.name] = predictions
        blind = _blind_answers(plan, task, twin)
        rows += _score_rows(plan, task, predictions, twin=blind)
        if plan.other is None or all(p.confidence is not None for p in predictions):
            trusted[task.spec.name] = _reliability_of(plan, task, predictions, asker)
        worse += _robustness_of(plan, task, predictions, asker)
        pairs += _pairs_of(plan, task, predictions, asker)
        rows += _control_rows(plan, task, asker)
    seconds = round(time.perf_counter() - start, 1)
    domains = read_config(plan.model).domains or () if routed else ()
    router = router_score(list(routed.values()), domains) if routed else None
    circumstances = _circumstances(plan, asker, router)
    summary = {
        "seconds": {"eval": seconds},
        **circumstances,
        "config_sha256": config_hash(settings),
        "reliability": trusted,
        **({"corruptions": worse} if worse else {}),
        **({"pairs": pairs} if pairs else {}),
        "cut_answers": {name: sum(p.cut for p in said) for name, said in given.items()},
        "failed_answers": {
            name: sum(p.failed is not None for p in said) for name, said in given.items()
        },
        "notes": [*circumstances["notes"], *_ends(plan, given), *unasked(pairs)],
        "scores": rows,
    }
    if not is_main():
        return summary
    write_json(plan.out / "summary.json", summary)
    asked = [record for task in plan.tasks for record in task.records]
    write_report(plan.out / "report.html", report_of_run(plan.out, records=asked))
    return summary


def _blind_answers(
    plan: EvalPlan, task: TaskRecords, twin: Asker | None
) -> list[Prediction] | None:
    """Return what the blind twin answers; the file is named by the twin, which may be another."""
    if twin is None or plan.twin is None:
        return None
    path = plan.out / task.spec.name / TWIN / f"{identity(plan.twin)[:12]}.jsonl"
    return twin.ask(f"{task.spec.name}, blind twin", task.records, path)


def _system(plan: EvalPlan) -> str:
    """Return what the scores call what is asked."""
    if plan.other is not None:
        return plan.other.name
    model = plan.model
    if provenance(model).get("blind"):
        return "blind_twin"
    if read_config(model).moe_layers:
        return "moe"
    return "sft" if provenance(model).get("phase") == "sft" else "dense"


def _score_rows(
    plan: EvalPlan,
    task: TaskRecords,
    predictions: Sequence[Prediction],
    control: str | None = None,
    twin: Sequence[Prediction] | None = None,
) -> list[ScoreRow]:
    """Return the rows of every protocol that applies, with breakdowns where no control is named."""
    rows = score_task(
        system=_system(plan),
        task=task.spec.name.removesuffix("_letters"),
        split=task.split,
        records=task.records,
        predictions=predictions,
        train_records=task.train,
        seed=plan.seed,
        control=control,
        twin=twin,
        protocols=protocols_of(plan, task),
        subsets=breakdowns(task.records) if control is None else None,
    )
    scored = f"{task.spec.dataset}/{task.split}"
    shared = (provenance(plan.model).get("shared_images") or {}).get(scored)
    return rows if shared is None else [row | {"shared_images": shared} for row in rows]


def _control_rows(plan: EvalPlan, task: TaskRecords, asker: Asker) -> list[ScoreRow]:
    """Ask with each control's pictures; return the rows of all."""
    rows: list[ScoreRow] = []
    for control in plan.controls:
        records = controlled(task.records, control, plan.seed)
        path = plan.out / task.spec.name / "controls" / f"{control}.jsonl"
        predictions = asker.ask(f"{task.spec.name}, {control}", records, path)
        rows += _score_rows(plan, task, predictions, control)
    return rows


def _pairs_of(
    plan: EvalPlan, task: TaskRecords, predictions: Sequence[Prediction], asker: Asker
) -> list[dict[str, Any]]:
    """Ask the questions in other words; return what is found of each kind of pair."""
    entries = []
    for kind in plan.pairs:
        records = rewritten(task.records, kind)
        path = plan.out / task.spec.name / "pairs" / f"{kind}.jsonl"
        name = f"{task.spec.name}, {kind}"
        answers = asker.ask(name, records, path, questions=True) if records else []
        scores = pair_scores(kind, task.records, predictions, records, answers, plan.seed)
        entries.append({"task": task.spec.name, "split": task.split, "pair": kind, **scores})
    return entries


def _reliability_of(
    plan: EvalPlan, task: TaskRecords, predictions: Sequence[Prediction], asker: Asker
) -> dict[str, Any]:
    """Return what is said of a task's confidences, asking the calibration records if there are."""
    if task.spec.kind == "report":  # none is right as a whole
        return {}
    other = plan.calibration.get(task.spec.name)
    chosen = None
    if other is not None:
        path = plan.out / task.spec.name / "calibration.jsonl"
        others = asker.ask(f"{task.spec.name}, {other.split}", other.records, path)
        chosen = answered_by_kind(other.records, others)
    reported = answered_by_kind(task.records, predictions)
    return reliability(reported, chosen, target=plan.target_risk, seed=plan.seed)


def _robustness_of(
    plan: EvalPlan, task: TaskRecords, predictions: Sequence[Prediction], asker: Asker
) -> list[dict[str, Any]]:
    """Ask about worse pictures; return the share of right answers of each, the clean ones first."""
    if not plan.corruptions:
        return []
    name, seed = task.spec.name, plan.seed
    clean = answered_by_kind(task.records, predictions)
    rows = [robustness_row(name, None, 0, kind, answered, seed) for kind, answered in clean.items()]
    for corruption in plan.corruptions:
        for severity in plan.severities:
            path = plan.out / name / "corruptions" / f"{corruption}-{severity}.jsonl"
            change = partial(_worse, corruption, severity, seed)
            said = asker.ask(f"{name}, {corruption} {severity}", task.records, path, change)
            rows += [
                robustness_row(name, corruption, severity, kind, answered, seed)
                for kind, answered in answered_by_kind(task.records, said).items()
            ]
    return rows


def _worse(corruption: str, severity: int, seed: int, key: str, image: Image.Image) -> Image.Image:
    return corrupted(image, corruption, severity, key, seed)


def _circumstances(
    plan: EvalPlan, asker: Asker, router: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return what a summary says of the run besides its scores."""
    shared = provenance(plan.model).get("shared_images") or {}
    return {
        "version": 1,
        "seed": plan.seed,
        "data": ", ".join(dict.fromkeys(task.spec.dataset for task in plan.tasks)),
        "commit": plan.commit,
        **(_counted(plan.out, asker) if plan.other is None else {}),
        "router": router,
        "model": str(plan.model),
        "asked": asker.asked,
        "notes": [
            *(plan.other.notes if plan.other else ()),
            *(note for task in plan.tasks for note in task.notes),
            *_leaks(shared),
        ],
        **({"shared_images": shared} if shared else {}),
    }


def _ends(plan: EvalPlan, given: Mapping[str, Sequence[Prediction]]) -> Iterator[str]:
    """Yield what is said of answers that the longest answer ended, and of those that failed."""
    for task in parts_of(plan):
        said, who = given[task.spec.name], f"{task.spec.name}, {_system(plan)}"
        if cut := sum(prediction.cut for prediction in said):
            longest = f"{longest_answer(plan, task.records)} tokens (`eval --max-new-tokens`)"
            yield f"{who}: {cut:,} of {len(said):,} answers were cut at {longest}."
        if failed := [prediction.failed for prediction in said if prediction.failed]:
            yield f"{who}: {len(failed):,} of {len(said):,} answers failed, e.g.: {failed[0]}."


def _leaks(shared: Mapping[str, int]) -> list[str]:
    """Return what the model says of scored pictures that it was trained on."""
    return [
        f"The model was trained on at least {count:,} pictures that nearly equal pictures of "
        f"{name} (allowed by name): its scores there are no scores on unseen pictures."
        for name, count in shared.items()
    ]


def _routed(task: TaskRecords, predictions: Sequence[Prediction]) -> dict[str, RoutedPicture]:
    """Return by image what the router made of the images that name a modality."""
    return {
        image.id: RoutedPicture.of(image, routing["domain"], routing.get("out_of_domain"))
        for record, said in pair(task.records, predictions)
        if said.routing
        for image, routing in zip(
            record.images, (said.routing, *said.routing.get("further", ())), strict=True
        )
        if image.modality
    }


def _counted(out: Path, asker: Asker) -> dict[str, Any]:
    """Return the weights in all and activated: counted, or as an earlier start counted them.

    Where nothing was asked, that start's seconds too: to score its answers again is another thing.
    """
    if asker.asked == 0:
        old = json_object(out / "summary.json") or {}
        if {"parameters", "seconds"} <= old.keys():
            return {"parameters": old["parameters"], "seconds": old["seconds"]}
    return {"parameters": asker.engine.parameters()}
