"""`medmoe eval` without its printing: asks a model every question of some tasks and scores them.

The folder holds ``settings.json`` (what is asked of which model: a resumed run must be the same),
``<task>/predictions.jsonl``, ``<task>/controls/<control>.jsonl``, ``summary.json`` and
``report.html``. Answers that stand there are not asked again, so a finished run is scored anew
without loading the model.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from PIL import Image

from medmoe.data.images import open_record
from medmoe.data.schema import Record
from medmoe.errors import ConfigError, one_of
from medmoe.evaluation.asking.answer_file import BATCHES, AnswerFile, chunks_of
from medmoe.evaluation.asking.controls import controlled
from medmoe.evaluation.asking.corruptions import SEVERITIES, corrupted
from medmoe.evaluation.asking.settings import hold_settings, settings_sha256
from medmoe.evaluation.asking.task_records import TaskRecords
from medmoe.evaluation.files.json_lines import read_rows
from medmoe.evaluation.files.predictions import Prediction, read_predictions
from medmoe.evaluation.pages.report import write_report
from medmoe.evaluation.pages.run_report import report_of_run
from medmoe.evaluation.reliability.measure import answered_by_kind, reliability
from medmoe.evaluation.reliability.robustness import robustness_row
from medmoe.evaluation.runner import predict
from medmoe.evaluation.scoring.breakdowns import breakdowns
from medmoe.evaluation.scoring.score_row import ScoreRow
from medmoe.evaluation.scoring.scores import score_task
from medmoe.evaluation.scoring.side_by_side import ALL_PROTOCOLS, LABEL_SCORE
from medmoe.evaluation.statistics import wilson
from medmoe.inference.engine import MedMoe
from medmoe.model.checkpoint import provenance, read_config
from medmoe.model.cost.parameters import activated_parameters, total_parameters

Progress = Callable[[str, int, int], None]  # what is asked, questions done, questions in all


@dataclass(frozen=True, slots=True)
class EvalPlan:
    """What is asked and how it is scored.

    Attributes:
        model: Model folder, verified.
        out: Folder to write to.
        root: Folder of the data sets, for the report's examples.
        protocols: Names of `ALL_PROTOCOLS`.
        controls: Names of `CONTROLS`.
        corruptions: Names of `CORRUPTIONS`, and the severities that each is asked at.
        severities: From 1 to 5.
        calibration: Task name → other records of it, on which temperature and threshold are
            chosen; empty for none.
        target_risk: Of `choose_threshold`.
        commit: Of the code, None outside a checkout.
    """

    model: Path
    out: Path
    tasks: Sequence[TaskRecords]
    root: Path | None = None
    protocols: Sequence[str] = ALL_PROTOCOLS
    controls: Sequence[str] = ()
    corruptions: Sequence[str] = ()
    severities: Sequence[int] = SEVERITIES
    calibration: Mapping[str, TaskRecords] = field(default_factory=dict)
    target_risk: float = 0.1
    seed: int = 7
    batch_size: int = 64
    max_new_tokens: int = 24
    commit: str | None = None


def check_names(names: Sequence[str], known: Sequence[str], what: str) -> tuple[str, ...]:
    """Return names once each, ``all`` as all of them.

    Raises:
        ConfigError: A name is unknown; the nearest is named.
    """
    for name in names:
        if name != "all" and name not in known:
            raise ConfigError(one_of(name, [*known, "all"], what))
    return tuple(known) if "all" in names else tuple(dict.fromkeys(names))


def evaluate(plan: EvalPlan, progress: Progress) -> dict[str, Any]:
    """Ask, score and write everything; return the object of ``summary.json``.

    Raises:
        ConfigError: The folder holds another run, or a task has no protocol.
        DataError: A picture or an answer file cannot be used.
    """
    for task in plan.tasks:
        _protocols(plan, task)
    settings = hold_settings(plan.out, _settings(plan))
    asking = _Asking(plan, progress)
    shared = provenance(plan.model).get("shared_images") or {}
    start = time.perf_counter()
    rows: list[ScoreRow] = []
    trusted: dict[str, Any] = {}
    worse: list[dict[str, Any]] = []
    for task in plan.tasks:
        path = plan.out / task.spec.name / "predictions.jsonl"
        predictions = asking.ask(task.spec.name, task.records, path)
        rows += _scores(plan, task, predictions)
        trusted[task.spec.name] = _reliability(plan, task, predictions, asking)
        worse += _robustness(plan, task, predictions, asking)
        for control in plan.controls:
            records = controlled(task.records, control, plan.seed)
            path = plan.out / task.spec.name / "controls" / f"{control}.jsonl"
            found = asking.ask(f"{task.spec.name}, {control}", records, path)
            rows += _scores(plan, task, found, control)
    summary = {
        "version": 1,
        "seed": plan.seed,
        "data": ", ".join(dict.fromkeys(task.spec.dataset for task in plan.tasks)),
        "commit": plan.commit,
        "config_sha256": settings_sha256(settings),
        "seconds": {"eval": round(time.perf_counter() - start, 1)},
        **_kept_parameters(plan.out, asking),
        "router": _router(plan),
        "model": str(plan.model),
        "asked": asking.asked,
        "notes": [note for task in plan.tasks for note in task.notes] + _leaks(shared),
        **({"shared_images": shared} if shared else {}),
        "reliability": trusted,
        **({"corruptions": worse} if worse else {}),
        "scores": [row.to_dict() for row in rows],
    }
    _write(plan.out / "summary.json", summary)
    write_report(plan.out / "report.html", report_of_run(plan.out, root=plan.root))
    return summary


class _Asking:
    """Asks what is not answered yet; the model is loaded when the first question is asked."""

    def __init__(self, plan: EvalPlan, progress: Progress) -> None:
        self._plan = plan
        self._progress = progress
        self.asked = 0

    @cached_property
    def engine(self) -> MedMoe:
        plan = self._plan
        return MedMoe.load(
            plan.model, batch_size=plan.batch_size, max_new_tokens=plan.max_new_tokens
        )

    def ask(
        self,
        name: str,
        records: Sequence[Record],
        path: Path,
        change: Callable[[str, Image.Image], Image.Image] | None = None,
    ) -> list[Prediction]:
        """Return the predictions in a file once every record is answered there.

        Args:
            change: Makes another picture of an image's id and picture.
        """
        chunks = chunks_of(records, BATCHES * self._plan.batch_size)
        file = AnswerFile(path, chunks)
        whole = file.resume()
        done = sum(len(chunk) for chunk in chunks[:whole])
        for chunk in chunks[whole:]:
            self._progress(name, done, len(records))
            file.append(chunk, ask_chunk(self.engine, chunk, change))
            done += len(chunk)
            self.asked += len(chunk)
        self._progress(name, done, len(records))
        return read_predictions(path)


def ask_chunk(
    engine: MedMoe,
    records: Sequence[Record],
    change: Callable[[str, Image.Image], Image.Image] | None = None,
) -> list[Prediction]:
    """Answer records, each image encoded once for all its questions.

    Raises:
        ImageError: A picture cannot be used; the record is named.
    """
    images = list({record.image.id: record.image for record in records}.values())
    pictures = [open_record(image) for image in images]
    if change is not None:
        pictures = [change(i.id, picture) for i, picture in zip(images, pictures, strict=True)]
    features = engine.encode(pictures)
    return predict(engine, records, features, {image.id: i for i, image in enumerate(images)})


def _settings(plan: EvalPlan) -> dict[str, Any]:
    tasks = {
        task.spec.name: {"split": task.split, "limit": task.limit, "records": task.sha256()}
        for task in plan.tasks
    }
    calibration = {
        name: {"split": task.split, "records": task.sha256()}
        for name, task in sorted(plan.calibration.items())
    }
    return {
        **({"calibration": calibration} if calibration else {}),
        "seed": plan.seed,
        "batch_size": plan.batch_size,
        "max_new_tokens": plan.max_new_tokens,
        "tasks": tasks,
        "model": plan.model,
    }


def _protocols(plan: EvalPlan, task: TaskRecords) -> list[str]:
    """Return the protocols that apply to a task's answers in words; none for its labels."""
    if task.spec.kind == "vqa":
        found = [name for name in plan.protocols if name != LABEL_SCORE]
    else:
        found = [name for name in plan.protocols if name == LABEL_SCORE]
    if not found:
        raise ConfigError(
            f"task {task.spec.name!r} ({task.spec.kind}) is not scored under "
            f"{', '.join(plan.protocols)}; add --protocol "
            f"{'strict' if task.spec.kind == 'vqa' else LABEL_SCORE}"
        )
    return [name for name in found if name != LABEL_SCORE]


def _scores(
    plan: EvalPlan,
    task: TaskRecords,
    predictions: Sequence[Prediction],
    control: str | None = None,
) -> list[ScoreRow]:
    rows = score_task(
        system="moe" if read_config(plan.model).moe_layers else "dense",
        task=task.spec.name,
        split=task.split,
        records=task.records,
        predictions=predictions,
        train_records=task.train,
        seed=plan.seed,
        control=control,
        protocols=_protocols(plan, task),
        subsets=breakdowns(task.records) if control is None else None,
    )
    scored = f"{task.spec.dataset}/{task.split}"
    shared = (provenance(plan.model).get("shared_images") or {}).get(scored)
    return [replace(row, shared_images=shared) for row in rows]


def _leaks(shared: Mapping[str, int]) -> list[str]:
    """Return what the model says of scored pictures that it was trained on."""
    return [
        f"The model was trained on at least {count:,} pictures that nearly equal pictures of "
        f"{name} (allowed by name): its scores there are no scores on unseen pictures."
        for name, count in shared.items()
    ]


def _reliability(
    plan: EvalPlan, task: TaskRecords, predictions: Sequence[Prediction], asking: _Asking
) -> dict[str, Any]:
    """Return what is said of a task's confidences, asking the calibration records if there are."""
    other = plan.calibration.get(task.spec.name)
    chosen = None
    if other is not None:
        path = plan.out / task.spec.name / "calibration.jsonl"
        found = asking.ask(f"{task.spec.name}, {other.split}", other.records, path)
        chosen = answered_by_kind(other.records, found)
    reported = answered_by_kind(task.records, predictions)
    return reliability(reported, chosen, target=plan.target_risk, seed=plan.seed)


def _robustness(
    plan: EvalPlan, task: TaskRecords, predictions: Sequence[Prediction], asking: _Asking
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
            said = asking.ask(f"{name}, {corruption} {severity}", task.records, path, change)
            rows += [
                robustness_row(name, corruption, severity, kind, found, seed)
                for kind, found in answered_by_kind(task.records, said).items()
            ]
    return rows


def _worse(corruption: str, severity: int, seed: int, key: str, image: Image.Image) -> Image.Image:
    return corrupted(image, corruption, severity, key, seed)


def check_apart(task: TaskRecords, calibration: TaskRecords) -> None:
    """Refuse to choose on what is reported.

    Raises:
        ConfigError: The split is the same, or pictures stand in both.
    """
    if calibration.split == task.split:
        raise ConfigError(
            f"task {task.spec.name!r} is reported on {task.split!r}; --calibrate needs another "
            "split, e.g. validation"
        )
    shared = {r.image.id for r in task.records} & {r.image.id for r in calibration.records}
    if shared:
        raise ConfigError(
            f"task {task.spec.name!r}: {len(shared)} images of {task.split!r} stand in "
            f"{calibration.split!r} too, e.g. {min(shared)!r}; --calibrate needs a split apart"
        )


def _router(plan: EvalPlan) -> dict[str, Any] | None:
    """Return the router's accuracy over the images of known domain; None where there are none."""
    domains = read_config(plan.model).domains or ()
    true = {
        record.image.id: record.image.modality
        for task in plan.tasks
        for record in task.records
        if record.image.modality in domains
    }
    said: dict[str, str] = {}
    for task in plan.tasks:
        for _, row in read_rows(plan.out / task.spec.name / "predictions.jsonl", "predictions"):
            if row.get("routing") and row.get("image") in true:
                said[row["image"]] = row["routing"]["domain"]
    if not said:
        return None
    right = sum(true[image] == domain for image, domain in said.items())
    low, high = wilson(right, len(said))
    return {
        "accuracy": 100 * right / len(said),
        "low": 100 * low,
        "high": 100 * high,
        "n": len(said),
    }


def _kept_parameters(out: Path, asking: _Asking) -> dict[str, Any]:
    """Return the weights in all and activated: counted, or as an earlier start counted them."""
    if asking.asked == 0:
        try:
            old = json.loads((out / "summary.json").read_text(encoding="utf-8"))
            return {"parameters": old["parameters"]}
        except (OSError, ValueError, KeyError):
            pass
    model = asking.engine.model
    return {
        "parameters": {"total": total_parameters(model), "activated": activated_parameters(model)}
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    staged = path.with_name(f".{path.name}.staging")
    staged.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(staged, path)
