"""What `medmoe demo` prints before and after: what will be done, and the report's first tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape

from medmoe.cli.parser import FOOTER
from medmoe.cli.tables import Screen
from medmoe.evaluation.pages.report_rows import OUR_PROTOCOL, results
from medmoe.evaluation.pages.sections.router import router_lines
from medmoe.experiments.demo import data_of, next_steps
from medmoe.experiments.plan import TrainPlan


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
    """Print the scores, with and without the pictures, and where everything is."""
    console, screen = Console(), Screen()
    found = results(summary["scores"])
    for table in filter(None, (found.tables[OUR_PROTOCOL], found.controls)):
        screen.table(table)
    screen.lines((*found.legend, *found.share_sentences))
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
