"""The regression gate of one expert: what a model answers without it and with it, domain by domain.

Old domains must not be worse: no interval of with − without, paired and clustered on pictures, may
lie below zero in a deciding row (as ``compare --fail-if-worse``). The new domain is only reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medmoe.data.schema import Record
from medmoe.domains import domain_of
from medmoe.evaluation.ask.asker import Progress
from medmoe.evaluation.ask.plan import EvalPlan
from medmoe.evaluation.ask.records import TaskRecords
from medmoe.evaluation.compare import Comparison, compare_runs
from medmoe.evaluation.evaluate import evaluate
from medmoe.evaluation.files.predictions import read_predictions
from medmoe.evaluation.pages.compare_page import losses
from medmoe.model.checkpoint import identity, read_config

#: What a picture is called that names no modality of the model's.
OTHER = "other"


def gate(
    without: Path,
    model: Path,
    name: str,
    tasks: Sequence[TaskRecords],
    out: Path,
    seed: int,
    commit: str | None,
    progress: Progress,
) -> tuple[dict[str, Any], list[Comparison]]:
    """Ask a model with and without an expert; return the report of a pack, and the comparisons.

    Args:
        without: Folder of the model without it.
        name: The expert's.
        out: Folder of the answers.

    Raises:
        DataError: A picture cannot be used.
    """
    sides = []
    for part, folder in (("without", without), ("with", model)):
        (out / part).mkdir(parents=True)
        plan = EvalPlan(folder, out / part, tasks, seed=seed, commit=commit)
        evaluate(plan, lambda task, *done, part=part: progress(f"{task}, {part} {name}", *done))
        sides.append(out / part)
    rows: list[dict[str, Any]] = []
    found: list[Comparison] = []
    for task in tasks:
        paths = [side / task.spec.name / "predictions.jsonl" for side in sides]
        for domain, own in _by_domain(task, read_config(model).domains or []).items():
            wanted = {record.id for record in own}
            a, b = ([p for p in read_predictions(path) if p.id in wanted] for path in paths)
            compared = compare_runs(f"{task.spec.name}, {domain}", own, [a], [b], seed)
            found.append(compared)
            texts = [{p.id: p.text for p in said} for said in (a, b)]
            rows.append(
                {
                    "task": task.spec.name,
                    "split": task.split,
                    "records_sha256": task.sha256(),
                    "domain": domain,
                    "new": domain == name,
                    "n": len(own),
                    "images": len({record.image.id for record in own}),
                    "same_answers": sum(texts[0][key] == texts[1][key] for key in texts[0]),
                    "differences": [row.to_dict() for row in compared.differences],
                }
            )
    both = zip(rows, found, strict=True)
    report = {
        "version": 1,
        "worse": any(losses(one.differences) for row, one in both if not row["new"]),
        "seed": seed,
        "commit": commit,
        "without": identity(without),
        "with": identity(model),
        "rows": rows,
    }
    return report, found


def _by_domain(task: TaskRecords, domains: Sequence[str]) -> dict[str, list[Record]]:
    """Return a task's records by the domain of their picture, in the experts' order."""
    found: dict[str, list[Record]] = {domain: [] for domain in (*domains, OTHER)}
    for record in task.records:
        found[domain_of(record.image.modality, domains) or OTHER].append(record)
    return {domain: records for domain, records in found.items() if records}
