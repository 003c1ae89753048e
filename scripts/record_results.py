"""Adds a demo's scores to results/measured.csv, and renews what is printed from that file.

    python scripts/record_results.py [runs/demo ...]

Every score keeps what it takes to judge and to repeat it: commit, config hash, seed, hardware,
minutes, n, interval, baselines; its predictions go to results/predictions/. A run of the same
configuration and seed is replaced. Without a run, results/README.md and the results table of
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
    "blind_twin",
    "share",
    "share_low",
    "share_high",
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
BASELINES = ("constant_baseline", "question_only_baseline")
#: The rows of README.md: (split of the data, task, name of the score).
SHOWN = (
    ("phantom", "phantom_vqa", "closed"),
    ("phantom", "phantom_vqa", "open"),
    ("disjoint", "vqa_rad_disjoint", "closed"),
    ("disjoint", "vqa_rad_disjoint", "open"),
    ("disjoint", "vqa_med_2019", "open"),
    ("disjoint", "pneumoniamnist", "accuracy"),
)
Row = dict[str, str]


def rows_of(run: Path) -> list[Row]:
    """Return one row per score of a run directory."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    about = json.loads((run / "phase3_moe" / "run.json").read_text(encoding="utf-8"))
    machine = about["hardware"]
    common = {
        "commit": about["commit"],
        "dirty": about["dirty"],
        "config_sha256": summary["config_sha256"][:12],
        "seed": summary["seed"],
        "hardware": f"{machine['cores']} cores {machine['cpu_capability']}",
        "plan_minutes": summary["minutes"],
        "measured_minutes": f"{sum(summary['seconds'].values()) / 60:.1f}",
        "data_split": "phantom" if summary["data"] == "phantom" else summary["split"],
    }
    router = {"system": "moe", "task": "router", "subset": "all", "protocol": "router"}
    routers = [
        router | {"split": name, "metric": "accuracy", "value": found["accuracy"]} | found
        for name, found in summary["router"]["by_dataset"].items()
    ]
    rows = [common | row | _share(row) for row in [*summary["scores"], *routers]]
    return [{name: _plain(row.get(name)) for name in COLUMNS} for row in rows]


def _share(row: dict[str, Any]) -> dict[str, Any]:
    share = row.get("share") or {}
    return {
        f"share_{end}" if end else "share": share.get(end or "value") for end in ("", "low", "high")
    }


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
        return [dict.fromkeys(COLUMNS, "") | row for row in csv.DictReader(file)]


def runs_of(rows: list[Row]) -> list[list[list[Row]]]:
    """Return the rows by configuration and split, and those of each by seed."""
    groups: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in rows:
        seeds = groups.setdefault((row["config_sha256"], row["data_split"]), {})
        seeds.setdefault(row["seed"], []).append(row)
    return [list(seeds.values()) for seeds in groups.values()]


def page(rows: list[Row]) -> str:
    """Return results/README.md: one table per configuration, systems, control and baselines."""
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
    for runs in runs_of(rows):
        first = runs[0][0]
        seeds = ", ".join(run[0]["seed"] for run in runs)
        minutes = ", ".join(run[0]["measured_minutes"] for run in runs)
        lines += [
            "",
            f"## {first['data_split']}, {first['plan_minutes']}-minute plan, "
            f"seed{'s' if len(runs) > 1 else ''} {seeds}",
            "",
            f"Commit `{first['commit'][:12]}`, config `{first['config_sha256']}`, "
            f"{first['hardware']}, {minutes} minutes.",
            "",
            *(_table(runs[0]) if len(runs) == 1 else _spread(runs)),
        ]
    return "\n".join(lines) + "\n"


def headlines(rows: list[Row]) -> dict[tuple[str, str], dict[str, Row]]:
    """Return the printed scores of one run: (place, name) → row by system or control."""
    scores: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        called = HEADLINES.get((row["protocol"], row["subset"], row["metric"]))
        if called:
            systems = scores.setdefault((_place(row), called), {})
            systems[row["control"] or row["system"]] = row
    return scores


def _table(rows: list[Row]) -> list[str]:
    return [
        "| score | n | MoE | SFT | MoE, blank image | constant | question only | blind twin "
        "| picture's share |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {place} {called} | {by['moe']['n']} | {_score(by.get('moe'))} "
            f"| {_score(by.get('sft'))} | {_score(by.get('blank'))} "
            f"| {_one(by['moe']['constant_baseline'])} "
            f"| {_one(by['moe']['question_only_baseline'])} | {_one(by['moe']['blind_twin'])} "
            f"| {_shared(by['moe'])} |"
            for (place, called), by in headlines(rows).items()
        ),
    ]


def _spread(runs: list[list[Row]]) -> list[str]:
    """Return the table of several seeds: each, their mean and the worst."""
    lines = [
        "| score | MoE by seed | mean | worst | SFT, mean | MoE, blank image, mean "
        "| question only, mean | blind twin, mean | picture's share, mean |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    by_run = [headlines(run) for run in runs]
    for name in by_run[0]:
        moe = [float(scores[name]["moe"]["value"]) for scores in by_run]
        others = [
            _mean([scores[name][system]["value"] for scores in by_run if system in scores[name]])
            for system in ("sft", "blank")
        ]
        beside = " | ".join(
            _mean([scores[name]["moe"][column] for scores in by_run])
            for column in ("question_only_baseline", "blind_twin", "share")
        )
        lines.append(
            f"| {' '.join(name)} | {', '.join(f'{value:.1f}' for value in moe)} "
            f"| {sum(moe) / len(moe):.1f} | {min(moe):.1f} | {others[0]} | {others[1]} | {beside} |"
        )
    return lines


def _mean(values: list[str]) -> str:
    known = [float(value) for value in values if value]
    return f"{sum(known) / len(known):.1f}" if known else "–"


def summary_table(rows: list[Row]) -> str:
    """Return the results table of README.md: the scores of `SHOWN`, each with its verdict."""
    lines = [
        "| score | Med-MoE | blind twin | question alone | verdict |",
        "|---|---|---|---|---|",
    ]
    for split, task, called in SHOWN:
        runs = [runs for runs in runs_of(rows) if runs[0][0]["data_split"] == split][-1]
        by_run = [
            by["moe"]
            for scores in map(headlines, runs)
            for (place, name), by in scores.items()
            if by["moe"]["task"] == task and name == called
        ]
        values = [float(row["value"]) for row in by_run]
        asked = [float(row["question_only_baseline"] or row["constant_baseline"]) for row in by_run]
        above = all(
            float(row["low"]) > max(float(row[name]) for name in BASELINES if row[name])
            for row in by_run
        )
        shown = (
            _score(by_run[0])
            if len(values) == 1
            else f"{sum(values) / len(values):.1f}, worst of {len(values)} seeds {min(values):.1f}"
        )
        verdict = _verdict(by_run, above)
        lines.append(
            f"| {_place(by_run[0])} {called} (n {by_run[0]['n']}) | {shown} "
            f"| {_mean([row['blind_twin'] for row in by_run])} | {sum(asked) / len(asked):.1f} "
            f"| {verdict} |"
        )
    return "\n".join(lines)


def _verdict(by_run: list[Row], above: bool) -> str:
    """Return what may be claimed: of every run, by its twin where it has one."""
    if not above:
        return "nothing shown to be learned from pictures"
    if not all(row["share"] for row in by_run):
        return "above the question alone; no blind twin yet"
    seen = all(float(row["share_low"]) > 0 for row in by_run)
    share = _mean([row["share"] for row in by_run])
    return f"the picture's share is {share} points" if seen else "read from the questions"


def _shared(row: Row) -> str:
    if not row["share"]:
        return "–"
    return f"{_one(row['share'])} ({_one(row['share_low'])} to {_one(row['share_high'])})"


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
        r"(?<=record_results.py -->\n).*?(?=<!-- end of results -->)",
        lambda _: f"\n{summary_table(rows)}\n\n",
        readme.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
