"""The report's part on a language model as judge: cost, agreement with ``strict``, its verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medmoe.evaluation.pages.report import Section
from medmoe.evaluation.pages.table import Table
from medmoe.numbers import NONE, count, fixed, percent

_COST = (
    *("Answers", "Judge", "asked", "tokens sent", "tokens back", "no verdict"),
    *("agree, %", "kappa", "only judge: right", "only strict: right"),
)
_KEYS = ("asked", "prompt_tokens", "completion_tokens", "without_verdict")


def judge_section(summary: Mapping[str, Any]) -> Section | None:
    """Return what judges said of the answers, those they and ``strict`` differ on first.

    The first table is what they cost and how far they agree; None where there was no judge.
    """
    cost, verdicts = [], []
    for name, did in (summary.get("judged") or {}).items():
        kappa = fixed(did["kappa"], 2)
        only = (count(did[f"right_for_{who}_only"]) for who in ("judge", "strict"))
        counts = (count(did[key]) for key in _KEYS)
        agreement = percent(did["agreement_with_strict"])
        cost.append((name, did["model"], *counts, agreement, kappa, *only))
        for each, row in did["verdicts"].items():
            said = {"yes": "right", "no": "wrong"}.get(row["judge"], NONE)
            texts = (row["question"], row["answer"], row["prediction"])
            verdicts.append((each, *texts, said, "right" if row["strict"] else "wrong"))
    if not cost:
        return None
    verdicts.sort(key=lambda row: row[-2] == row[-1])
    columns = ("id", "Question", "True answer", "Given answer", "judge", "strict")
    note = "A verdict that is neither yes nor no counts as wrong. Kappa is Cohen's."
    return Section(
        "judge",
        "A language model as judge",
        (),
        (
            Table(_COST, cost, "The judge: cost, and agreement with strict", 2, notes=[note]),
            Table(columns, verdicts, "Every verdict", 6),
        ),
    )
