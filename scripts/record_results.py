"""Adds a run's scores to results/measured.csv, and renews what is printed from that file.

    python scripts/record_results.py [runs/real ...]

Every score keeps what it takes to judge and to repeat it: commit, config hash, seed, hardware,
minutes, n, interval, baselines; its predictions go to results/predictions/. A run of the same
configuration and seed is replaced. Without a run, results/README.md and the results line of
README.md are only written anew.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
COLUMNS = (
    "commit",
    "dirty",
    "config_sha256",
    "seed",
    "hardware",
    "plan_minutes",
    "measured_minutes",
    "data_split",
    "system",
    "task",
    "split",
    "subset",
    "protocol",
    "metric",
    "control",
    "n",
    "value",
    "low",
    "high",
    "constant_baseline",
    "question_only_baseline",
)
#: What identifies a run in the table.
RUN = ("config_sha256", "seed", "data_split")
#: Scores that are printed: (protocol, subset, metric) and how they are called.
HEADLINES = {
    ("strict", "closed", "accuracy"): "closed",
    ("strict", "open", "exact_match"): "open",
    ("label_score", "all", "accuracy"): "accuracy",
    ("router", "all", "accuracy"): "accuracy",
}
Row = dict[str, str]


def rows_of(run: Path) -> list[Row]:
    """Return one row per score of a run directory."""
    import yaml

    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    about = json.loads((run / "run.json").read_text(encoding="utf-8"))
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    machine = about["hardware"]
    common = {
        "commit": summary["commit"],
        "dirty": about["dirty"],
        "config_sha256": summary["config_sha256"][:12],
        "seed": summary["seed"],
        "hardware": f"{machine['cores']} cores {machine['cpu_capability']}",
        "plan_minutes": config["minutes"],
        "measured_minutes": f"{sum(summary['seconds'].values()) / 60:.1f}",
        "data_split": "phantom" if summary["data"] == "phantom" else config["split"],
    }
    router = {"system": "moe", "task": "router", "subset": "all", "protocol": "router"}
    routers = [
        router | {"split": name, "metric": "accuracy", "value": found["accuracy"]} | found
        for name, found in summary["router"]["by_dataset"].items()
    ]
    rows = [common | row for row in [*summary["scores"], *routers]]
    return [{name: _plain(row.get(name)) for name in COLUMNS} for row in rows]


def record(run: Path) -> None:
    """Write the rows and the predictions of a run."""
    rows = rows_of(run)
    kept = [row for row in read() if any(row[key] != rows[0][key] for key in RUN)]
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "measured.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *rows])
    target = RESULTS / "predictions"
    target.mkdir(exist_ok=True)
    for source in sorted((run / "predictions").glob("*.jsonl")):
        system, task, *control = source.stem.split("-")
        which = "-".join(name for name in (system, *control) if name != "moe")
        name = f"{rows[0]['config_sha256']}-{task}-{rows[0]['seed']}"
        _copy_compact(source, target / f"{name}{f'-{which}' if which else ''}.jsonl")


def _copy_compact(source: Path, target: Path) -> None:
    """Copy a JSON Lines file without the spaces between its values; no value changes."""
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows]
    target.write_text("".join(lines), encoding="utf-8")


def read() -> list[Row]:
    """Return the recorded rows."""
    table = RESULTS / "measured.csv"
    if not table.is_file():
        return []
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def page(rows: list[Row]) -> str:
    """Return results/README.md: one table per run, both systems, the control and the baselines."""
    lines = [
        "# Measured results",
        "",
        "Written by `python scripts/record_results.py` from [measured.csv](measured.csv), which "
        "holds every",
        "score; `predictions/` holds the answers, so that each can be scored again untrained.",
        "Percent; 95 % intervals clustered on the image; `strict` and `label_score` protocols. "
        "Minutes are those of the run as it was; more than the plan's: on shared cores. "
        "Research use only, not a medical device.",
    ]
    for run in dict.fromkeys(tuple(row[key] for key in RUN) for row in rows):
        own = [row for row in rows if tuple(row[key] for key in RUN) == run]
        first = own[0]
        lines += [
            "",
            f"## {first['data_split']}, {first['plan_minutes']}-minute plan, seed {first['seed']}",
            "",
            f"Commit `{first['commit'][:12]}`, config `{first['config_sha256']}`, "
            f"{first['hardware']}, {first['measured_minutes']} minutes.",
            "",
            "| score | n | MoE | SFT | MoE, blank image | constant | question only |",
            "|---|---|---|---|---|---|---|",
            *_table(own),
        ]
    return "\n".join(lines) + "\n"


def _table(rows: list[Row]) -> list[str]:
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        called = HEADLINES.get((row["protocol"], row["subset"], row["metric"]))
        if called:
            systems = found.setdefault((_place(row), called), {})
            systems[row["control"] or row["system"]] = row
    return [
        f"| {place} {called} | {by['moe']['n']} | {_score(by.get('moe'))} "
        f"| {_score(by.get('sft'))} | {_score(by.get('blank'))} "
        f"| {_one(by['moe']['constant_baseline'])} | {_one(by['moe']['question_only_baseline'])} |"
        for (place, called), by in found.items()
    ]


def sentence(rows: list[Row]) -> str:
    """Return the results line of README.md."""
    parts = []
    for run in dict.fromkeys(tuple(row[key] for key in RUN) for row in rows):
        own = [row for row in rows if tuple(row[key] for key in RUN) == run]
        scores = [
            f"{_place(row)} {called} {_score(row)}, question only "
            f"{_one(row['question_only_baseline'])}"
            for row in own
            if row["system"] == "moe" and not row["control"] and row["protocol"] != "router"
            for called in [HEADLINES.get((row["protocol"], row["subset"], row["metric"]))]
            if called
        ]
        name = f"{own[0]['data_split']} ({own[0]['plan_minutes']}-minute plan)"
        parts.append(f"**{name}** " + "; ".join(scores))
    return (
        "Measured on two cores, percent with 95 % interval, one seed: "
        + ". ".join(parts)
        + ". Where the baseline lies inside an interval or above it, nothing was shown to be "
        "learned from pictures. All rows: [results](results/README.md), "
        "[measured.csv](results/measured.csv)."
    )


def _place(row: Row) -> str:
    shared = " (shared images)" if (row["task"], row["split"]) == ("vqa_rad", "test") else ""
    return f"{row['task']}{shared} {row['split']}"


def _score(row: Row | None) -> str:
    if row is None or not row["value"]:
        return "–"
    return f"{_one(row['value'])} ({_one(row['low'])}–{_one(row['high'])})"


def _one(value: str) -> str:
    return f"{float(value):.1f}" if value else "–"


def _plain(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def main(runs: list[str]) -> None:
    for run in runs:
        record(Path(run))
    rows = read()
    (RESULTS / "README.md").write_text(page(rows), encoding="utf-8")
    readme = ROOT / "README.md"
    text = re.sub(
        r"^Measured on two cores.*$",
        lambda _: sentence(rows),
        readme.read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
