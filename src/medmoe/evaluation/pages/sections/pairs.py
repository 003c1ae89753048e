"""The report's part on pairs of questions: how often two answers agree, and examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from medmoe.evaluation.pages.report import Section
from medmoe.evaluation.pages.report_rows import place, value_cell
from medmoe.evaluation.pages.table import Table
from medmoe.evaluation.pairs.rewriting import PAIRINGS
from medmoe.numbers import count

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
    entries = [entry for entry in summary.get("pairs") or () if entry["of"]]
    if not entries:
        return None
    tables = list(pair_tables(entries))
    for entry in entries:
        if entry["examples"]:
            title = f"Examples drawn by the seed: {_place(entry)}, {_named(entry['pair'])}"
            rows = [_example(example) for example in entry["examples"]]
            tables.append(Table(_EXAMPLE_COLUMNS, rows, title, 6))
    return Section("pairs", "The same questions in other words", (_WORDS, _LIMITS), tables)


def pair_tables(entries: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """Yield one table for each task: how often the answers agree and are right, with intervals."""
    asked = [entry for entry in entries if entry["of"]]
    for name in dict.fromkeys(map(_place, asked)):
        rows = [_row(entry) for entry in asked if _place(entry) == name]
        yield Table(_COLUMNS, rows, f"The same in other words: {name}", 2)


_COLUMNS = ("Pair", "Second answer", "n", "As asked", "Rewritten", "Both right", "Agree")
_EXAMPLE_COLUMNS = ("Question", "Answer", "Rewritten", "Answer then", "Truth", "The two")


def _named(pair: str) -> str:
    return pair.replace("_", " ")


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    metric, words = PAIRINGS[entry["pair"]].must
    names = ("right_as_asked", "right_rewritten", "both_right", metric)
    cells = [value_cell(entry["scores"].get(name)) for name in names]
    return (_named(entry["pair"]), words, f"{count(entry['n'])} of {count(entry['of'])}", *cells)


def _place(entry: Mapping[str, Any]) -> str:
    return place(entry["task"], entry["split"])


def _example(example: Mapping[str, Any]) -> tuple[str, ...]:
    (question, other), (said, then) = example["questions"], example["answers"]
    truth = "\u00a0/\u00a0".join(dict.fromkeys(example["truth"]))
    return (question, said, other, then, truth, "agree" if example["agree"] else "contradict")
