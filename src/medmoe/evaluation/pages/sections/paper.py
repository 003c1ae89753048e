"""The report's part on the paper: what it gives on the scored tasks, beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medmoe.evaluation.pages.report import Section
from medmoe.evaluation.pages.report_rows import lead_system, system_name, value_cell
from medmoe.evaluation.pages.table import Table
from medmoe.evaluation.tasks import TASKS, paper_rows
from medmoe.numbers import NONE, count, fixed


def paper_section(scores: Sequence[Mapping[str, Any]]) -> Section | None:
    """Return what the paper reports on the scored tasks, beside ours; None where it does not.

    Only rows of the same subset, protocol and metric stand side by side, on the split that the
    paper reports.

    Args:
        scores: The score rows of ``summary.json``.
    """
    lead = lead_system(scores)
    ours = {
        tuple(row[key] for key in ("task", "subset", "protocol", "metric")): row
        for row in scores
        if row["system"] == lead and row.get("control") is None
    }
    rows = []
    for task in dict.fromkeys(str(row["task"]) for row in scores):
        for row in paper_rows(task) if task in TASKS else ():
            own = ours.get((task, row.subset, row.our_protocol, row.metric), {})
            rows.append(
                (
                    task,
                    f"{row.subset} {row.metric}",
                    row.protocol,
                    f"{row.system} (table {row.table})",
                    fixed(row.value, 2),
                    value_cell(own),
                    count(own["n"]) if own else NONE,
                )
            )
    if not rows:
        return None
    columns = ("Task", "Score", "Protocol", "Paper", "its value", system_name(lead), "n")
    text = (
        "The paper gives values without intervals or n. It trained models of billions of weights "
        "on more data; its rows say what the method reached there, not what this run should."
    )
    return Section(
        "paper",
        "The paper’s figures",
        (text,),
        (Table(columns, rows, "The paper, without interval or n", 4, by_first=True),),
    )
