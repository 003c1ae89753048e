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
    domains = read_config(model).domains or []
    rows: list[dict[str, Any]] = []
    found: list[Comparison] = []
    worse = False
    for task in tasks:
        paths = [side / task.spec.name / "predictions.jsonl" for side in sides]
        before, after = map(read_predictions, paths)
        for domain in (*domains, OTHER):
            own = [r for r in task.records if domain == _domain(r, domains)]
            if not own:
                continue
            wanted = {record.id for record in own}
            a, b = ([p for p in said if p.id in wanted] for said in (before, after))
            compared = compare_runs(f"{task.spec.name}, {domain}", own, [a], [b], seed)
            found.append(compared)
            worse |= domain != name and bool(losses(compared.differences))
            texts = [{p.id: p.text for p in part} for part in (a, b)]
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
    report = {
        "version": 1,
        "worse": worse,
        "seed": seed,
        "commit": commit,
        "without": identity(without),
        "with": identity(model),
        "rows": rows,
    }
    return report, found


def _domain(record: Record, domains: Sequence[str]) -> str:
    return domain_of(record.image.modality, domains) or OTHER
