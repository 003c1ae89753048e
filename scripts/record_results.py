"""Adds a run's scores to results/measured.csv and its predictions to results/predictions/.

    python scripts/record_results.py runs/real

Every score keeps what it takes to judge and to repeat it: commit, config hash, seed, hardware,
minutes, n, interval, baselines. A run that is already there is replaced.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results"
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


def rows_of(run: Path) -> list[dict[str, Any]]:
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
        "measured_minutes": round(sum(summary["seconds"].values()) / 60, 1),
        "data_split": "phantom" if summary["data"] == "phantom" else config["split"],
    }
    routers = [
        {
            "system": "moe",
            "task": "router",
            "split": name,
            "subset": "all",
            "protocol": "router",
            "metric": "accuracy",
            "value": found["accuracy"],
            **{key: found[key] for key in ("low", "high", "n")},
        }
        for name, found in summary["router"]["by_dataset"].items()
    ]
    rows = [common | row for row in [*summary["scores"], *routers]]
    return [{name: _plain(row.get(name)) for name in COLUMNS} for row in rows]


def record(run: Path) -> int:
    """Write the rows and predictions of a run; return how many rows there are."""
    rows = rows_of(run)
    table = RESULTS / "measured.csv"
    kept: list[dict[str, Any]] = []
    key = ("config_sha256", "seed", "data_split")
    if table.is_file():
        with table.open(encoding="utf-8", newline="") as file:
            kept = [row for row in csv.DictReader(file) if any(row[k] != rows[0][k] for k in key)]
    RESULTS.mkdir(exist_ok=True)
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *rows])
    _copy_predictions(run, f"{rows[0]['config_sha256']}", rows[0]["seed"])
    return len(rows)


def _copy_predictions(run: Path, config: str, seed: str) -> None:
    """Copy ``<system>-<task>[-<control>].jsonl`` as ``<config>-<task>-<seed>[-…].jsonl``."""
    target = RESULTS / "predictions"
    target.mkdir(exist_ok=True)
    for source in sorted((run / "predictions").glob("*.jsonl")):
        system, task, *control = source.stem.split("-")
        which = "-".join(name for name in (system, *control) if name != "moe")
        suffix = f"-{which}" if which else ""
        shutil.copyfile(source, target / f"{config}-{task}-{seed}{suffix}.jsonl")


def _plain(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    print(f"{record(Path(sys.argv[1]))} rows recorded")
