"""What `medmoe demo` prints before and after: what will be done, and the result table."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medmoe.cli.parser import FOOTER
from medmoe.evaluation.pages.report_rows import interval, place, results, share_cell
from medmoe.evaluation.pages.sections.router import router_lines
from medmoe.experiments.demo import data_of, next_steps
from medmoe.experiments.plan import TrainPlan
from medmoe.numbers import percent

#: Protocol, subset and metric of what the result table shows.
HEADLINES = {
    ("strict", "closed", "accuracy"),
    ("strict", "open", "exact_match"),
    ("label_score", "all", "accuracy"),
    ("label_score", "all", "auc"),
}
BASELINES = ("constant_baseline", "question_only_baseline")


def opening(plan: TrainPlan) -> None:
    """Print what will be done, on which data, and how long it should take."""
    console = Console()
    where = f" in {plan.root}" if plan.root else ""
    console.print(f"[bold]medmoe demo[/] on {escape(data_of(plan) + where)}, seed {plan.seed}")
    console.print(
        f"Preset for {plan.recipe.minutes} minutes on two cores; the steps are fixed, the time is "
        "an estimate:"
    )
    steps = ", ".join(f"{phase} {plan.recipe.spec.phases[phase].steps}" for phase in plan.phases)
    console.print(f"  {steps}", highlight=False)


def closing(plan: TrainPlan, summary: dict[str, Any], seconds: float) -> None:
    """Print the result table and where everything is."""
    console = Console()
    width = console.width if console.is_terminal else 120
    console.print(result_table(summary), width=width)
    console.print(
        f"parameters: {summary['parameters']['total']:,} in all, "
        f"{summary['parameters']['activated']:,} activated per token"
    )
    for line in router_lines(summary["router"]):
        console.print(line, highlight=False, markup=False)
    for line in plain_words(summary):
        console.print(f"  - {line}", highlight=False, markup=False)
    minutes = plan.recipe.minutes or 0
    late = f", over the preset's {minutes} minutes" if seconds > 60 * minutes else ""
    console.print(f"done in {seconds / 60:.1f} minutes{late}")
    paths = f"report: {plan.out / 'report.html'}   model: {plan.out / 'model'}"
    console.print(paths, highlight=False, markup=False, soft_wrap=True)
    for line in next_steps(plan):
        console.print(f"  - {line.replace('`', '')}", highlight=False, markup=False)
    console.print(FOOTER)


def plain_words(summary: dict[str, Any]) -> list[str]:
    """Return what must be known beside the scores: the data's notes and what shows nothing."""
    failing = [score.name for score in results(summary["scores"]).headlines if score.fails]
    lines = [str(note) for note in summary["notes"]]
    if failing:
        lines.append(
            "Not above the baselines outside the interval, so no sign that pictures were used: "
            + "; ".join(failing)
        )
    return lines


def result_table(summary: dict[str, Any]) -> Table:
    """Return the headline scores: both systems with intervals, the control, the baselines, n."""
    table = Table(
        title="percent right: closed by accuracy, open by exact match; 95 % intervals",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("score", no_wrap=True)
    rows = _headline_rows(summary)
    twin = any(row.get("share") for found in rows.values() for row in found.values())
    # A twin says more than the baselines; for all of it the terminal is too narrow.
    blind = ("blind\ntwin", "picture's\nshare") if twin else ("const-\nant", "quest.\nonly")
    for name in ("MoE", "SFT", "blank\nimage", *blind, "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for key, found in rows.items():
        task, split, subset, metric = key
        moe, sft, blank = found["moe"], found.get("sft"), found.get("blank")
        without_pictures = [percent(moe[name]) for name in BASELINES]
        if twin:
            share = share_cell(moe).replace(" (", "\n").rstrip(")")
            without_pictures = [percent(moe["blind_twin"]), share]
        table.add_row(
            escape(_what(task, split, subset, metric)),
            f"{percent(moe['value'])}\n{interval(moe)}",
            f"{percent(sft['value'])}\n{'' if twin else interval(sft)}" if sft else "",
            percent(blank["value"]) if blank else "",
            *without_pictures,
            str(moe["n"]),
        )
    return table


def _what(task: str, split: str, subset: str, metric: str) -> str:
    """Return the two lines that name a score."""
    first = place(task, split).removesuffix(f" {split}")
    return f"{first}\n  {split}, {metric if subset == 'all' else subset}"


def _headline_rows(summary: dict[str, Any]) -> dict[tuple[str, ...], dict[str, dict[str, Any]]]:
    """Return the rows of each headline score by system, or by control where there is one."""
    found: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for row in summary["scores"]:
        told = (row["protocol"], row["subset"], row["metric"]) in HEADLINES
        if told and (row["control"] is None or row["system"] == "moe"):
            key = (row["task"], row["split"], row["subset"], row["metric"])
            found.setdefault(key, {})[row["control"] or row["system"]] = row
    return found
