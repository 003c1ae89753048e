"""What `medmoe score` prints: one table of all protocols, one by question type, in 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from medmoe.cli.reliability_tables import reliability_tables
from medmoe.cli.tables import plain_table, width_of
from medmoe.evaluation.pages.report_rows import interval, percent
from medmoe.evaluation.pages.score_report import MAIN_SUBSETS, shown

#: Constant answers by their name in the JSON: as the table has room for, and as sentences say it.
_CONSTANTS = {
    "always_yes": ("yes", "yes"),
    "always_no": ("no", "no"),
    "most_frequent_per_type": ("frequent", "most frequent"),
}
_LEGEND = (
    "constant: the best answer that needs no picture: yes, no or the most frequent of its question "
    "type (frequent)"
)


def show(result: Mapping[str, Any], *, named: bool = False) -> None:
    """Print everything that `score` found in one file.

    Args:
        named: Begin with the file's name: there are several.
    """
    console = Console()
    width = width_of(console)
    if named:
        console.print(f"== {result['predictions']}", highlight=False, markup=False)
    console.print(_protocols(result), width=width)
    if any(name not in MAIN_SUBSETS for name in result["protocols"].get("strict", {})):
        console.print(_subsets(result), width=width)
    if result["paper"]:
        console.print(_paper(result), width=width)
    if "reliability" in result:
        for table in reliability_tables(result["predictions"], result["reliability"]):
            console.print(table, width=width)
    for line in (_LEGEND, *_blind_sentences(result), *result["notes"]):
        console.print(f"  - {line}", highlight=False, markup=False, soft_wrap=True)


def _protocols(result: Mapping[str, Any]) -> Table:
    title = f"{result['n']} records, {result['images']} images; percent, 95 % interval by image"
    table = plain_table(
        title, ("protocol", "subset", "metric"), ("value", "interval", "n", "constant")
    )
    table.add_column("answer", no_wrap=True)
    for protocol, subsets in _headline_first(result["protocols"]):
        first = True
        for subset, metric in shown(protocol, subsets):
            cell = subsets[subset][metric]
            constant, answer = best_constant(result, protocol, subset, metric)
            table.add_row(
                protocol if first else "",
                subset,
                metric,
                percent(cell["value"]),
                interval(cell),
                str(cell["n"]),
                percent(constant),
                answer[0],
            )
            first = False
        if not first:
            table.add_section()
    return table


def _headline_first(cells: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(cells.items(), key=lambda item: item[0] not in ("strict", "label_score"))


def best_constant(
    result: Mapping[str, Any], protocol: str, subset: str, metric: str
) -> tuple[float | None, tuple[str, str]]:
    """Return the best constant answer's value and its names, short and long.

    (None, ("", "")) where none was scored.
    """
    cells = result["baselines"].get("constant", {}).get(protocol, {}).get(subset, {})
    if metric not in cells:
        return None, ("", "")
    return cells[metric]["value"], _CONSTANTS[cells[metric]["answer"]]


def _subsets(result: Mapping[str, Any]) -> Table:
    title = "strict, share of questions answered right"
    table = plain_table(title, ("subset",), ("value", "interval", "n", "constant"))
    for subset, metrics in result["protocols"]["strict"].items():
        if subset in MAIN_SUBSETS:
            continue
        cell = metrics["accuracy"]
        constant, _ = best_constant(result, "strict", subset, "accuracy")
        table.add_row(
            subset, percent(cell["value"]), interval(cell), str(cell["n"]), percent(constant)
        )
    return table


def _paper(result: Mapping[str, Any]) -> Table:
    table = plain_table(
        f"the paper on {result['task']} (no interval, no n)",
        ("system", "subset", "metric", "protocol"),
        ("table", "value", "ours"),
    )
    for row in result["paper"]:
        ours = (
            result["protocols"]
            .get(row["our_protocol"], {})
            .get(row["subset"], {})
            .get(row["metric"], {})
        )
        table.add_row(
            row["system"],
            row["subset"],
            row["metric"],
            row["protocol"],
            str(row["table"]),
            f"{row['value']:.2f}",
            percent(ours.get("value")),
        )
    return table


def _blind_sentences(result: Mapping[str, Any]) -> Iterator[str]:
    """Say which headline scores do not clear the best constant answer."""
    strict = result["protocols"].get("strict", {})
    for subset, metric in (("closed", "accuracy"), ("open", "exact_match")):
        cell = strict.get(subset, {}).get(metric)
        constant, answer = best_constant(result, "strict", subset, metric)
        if cell is None or constant is None or (cell["low"] or 0.0) > constant:
            continue
        yield (
            f"strict {subset} is not above the constant answer ({answer[1]}, {percent(constant)}) "
            "outside its interval: no sign that pictures were used"
        )
