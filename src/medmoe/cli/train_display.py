"""What `medmoe train` shows: a live view in a terminal, plain lines elsewhere, and the plan."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from medmoe.cli.console import log_to
from medmoe.cli.parser import FOOTER
from medmoe.cli.tables import Screen
from medmoe.config.phases import PHASE_TABLE
from medmoe.config.schema import PhaseName
from medmoe.evaluation.pages.sections.router import router_lines
from medmoe.experiments.outlook import Outlook
from medmoe.experiments.plan import TrainPlan
from medmoe.numbers import duration
from medmoe.training.meter import Measured, Validated

_BAR = "▏▎▍▌▋▊▉█"


class Display(ExitStack):
    """Terminal output of one training run; as a context it shows the log, and the live view."""

    def __init__(self, plan: TrainPlan, console: Console | None = None) -> None:
        super().__init__()
        self._plan = plan
        self._console = console or Console()
        self._steps: dict[PhaseName, tuple[int, int]] = {}
        self._points: dict[PhaseName, Measured] = {}
        self._validated: dict[PhaseName, Validated] = {}
        self._outlook: Outlook | None = None
        self._now: PhaseName | None = None
        self._begun = time.monotonic()

    def opening(self) -> None:
        """Print what will be trained, on what, and where it goes."""
        plan = self._plan
        sets = dict.fromkeys(n for p in plan.phases for n in plan.recipe.spec.phases[p].data)
        where = ", ".join(sets) + (f" in {plan.root}" if plan.root else "")
        self._console.print(
            f"[bold]medmoe train {escape(plan.recipe.name)}[/]: "
            f"{escape(plan.recipe.spec.description)}"
        )
        lines = [f"data: {where}   seed: {plan.seed}   out: {plan.out}"]
        starts = dict.fromkeys(plan.recipe.spec.starts.values())
        lines += [f"goes on with {path}: {', '.join(plan.phases)}" for path in starts]
        for line in lines:
            self._say(line)

    def _say(self, line: str) -> None:
        """Print a line as it is, whole."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> Display:
        self.enter_context(log_to(self._console))
        if self._console.is_terminal:
            view = Live(
                console=self._console,
                get_renderable=self.view,
                refresh_per_second=4,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self.enter_context(view)
        return self

    def progress(self, phase: PhaseName, step: int, steps: int, loss: float | None) -> None:
        """Take note of a step."""
        self._now = phase
        self._steps[phase] = (step, steps)
        if self._outlook is not None:
            self._outlook.note(phase, step)

    def measured(self, point: Outlook | Measured | Validated) -> None:
        """Take note of a point of the run's course; outside a terminal print ten a phase."""
        if isinstance(point, Outlook):
            self._outlook = point
            return
        if isinstance(point, Validated):
            self._validated[point.phase] = point
            if not self._console.is_terminal:
                what = "  ".join(filter(None, validation(point)))
                self._say(f"{point.phase} {point.step}/{point.steps}  {what}")
            return
        self._points[point.phase] = point
        if self._console.is_terminal:
            return
        told = filter(None, (facts(point), self._whole()))
        tenth = max(1, point.steps // 10)
        if point.step % tenth == 0 or point.step == point.steps:
            self._say(f"{point.phase} {point.step}/{point.steps}  {'; '.join(told)}")
        if point.step == point.steps:
            for domain, shares in point.experts.items():
                named = zip(self._plan.recipe.spec.model.domains, shares, strict=True)
                text = ", ".join(f"{name} {100 * share:.0f} %" for name, share in named)
                self._say(f"  {domain} tokens go to the experts: {text}")

    def view(self) -> RenderableType:
        """Return the live view: phases, speeds, and who takes which tokens."""
        parts: list[RenderableType] = [self._phases()]
        point = self._points.get(self._now) if self._now else None
        if point is not None:
            parts += [Text(facts(point)), Text(self._whole())]
            if point.experts:
                parts.append(experts_table(point, self._plan.recipe.spec.model.domains))
        return Group(*parts)

    def closing(self, summary: dict[str, Any]) -> None:
        """Print how each phase ended, where the model is, and what to do with it."""
        for phase, found in summary["phases"].items():
            loss = f"loss {found['loss']:.4f}" if found.get("loss") is not None else "no steps"
            kept = f"{loss} after {found.get('steps', 0)} steps"
            if found.get("kept_step") is not None:
                kept += f", the weights of step {found['kept_step']} kept"
            if measured := found.get("validation"):
                score = measured["strict_score"]
                kept += f"; validation loss {measured['loss']:.4f}"
                kept += "" if score is None else f", strict score {score:.1f} %"
            self._say(f"{phase}: {kept}, {self._plan.out / phase}")
        for line in router_lines(summary["router"]):
            self._say(line)
        for row in summary["phases"].get("phase2_router", {}).get("label_curve", []):
            line = "  {labels:>5} labels: {accuracy:.1f} % [{low:.1f}, {high:.1f}] of {n}"
            self._console.print(line.format_map(row), highlight=False)
        minutes = (time.monotonic() - self._begun) / 60
        model = self._plan.out / summary["model"]
        self._console.print(f"done in {minutes:.1f} minutes; model: {model}", soft_wrap=True)
        if PHASE_TABLE[self._plan.phases[-1]].answers:
            self._say(f'ask it: medmoe ask {model} IMAGE "QUESTION"')
        self._console.print(FOOTER)

    def _phases(self) -> Table:
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        for phase in self._plan.phases:
            step, steps = self._steps.get(phase, (0, 0))
            point = self._points.get(phase)
            style = "bold" if phase == self._now and step < steps else "dim" if not steps else ""
            table.add_row(
                Text(phase, style=style),
                ProgressBar(total=max(1, steps), completed=step, width=12),
                f"{step}/{steps}" if steps else "waiting",
                f"loss {point.loss:.3f}" if point else "",
                *(validation(self._validated[phase]) if phase in self._validated else ("", "")),
            )
        if self._outlook is not None:
            share = self._outlook.share()
            table.add_row("whole run", ProgressBar(total=1.0, completed=share, width=12))
        return table

    def _whole(self) -> str:
        """Return how far the whole run is."""
        left = self._outlook.seconds_left() if self._outlook is not None else None
        if self._outlook is None or left is None:
            return ""
        return f"whole run {100 * self._outlook.share():.0f} %, about {duration(left)} left"


def facts(point: Measured) -> str:
    """Return one line: loss, learning rate, speeds, memory, remaining time."""
    speeds = [f"{point.images_per_second:,.1f} images/s"] if point.images_per_second else []
    if point.tokens_per_second:
        speeds.insert(0, f"{point.tokens_per_second:,.0f} tokens/s")
    left = time.strftime("%H:%M:%S", time.gmtime(point.seconds_left))
    before = [f"loss {point.loss:.3f}", f"lr {point.learning_rate:.2e}"]
    return "  ".join([*before, *speeds, f"{point.memory_gib:.2f} GiB", f"{left} left"])


def validation(point: Validated) -> tuple[str, str]:
    """Return a validation's loss and its strict score, in words."""
    score = "" if point.strict_score is None else f"{point.strict_score:.0f} % right"
    return f"validation {point.validation_loss:.3f}", score


def experts_table(point: Measured, domains: tuple[str, ...]) -> Table:
    """Return the share of each domain's tokens by expert, as bars."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="tokens by expert", title_style="dim")
    table.add_column("pictures of")
    for name in domains:
        table.add_column(f"{name} expert")
    for domain, shares in point.experts.items():
        table.add_row(domain, *(f"{bar(share)} {100 * share:3.0f} %" for share in shares))
    return table


def bar(share: float, width: int = 6) -> str:
    """Return a bar of at most ``width`` characters, padded."""
    eighths = round(share * width * 8)
    whole, part = divmod(eighths, 8)
    return ("█" * whole + (_BAR[part - 1] if part else "")).ljust(width)


def show_plan(name: str, plan: dict[str, Any]) -> None:
    """Print the plan of `medmoe train --plan`."""
    console = Console()
    console.print(f"[bold]medmoe train {escape(name)} --plan[/]: {escape(plan['description'])}")
    rows = [
        (
            phase,
            f"{row['trainable']:,}",
            f"{row['frozen']:,}",
            f"{row['steps']:,}" if row["steps"] else "?",
            f"{row['memory_gib']:,.1f} GiB",
            duration(row["seconds"]),
        )
        for phase, row in plan["phases"].items()
    ]
    times = [row["seconds"] for row in plan["phases"].values()]
    whole = None if None in times else sum(times)
    rows.append(("all", "", "", "", "", duration(whole)))
    Screen().draw("", ("phase", "trainable", "frozen", "steps", "memory", "time"), rows)
    for phase, row in plan["phases"].items():
        kept = f"checkpoints, model and features take {row['disk_gib']:,.2f} GiB of the disk"
        trains = ", ".join(row["trains"])
        console.print(f"  {phase} trains {trains}; {kept}", highlight=False, soft_wrap=True)
    for line in plan["notes"]:
        console.print(f"  - {line}", highlight=False, markup=False)
    console.print(FOOTER)
