"""The report's part on pairs of questions: how often two answers agree, and examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medmoe.evaluation.pages.page import with_interval
from medmoe.evaluation.pages.report import DataTable, Section
from medmoe.evaluation.pages.report_rows import place
from medmoe.evaluation.pairs.rewriting import PAIRINGS

_WORDS = (
    "A model that understands a question answers it in other words as well. Negated: “Is there a "
    "mass?” and “Is there no mass?” have opposite answers. Options swapped: “CT or MRI?” and “MRI "
    "or CT?” have the same one. Words swapped: where “Is this a CT?” is true, “Is this an MRI?” is "
    "not. Only questions that a rule surely rewrites are asked: n of those concerned. “Agree” is "
    "the share of pairs whose two answers can both be true, right or wrong: the second one must be "
    "as the third column says. “Both right” is the share in which both are. Percent, with 95 % "
    "interval by image."
)
_LIMITS = (
    "A model that always gives one answer never flips. Colloquially, “no” to a negated question "
    "may mean “there is none”: the logical reading is scored, in which it means that there is one."
)


def pairs_section(summary: Mapping[str, Any]) -> Section | None:
    """Return the part of the report, None where no pairs were asked.

    Args:
        summary: The object of ``summary.json``; its ``pairs`` are objects of `pair_scores` with
            task, split and kind.
    """
    found = [entry for entry in summary.get("pairs") or () if entry["of"]]
    if not found:
        return None
    tables = [DataTable(PAIR_COLUMNS, [pair_row(entry) for entry in found], "", 3)]
    for entry in found:
        if entry["examples"]:
            title = f"Examples drawn by the seed: {_place(entry)}, {named(entry['pair'])}"
            rows = [_example(example) for example in entry["examples"]]
            tables.append(DataTable(_EXAMPLE_COLUMNS, rows, title, 6))
    return Section("pairs", "The same questions in other words", (_WORDS, _LIMITS), tables)


PAIR_COLUMNS = (
    "Task", "Pair", "Second answer", "n", "as asked", "rewritten", "both right", "agree"
)  # fmt: skip
_EXAMPLE_COLUMNS = ("Question", "Answer", "Rewritten", "Answer then", "Truth", "The two")


def named(pair: str) -> str:
    """Return the printed name of a kind of pair."""
    return pair.replace("_", " ")


def pair_row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of one kind of pair, as `PAIR_COLUMNS` has them; percent with intervals."""
    metric, words = PAIRINGS[entry["pair"]].must
    cells = [
        _cell(entry["scores"].get(name))
        for name in ("right_as_asked", "right_rewritten", "both_right", metric)
    ]
    count = f"{entry['n']} of {entry['of']}".replace(" ", "\u00a0")
    return (_place(entry), named(entry["pair"]), words, count, *cells)


def _place(entry: Mapping[str, Any]) -> str:
    return place(entry["task"], entry["split"])


def _cell(score: Mapping[str, Any] | None) -> str:
    return "–" if score is None else with_interval(score["value"], score["low"], score["high"])


def _example(example: Mapping[str, Any]) -> tuple[str, ...]:
    (question, other), (said, then) = example["questions"], example["answers"]
    truth = "\u00a0/\u00a0".join(dict.fromkeys(example["truth"]))
    return (question, said, other, then, truth, "agree" if example["agree"] else "contradict")
