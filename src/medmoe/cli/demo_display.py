"""What `medmoe demo` shows in the terminal: the plan, a bar per phase, the result table."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from medmoe.cli.console import log_to
from medmoe.config.schema import PHASES, PhaseName
from medmoe.evaluation.pages.report_rows import interval, place, results
from medmoe.experiments.demo_plan import DemoPlan
from medmoe.numbers import percent

#: Protocol, subset and metric of what the result table shows.
HEADLINES = {
    ("strict", "closed", "accuracy"),
    ("strict", "open", "exact_match"),
    ("label_score", "all", "accuracy"),
    ("label_score", "all", "auc"),
}
BASELINES = ("constant_baseline", "question_only_baseline")


class Display:
    """Terminal output of one demonstration."""

    def __init__(self, plan: DemoPlan) -> None:
        self._plan = plan
        self._console = Console()
        self._bars = Progress(
            TextColumn("{task.description:<20}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:>5.0f}/{task.total:.0f} steps"),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._tasks: dict[PhaseName, TaskID] = {}
        self._log = log_to(self._console)

    def opening(self) -> None:
        """Print what will be done, on which data, and how long it should take."""
        plan = self._plan
        where = "the embedded phantom" if plan.root is None else str(plan.root)
        split = "" if plan.root is None else f", {plan.split} split"
        self._console.print(f"[bold]medmoe demo[/] on {escape(where)}{split}, seed {plan.seed}")
        self._console.print(
            f"Step plan for {plan.minutes} minutes on two cores; the steps are fixed, the time is "
            "an estimate:"
        )
        steps = ", ".join(f"{phase} {plan.steps.steps[phase]}" for phase in PHASES)
        self._console.print(f"  {steps}", highlight=False)

    def __enter__(self) -> Display:
        self._log.__enter__()
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()
        self._log.__exit__(kind, error, trace)

    def progress(self, phase: PhaseName, step: int, steps: int, loss: float | None) -> None:
        """Move a phase's bar."""
        if not self._console.is_terminal:
            # A log file gets one line per tenth of a phase instead of a bar.
            if loss is not None and step % max(1, steps // 10) == 0:
                self._console.print(f"{phase} {step}/{steps} loss {loss:.3f}", highlight=False)
            return
        if phase not in self._tasks:
            self._tasks[phase] = self._bars.add_task(phase, total=steps, loss="")
        self._bars.update(self._tasks[phase], completed=step)
        if loss is not None:
            self._bars.update(self._tasks[phase], loss=f"loss {loss:.3f}")

    def closing(
        self, summary: dict[str, Any], out: Path, seconds: float, next_steps: list[str]
    ) -> None:
        """Print the result table and where everything is."""
        width = self._console.width if self._console.is_terminal else 120
        self._console.print(result_table(summary), width=width)
        self._console.print(
            f"parameters: {summary['parameters']['total']:,} in all, "
            f"{summary['parameters']['activated']:,} activated per token"
        )
        for name, router in summary["router"]["by_dataset"].items():
            self._console.print(
                f"router on {name}: {router['accuracy']:.1f} % "
                f"[{router['low']:.1f}, {router['high']:.1f}] of {router['n']} images"
            )
        for line in plain_words(summary):
            self._console.print(f"  - {line}", highlight=False, markup=False)
        limit = 60 * self._plan.minutes
        late = f", over the plan's {self._plan.minutes} minutes" if seconds > limit else ""
        self._console.print(f"done in {seconds / 60:.1f} minutes{late}")
        paths = f"report: {out / 'report.html'}   model: {out / 'model'}"
        self._console.print(paths, highlight=False, markup=False, soft_wrap=True)
        for line in next_steps:
            self._console.print(f"  - {line.replace('`', '')}", highlight=False, markup=False)
        self._console.print("Research use only, not a medical device.")


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
    for name in ("MoE", "SFT", "blank\nimage", "const-\nant", "quest.\nonly", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for key, found in _headline_rows(summary).items():
        task, split, subset, metric = key
        moe, sft, blank = (found.get(name) for name in ("moe", "sft", "blank"))
        table.add_row(
            _what(task, split, subset, metric),
            *(f"{percent(row['value'])}\n{interval(row)}" if row else "" for row in (moe, sft)),
            percent(blank["value"]) if blank else "",
            *(percent(moe[name]) if moe else "" for name in BASELINES),
            str(moe["n"]) if moe else "",
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
