"""The report's part on confidence: reliability diagrams, risk–coverage curves, their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from medmoe.evaluation.pages.report import Figure, Section
from medmoe.evaluation.pages.table import Table
from medmoe.evaluation.reliability.calibration import LEAST_T, MOST_T
from medmoe.numbers import NONE, count, fixed, percent, with_interval
from medmoe.routing.figure_style import BLUE, GREY, ORANGE, panel, to_svg

_WORDS = (
    "A confidence is the probability that the model gave to exactly the answer it gave; of a "
    "classification, the share of the chosen label. It is calibrated where an answer of 80 % is "
    "right 80 % of the time. The expected calibration error (ECE) is the mean distance between "
    "the two. One temperature, fitted on other records, can mend the scale, not the order."
)
_GUARANTEE = (
    "Abstention: the threshold is chosen on the calibration split by conformal risk control, so "
    "that of a new image's questions at most the target share is answered wrongly, in "
    "expectation, where new images are of the same kind."
)

#: Fewer answers in a bin say too little to be drawn like the others.
_FEW = 10
_LEAST_RISK_SHOWN = 5.0  # percent


def reliability_section(summary: Mapping[str, Any]) -> Section | None:
    """Return the part of the report, None where a run has nothing to say.

    Args:
        summary: The object of ``summary.json``; its ``reliability`` by task and kind of answer.
    """
    by_task: Mapping[str, Mapping[str, Any]] = summary.get("reliability") or {}
    kinds = [(task, kind, entry) for task, of in by_task.items() for kind, entry in of.items()]
    if not kinds:
        return None
    tables = [table for task, of in by_task.items() for table in reliability_tables(task, of)]
    figures = [_diagram(*kind) for kind in kinds]
    figures += [_curve(*kind) for kind in kinds]
    chosen = any("abstention" in entry for _, _, entry in kinds)
    words = (_WORDS, _GUARANTEE) if chosen else (_WORDS,)
    return Section("reliability", "Can its confidence be trusted?", words, tables, figures)


def reliability_tables(task: str, by_kind: Mapping[str, Mapping[str, Any]]) -> Iterator[Table]:
    """Yield calibration, and abstention where a threshold was chosen, of one task's answers.

    Args:
        by_kind: Kind of answer → what `reliability` says of it.
    """
    yield Table(_COLUMNS, [_row(*kind) for kind in by_kind.items()], f"Calibration: {task}")
    rows = [_abstained(*kind) for kind in by_kind.items() if "abstention" in kind[1]]
    if rows:
        yield Table(_GIVEN, rows, f"Abstention: {task}")


_COLUMNS = (
    "Answers", "n", "Right", "Confidence", "ECE", "Brier", "AURC", "T", "ECE at T", "Brier at T"
)  # fmt: skip
_GIVEN = ("Answers", "Target", "Images chosen on", "Threshold", "Answered",
          "Wrong of an image", "Wrong of the answers")  # fmt: skip


def _row(kind: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    before, after = entry["before"], entry.get("after", {})
    ece = (
        100 * before[k] if before[k] is not None else None for k in ("ece", "ece_low", "ece_high")
    )
    return (
        kind, count(entry["n"]), _share(entry["accuracy"]), _share(entry["mean_confidence"]),
        with_interval(*ece), fixed(before["brier"], 3),
        fixed(100 * entry["curve"]["area"], 2),  # small areas differ in hundredths of a percent
        _temperature(entry.get("temperature")),
        _share(after.get("ece")), fixed(after.get("brier"), 3),
    )  # fmt: skip


def _abstained(kind: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    given = entry["abstention"]
    head = (kind, _share(given["target"]), count(given["images"]))
    if given["threshold"] is None:
        return (*head, "cannot be reached", *3 * (NONE,))
    return (
        *head, fixed(min(given["threshold"], 1.0), 3), _share(given["coverage"]),
        _share(given["wrong"]), _share(given["risk"]),
    )  # fmt: skip


def _diagram(task: str, kind: str, entry: Mapping[str, Any]) -> Figure:
    with panel(3.1, nrows=2, height_ratios=(3, 1), sharex=True) as (figure, (upper, lower)):
        upper.plot([0, 100], [0, 100], ":", color=GREY)
        for key, colour, marker in (("before", BLUE, "o"), ("after", ORANGE, "s")):
            if key not in entry:
                continue
            parts = entry[key]["bins"]
            label = "as given" if key == "before" else f"at T {_temperature(entry['temperature'])}"
            upper.plot(
                [100 * p["confidence"] for p in parts], [100 * p["accuracy"] for p in parts],
                color=colour, linewidth=1, zorder=1,
            )  # fmt: skip
            for part in parts:
                fill = "white" if part["n"] < _FEW else colour
                upper.plot(
                    100 * part["confidence"], 100 * part["accuracy"], marker=marker, color=colour,
                    markerfacecolor=fill, markersize=5, linestyle="none", clip_on=False, zorder=3,
                )  # fmt: skip
            upper.plot([], [], marker=marker, color=colour, label=label, markersize=5, linewidth=1)
        upper.set(ylabel="% right", xlim=(0, 100), ylim=(0, 100))
        upper.legend()
        parts = entry["before"]["bins"]
        lower.bar(
            [100 * part["low"] for part in parts], [part["n"] for part in parts],
            width=[100 * (p["high"] - p["low"]) for p in parts], align="edge", color=BLUE,
            edgecolor="white",
        )  # fmt: skip
        lower.set(xlabel="confidence, %", ylabel="answers")
        svg = to_svg(figure, f"Reliability diagram of {task}, {kind} answers")
    caption = (
        f"{task}, {kind}: share right by confidence, hollow where fewer than {_FEW} answers stand "
        "behind it; the dotted line is perfect calibration."
    )
    return Figure(caption, svg)


def _curve(task: str, kind: str, entry: Mapping[str, Any]) -> Figure:
    with panel(2.6) as (figure, axes):
        curve = entry["curve"]
        answered, wrong = ([100 * share for share in curve[k]] for k in ("coverage", "risk"))
        axes.step(answered, wrong, where="post", color=BLUE)
        given = entry.get("abstention", {})
        if given.get("risk") is not None:
            axes.plot(
                [100 * given["coverage"]], [100 * given["risk"]], "s", color=ORANGE,
                label="threshold", clip_on=False, zorder=3,
            )  # fmt: skip
            axes.legend()
        # A scale of tenths of a percent would make one wrong answer look like a cliff.
        top = max(_LEAST_RISK_SHOWN, 1.05 * max(wrong))
        axes.set(xlabel="% answered", ylabel="% of these wrong", xlim=(0, 100), ylim=(0, top))
        svg = to_svg(figure, f"Risk–coverage curve of {task}, {kind} answers")
    caption = f"{task}, {kind}: share of wrong answers when only the most confident are given."
    return Figure(caption, svg)


def _temperature(value: float | None) -> str:
    """Return a temperature; one at the end of what is tried was not found inside."""
    if value is None:
        return NONE
    if value > 0.99 * MOST_T:
        return f"≥\u00a0{MOST_T:g}"
    return f"≤\u00a0{LEAST_T:g}" if value < 1.01 * LEAST_T else f"{value:.2f}"


def _share(value: float | None) -> str:
    return percent(None if value is None else 100 * value)
