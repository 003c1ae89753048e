"""What an evaluation asks and how it scores it, checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medmoe.errors import ConfigError, one_of
from medmoe.evaluation.ask.corruptions import SEVERITIES
from medmoe.evaluation.ask.records import TaskRecords
from medmoe.evaluation.protocols import ALL_PROTOCOLS, LABEL_SCORE


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
        commit: Of the code, None outside a checkout.
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


def protocols_of(plan: EvalPlan, task: TaskRecords) -> list[str]:
    """Return the protocols that apply to a task's answers in words; none for its labels.

    Raises:
        ConfigError: None of the plan's applies to the task.
    """
    if task.spec.kind == "vqa":
        fitting = [name for name in plan.protocols if name != LABEL_SCORE]
    else:
        fitting = [name for name in plan.protocols if name == LABEL_SCORE]
    if not fitting:
        raise ConfigError(
            f"task {task.spec.name!r} ({task.spec.kind}) is not scored under "
            f"{', '.join(plan.protocols)}; add --protocol "
            f"{'strict' if task.spec.kind == 'vqa' else LABEL_SCORE}"
        )
    return [name for name in fitting if name != LABEL_SCORE]
