"""What an evaluation asks of which model, and what a resumed run must have in common.

That is kept beside the answers (``settings.json``), so that nothing else joins them: model, tasks,
records, seed and batches. Protocols and controls are not part of it: they may be added later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmoe.data.schema import Record
from medmoe.errors import ConfigError, one_of
from medmoe.evaluation.ask.corruptions import SEVERITIES
from medmoe.evaluation.ask.records import TaskRecords, by_letter
from medmoe.evaluation.protocols import ALL_PROTOCOLS, LABEL_SCORE, LETTER, PROTOCOLS, REPORT
from medmoe.files import json_object, write_json
from medmoe.inference.engine import LONG_ANSWER, SHORT_ANSWER
from medmoe.model.checkpoint import identity, provenance

SETTINGS = "settings.json"
#: A task's folder of what the blind twin answers.
TWIN = "blind_twin"


@dataclass(frozen=True, slots=True)
class Other:
    """A system that is no model of ours; ``begin`` gives an `OtherModel` or an `Endpoint`."""

    name: str
    identity: str
    begin: Callable[[], Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EvalPlan:
    """What is asked and how it is scored.

    Attributes:
        model: Model folder, verified.
        out: Folder to write to; it exists.
        protocols: Names of `ALL_PROTOCOLS`; controls, corruptions and pairs are names of
            `CONTROLS`, `CORRUPTIONS` and `PAIRS`.
        severities: At which each corruption is asked, from 1 to 5.
        calibration: Task name → other records of it, on which temperature and threshold are
            chosen; empty for none.
        target_risk: Of `choose_threshold`.
        dtype: Of the weights, None for the one they were saved in.
        max_new_tokens: Longest answer, None by `longest_answer`.
        commit: Of the code, None outside a checkout.
        twin: Folder of the blind twin, verified; None where there is none.
        other: What is asked instead of the model, whose folder or name then stands in files only.
    """

    model: Path
    out: Path
    tasks: Sequence[TaskRecords]
    protocols: Sequence[str] = ALL_PROTOCOLS
    controls: Sequence[str] = ()
    corruptions: Sequence[str] = ()
    severities: Sequence[int] = SEVERITIES
    pairs: Sequence[str] = ()
    calibration: Mapping[str, TaskRecords] = field(default_factory=dict)
    target_risk: float = 0.1
    seed: int = 7
    batch_size: int = 64
    max_new_tokens: int | None = None
    dtype: str | None = None
    commit: str | None = None
    twin: Path | None = None
    other: Other | None = None


def longest_answer(plan: EvalPlan, records: Sequence[Record]) -> int:
    """Return the longest answer in tokens: the plan's, else by what is asked.

    A caption, or an answer of a model whose training does not name the set, is as long as it likes.
    """
    if plan.max_new_tokens is not None:
        return plan.max_new_tokens
    if plan.other is not None:
        return LONG_ANSWER
    trained = str(provenance(plan.model).get("data") or "")
    sets = {name.partition("/")[0] for name in trained.split(", ")}
    if any(r.task == "caption" or (trained and r.dataset not in sets) for r in records):
        return LONG_ANSWER
    return SHORT_ANSWER


#: The protocols of each kind of task, the others are scored by label; the first is the headline.
_OF_KIND: Mapping[str, Sequence[str]] = {
    "vqa": ("strict", *(n for n in PROTOCOLS if n not in ("strict", LETTER, REPORT))),
    "multiple_choice": (LABEL_SCORE, LETTER),
    "letters": (LETTER,),
    "report": (REPORT,),
}


def check_names(names: Sequence[str], known: Sequence[str], what: str) -> tuple[str, ...]:
    """Return names once each, ``all`` as all of them.

    Raises:
        ConfigError: A name is unknown; the nearest is named.
    """
    for name in names:
        if name != "all" and name not in known:
            raise ConfigError(one_of(name, [*known, "all"], what))
    return tuple(known) if "all" in names else tuple(dict.fromkeys(names))


def protocols_of(plan: EvalPlan, task: TaskRecords) -> list[str]:
    """Return the protocols of the plan that apply to a task.

    Raises:
        ConfigError: None of them does.
    """
    known = _OF_KIND.get(task.spec.kind, (LABEL_SCORE,))
    if plan.other is not None:
        known = [name for name in known if name != LABEL_SCORE]
        if not known:
            raise ConfigError(
                f"task {task.spec.name!r} is scored by likelihoods, for which only models of ours "
                f"are asked; leave it out for {plan.other.name}"
            )
    fitting = [name for name in plan.protocols if name in known]
    if not fitting:
        raise ConfigError(
            f"task {task.spec.name!r} ({task.spec.kind}) is not scored under "
            f"{', '.join(plan.protocols)}; add --protocol {known[0]}"
        )
    return fitting


def parts_of(plan: EvalPlan) -> list[TaskRecords]:
    """Return the plan's tasks, a multiple-choice one for each of its protocols: each asks anew.

    Raises:
        ConfigError: None of the plan's protocols applies to a task.
    """
    parts = []
    for task in plan.tasks:
        protocols = protocols_of(plan, task)
        if LETTER not in protocols or LABEL_SCORE in protocols:
            parts.append(task)
        if LETTER in protocols:
            parts.append(by_letter(task))
    return parts


def hold_settings(plan: EvalPlan) -> dict[str, Any]:
    """Write the settings of a new run, or check that those in its folder are the same.

    Returns:
        What a resumed run must have in common, as it stands in the file: the model as its hash. One
        number for the longest answers is that run's, where the plan names none.

    Raises:
        ConfigError: The folder holds other files, or a run with other settings; one is named.
    """
    wanted, out = _settings_of(plan), plan.out
    path = out / SETTINGS
    if path.is_file() and any(out.rglob("*.jsonl")):  # a start that answered nothing binds nobody
        return _same(path, wanted, any_length=plan.max_new_tokens is None)
    others = sorted(
        file.name
        for file in out.iterdir()
        if not file.name.startswith(".") and file.name != SETTINGS and not _holds_twin_only(file)
    )
    if others:
        raise ConfigError(
            f"{out} holds no evaluation but other files ({others[0]}); give another --out"
        )
    write_json(path, wanted)
    return wanted


def _holds_twin_only(path: Path) -> bool:
    """Whether a task's folder holds no answers but the blind twin's, the same beside all models."""
    return path.is_dir() and [entry.name for entry in path.iterdir()] == [TWIN]


def _settings_of(plan: EvalPlan) -> dict[str, Any]:
    tasks = {
        task.spec.name: {"split": task.split, "limit": task.limit, "records": task.sha256()}
        for task in plan.tasks
    }
    calibration = {
        name: {"split": task.split, "records": task.sha256()}
        for name, task in sorted(plan.calibration.items())
    }
    return {
        "version": 1,
        **({"calibration": calibration} if calibration else {}),
        "seed": plan.seed,
        "batch_size": plan.batch_size,
        "max_new_tokens": plan.max_new_tokens
        or {task.spec.name: longest_answer(plan, task.records) for task in plan.tasks},
        **({"dtype": plan.dtype} if plan.dtype else {}),
        "tasks": tasks,
        "model": identity(plan.model) if plan.other is None else plan.other.identity,
    }


def _same(path: Path, wanted: dict[str, Any], *, any_length: bool) -> dict[str, Any]:
    known = json_object(path)
    if known is None:
        raise ConfigError(f"{path} is not readable as JSON; give another --out")
    if any_length and isinstance(known.get("max_new_tokens"), int):
        wanted["max_new_tokens"] = known["max_new_tokens"]
    for key, value in wanted.items():
        if known.get(key) != value:
            raise ConfigError(
                f"{path.parent} holds another run (its {key}: {_shown(key, known.get(key))}; now: "
                f"{_shown(key, value)}); give another --out, or that run's flags to resume it"
            )
    return wanted


def _shown(key: str, value: object) -> str:
    if key == "model":
        return str(value)[:12]
    if key == "tasks" and isinstance(value, dict):
        return ", ".join(
            f"{name} {task.get('split')} limit {task.get('limit') or 'none'} "
            f"records {str(task.get('records'))[:8]}"
            for name, task in value.items()
        )
    return str(value)
