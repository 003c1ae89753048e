"""Writes results/ablations.csv and results/ablations.md from scores.

    python scripts/record_ablations.py EVALS

EVALS holds what `medmoe eval runs/NAME/PHASE/model --out EVALS/NAME` wrote for each recipe. Each is
held against the first one of its family by `medmoe compare`, question by question.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from record_results import RESULTS, line, write_table

from medmoe.config import load

FAMILIES = ("tiny_phantom", "tiny_real")
COLUMNS = (
    "recipe", "trained_commit", "scored_commit", "seed", "task", "subset", "metric", "n", "value",
    "low", "high", "constant_baseline", "question_only_baseline", "difference", "difference_low",
    "difference_high", "p",
)  # fmt: skip
Row = dict[str, Any]


def rows_of(evals: Path, family: str, recipe: str) -> list[Row]:
    """Return one row per deciding score of a recipe, with its difference to the family's first."""
    summary = json.loads((evals / recipe / "summary.json").read_text(encoding="utf-8"))
    model = json.loads((Path(summary["model"]) / "medmoe.json").read_text(encoding="utf-8"))
    scores = {
        (s["task"], s["subset"], s["metric"]): s
        for s in summary["scores"]
        if s["protocol"] in {"strict", "label_score"}
    }
    rows = []
    for found in _differences(evals / family, evals / recipe):
        score = scores[found["name"], found["subset"], found["metric"]]
        other = recipe != family
        rows.append(
            {name: score[name] for name in COLUMNS if name in score}
            | {
                "recipe": recipe,
                "trained_commit": model["training"]["commit"][:12],
                "scored_commit": summary["commit"][:12],
                "seed": model["training"]["seed"],
                "difference": found["difference"] if other else None,
                "difference_low": found["low"] if other else None,
                "difference_high": found["high"] if other else None,
                "p": found["p"] if other else None,
            }
        )
    return rows


def _differences(base: Path, other: Path) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "compare.json"
        words = [sys.executable, "-m", "medmoe", "compare", str(base), str(other)]
        subprocess.run([*words, "--json", str(out)], check=True, stdout=subprocess.DEVNULL)
        found = json.loads(out.read_text(encoding="utf-8"))
    return [row for row in found["differences"] if row["decides"]]


def page(rows: list[Row]) -> str:
    """Return results/ablations.md: a table per family, a column per score."""
    lines = [
        "# Ablations of the tiny twins",
        "",
        "Written by `python scripts/record_ablations.py` from [ablations.csv](ablations.csv), "
        "which names commits.",
        "Percent with 95 % intervals clustered on the image; in brackets the difference to the "
        "first row, paired question by question. Measured before the stand-in language model got "
        "its wider initial scale and the phantom the patient's sides (see the changelog), and not "
        "repeated since. "
        "One seed, some sixty differences: about three "
        "would leave zero outside by chance. A model of six million weights trained for minutes: "
        "it shows what the recipes do and how such a table is made, not what the paper found; "
        "where a baseline is higher, nothing was learned from pictures. Research use only, not a "
        "medical device.",
    ]
    for family in FAMILIES:
        own = [row for row in rows if row["recipe"].startswith(family)]
        scores = list(dict.fromkeys((r["task"], r["subset"], r["metric"], r["n"]) for r in own))
        titles = [f"{task} {subset} (n {n})" for task, subset, _, n in scores]
        lines += ["", f"## {family}", "", line(["recipe", "what differs", *titles])]
        lines.append(line(["---"] * (len(titles) + 2)))
        for recipe in dict.fromkeys(row["recipe"] for row in own):
            by = {
                (r["task"], r["subset"], r["metric"], r["n"]): r
                for r in own
                if r["recipe"] == recipe
            }
            description = load.recipe("experiments", recipe)["description"]
            cells = [_cell(by.get(score)) for score in scores]
            lines.append(line([f"`{recipe}`", description.rstrip("."), *cells]))
        first = {(r["task"], r["subset"], r["metric"], r["n"]): r for r in own}
        for name in ("constant_baseline", "question_only_baseline"):
            cells = [f"{first[score][name]:.1f}" for score in scores]
            lines.append(line([name.replace("_", " "), "no picture is looked at", *cells]))
    return "\n".join(lines) + "\n"


def _cell(row: Row | None) -> str:
    if row is None:
        return "–"
    score = f"{row['value']:.1f} ({row['low']:.1f}–{row['high']:.1f})"
    if row["difference"] is None:
        return score
    return (
        f"{score} [{row['difference']:+.1f}, {row['difference_low']:+.1f} to "
        f"{row['difference_high']:+.1f}]"
    )


def main(evals: Path) -> None:
    rows = [
        row
        for family in FAMILIES
        for folder in sorted(evals.glob(f"{family}*/summary.json"))
        for row in rows_of(evals, family, folder.parent.name)
    ]
    write_table("ablations.csv", COLUMNS, rows)
    (RESULTS / "ablations.md").write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
