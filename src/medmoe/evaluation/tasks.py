"""What can be evaluated by name, and what the paper reports on it.

A task names the data set, split and kind of its records, and the paper's name for it; the records
come from `medmoe.data`. ``recipes/paper.csv`` holds the published figures of the paper's tables 1,
3 and 9 (4 to 6: only the range of the differences is known to us; 2, 7 and 10: no figure is).
Their protocol is the released scorer's; table 3 does not say how an answer becomes a label.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Literal

from medmoe.data import registry
from medmoe.data.readers import medmnist
from medmoe.errors import ConfigError, DataError, one_of

Kind = Literal["vqa", "multiple_choice", "letters", "report", "classification", "multi_label"]


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task.

    Attributes:
        dataset: Name of the data set; ``phantom`` is the embedded one.
        split: The split that is scored.
        train_split: Where the baselines' answers come from; None where the set is for testing only.
        kind: ``vqa`` (answers in words), ``multiple_choice`` (options of its own in each question,
            scored by their likelihood and, as ``letters``, by letter), ``report`` (one is written),
            ``classification`` (one of the options) or ``multi_label`` (each label present or not).
        reader: Of a set given by its path; None where its name says it all.
        paper_name: The paper's name of the same records, None where it reports nothing on them.
    """

    name: str
    dataset: str
    split: str = "test"
    train_split: str | None = "train"
    kind: Kind = "vqa"
    paper_name: str | None = None
    reader: registry.Reader | None = None


@dataclass(frozen=True, slots=True)
class PaperRow:
    """One published figure, in percent (a difference: in points)."""

    system: str
    subset: str
    metric: str
    protocol: str
    value: float
    table: int

    @property
    def our_protocol(self) -> str:
        """The protocol of ours that comes nearest: an unstated one by label is `label_score`."""
        return "label_score" if self.protocol == "unstated" else self.protocol


#: The paper's names of MedMNIST's sets that it reports on.
_PAPER_MEDMNIST = {"pneumoniamnist": "PneumoniaMNIST", "organcmnist": "OrganCMNIST"}
#: Those whose images have several labels at once.
_MULTI_LABEL = ("chestmnist",)
#: Every task by its name.
TASKS: Mapping[str, TaskSpec] = {
    task.name: task
    for task in (
        TaskSpec("phantom_vqa", "phantom"),
        TaskSpec("phantom_classification", "phantom", kind="classification"),
        TaskSpec("vqa_rad", "vqa_rad", paper_name="VQA-RAD"),
        # Another test set than the paper's: nothing published is comparable.
        TaskSpec("vqa_rad_disjoint", "vqa_rad", "disjoint_test", "disjoint_train"),
        # The hub's copy: other training rows, and closed is what yes or no answers.
        TaskSpec("vqa_rad_hub", "vqa_rad_hub"),
        TaskSpec("slake", "slake", paper_name="SLAKE"),
        TaskSpec("slake_zh", "slake_zh"),
        TaskSpec("path_vqa", "path_vqa", paper_name="PathVQA"),
        TaskSpec("vqa_med_2019", "vqa_med_2019", split="validation"),
        TaskSpec("pmc_vqa", "pmc_vqa", kind="multiple_choice"),
        TaskSpec("omnimed_vqa", "omnimed_vqa", train_split=None, kind="multiple_choice"),
        TaskSpec("mmmu_med", "mmmu_med", "validation", kind="multiple_choice"),
        TaskSpec("medxpertqa_mm", "medxpertqa_mm", kind="multiple_choice"),
        TaskSpec("iu_xray", "iu_xray", kind="report"),
        *(
            TaskSpec(
                name,
                name,
                kind="multi_label" if name in _MULTI_LABEL else "classification",
                paper_name=_PAPER_MEDMNIST.get(name),
            )
            for name in medmnist.SETS
        ),
    )
}


def task_spec(name: str, *, allow_outside: bool = False) -> TaskSpec:
    """Return a task by its name, or that of a set by its path or its name and split.

    Args:
        name: ``vqa_rad``, ``vqa_rad/train``, ``clinic/data.csv``, ``clinic/data.csv:validation``.
        allow_outside: A user's own table may name pictures outside its folder.

    Raises:
        ConfigError: There is none of this name; the nearest is named.
        DataError: There is nothing at this path, or no set.
    """
    if name in TASKS:
        return TASKS[name]
    try:
        reader, split = registry.parse_set(name, allow_outside=allow_outside)
    except DataError:
        if set(name) & set("/\\."):
            raise
        reason = f"{one_of(name, TASKS, 'task')}; or give the path of your own data"
        raise ConfigError(reason) from None
    known = reader.NAME in registry.READERS
    if known and reader.SOURCE == registry.READERS[reader.NAME].SOURCE:
        spec = TASKS.get(reader.NAME, TaskSpec(reader.NAME, reader.NAME))
    elif known or reader.NAME in TASKS:
        raise ConfigError(f"{name}: {reader.NAME} is the name of a known task; rename your own")
    else:
        spec = TaskSpec(reader.NAME, reader.NAME)
    return replace(spec, split=split or spec.split, reader=reader)


def paper_rows(task: str) -> list[PaperRow]:
    """Return the published figures on a task's records; none where the paper reports nothing.

    Raises:
        ConfigError: There is no task of this name.
    """
    name = task_spec(task).paper_name
    return [row for where, row in paper_figures() if where == name]


@cache
def paper_figures() -> tuple[tuple[str, PaperRow], ...]:
    """Return all published figures, each with the paper's name of the set."""
    text = resources.files("medmoe.recipes").joinpath("paper.csv").read_text(encoding="utf-8")
    return tuple(
        (
            row.pop("task"),
            PaperRow(value=float(row.pop("value")), table=int(row.pop("table")), **row),
        )
        for row in csv.DictReader(text.splitlines())
    )
