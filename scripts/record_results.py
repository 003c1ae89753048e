"""Keeps the scores of runs in results/, and writes the pages that show them.

    python scripts/record_results.py RUN [RUN …]

RUN is a folder of `medmoe demo`, or that of `medmoe reproduce` (``runs/reproduce``). Every score
goes to results/measured.csv and its answers to results/predictions/; the rows of a reproduction,
with their verdicts, to results/reproduce.csv. A run of the same configuration and seed is replaced.
Without a run, results/README.md, docs/reproduce.md and the results table of README.md are only
written anew.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medmoe.experiments.reproduce import experiments
from medmoe.experiments.verdicts import table_of

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
#: Columns of results/reproduce.csv: a row of `medmoe reproduce` and how it came about.
REPRODUCED = (
    *("name", "size", "seeds", "commit", "dirty", "hardware", "family", "what", "verdict"),
    *("paper", "highest", "value", "low", "high", "difference", "n"),
    *("share", "share_low", "share_high"),
)
#: What identifies a run in the table.
RUN = ("config_sha256", "seed", "data_split")
TOGETHER = "closed and open together"
#: Scores that are printed: (protocol, subset, metric) and how they are called.
HEADLINES = {
    ("strict", "closed", "accuracy"): "closed",
    ("strict", "open", "exact_match"): "open",
    ("strict", "all", "accuracy"): TOGETHER,
    ("label_score", "all", "accuracy"): "accuracy",
    ("router", "all", "accuracy"): "accuracy",
}
BASELINES = ("constant_baseline", "question_only_baseline")
#: The rows of README.md: (split of the demonstration or recipe, task, name of the score). Those of
#: a recipe are its Med-MoE's, or those of the model after phase 2 while there is none.
SHOWN = (
    ("small_real", "vqa_rad", "closed"),
    ("small_real", "vqa_rad", "open"),
    ("small_real_disjoint", "vqa_rad_disjoint", "closed"),
    ("small_real_disjoint", "vqa_rad_disjoint", "open"),
    ("small_real_disjoint", "vqa_med_2019", TOGETHER),
    ("small_real_pneumoniamnist", "pneumoniamnist", "accuracy"),
    ("phantom", "phantom_vqa", "closed"),
    ("phantom", "phantom_vqa", "open"),
    ("disjoint", "vqa_rad_disjoint", "closed"),
    ("disjoint", "vqa_rad_disjoint", "open"),
    ("disjoint", "vqa_med_2019", "open"),
    ("disjoint", "pneumoniamnist", "accuracy"),
)
MODELS = {"phantom": "`medmoe demo`", "disjoint": "`medmoe demo --data DIR --split disjoint`"}
Row = dict[str, str]
MARK = "<!-- below: written by scripts/record_results.py from results/reproduce.csv -->"


def rows_of(run: Path) -> list[Row]:
    """Return one row per score of a run directory."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    about = json.loads((run / "phase3_moe" / "run.json").read_text(encoding="utf-8"))
    common = {
        "commit": about["commit"],
        "dirty": about["dirty"],
        "config_sha256": summary["config_sha256"][:12],
        "seed": summary["seed"],
        "hardware": _machine(about),
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


def _machine(about: dict[str, Any]) -> str:
    return "{cores} cores {cpu_capability}".format_map(about["hardware"])


def _share(row: dict[str, Any]) -> dict[str, Any]:
    share = row.get("share") or {}
    return {
        f"share_{end}" if end else "share": share.get(end or "value") for end in ("", "low", "high")
    }


def record(run: Path) -> None:
    """Write the rows and the predictions of a demonstration."""
    rows = rows_of(run)
    _keep("measured.csv", COLUMNS, RUN, rows)
    target = RESULTS / "predictions"
    target.mkdir(exist_ok=True)
    for source in sorted((run / "predictions").glob("*.jsonl")):
        system, task, *control = source.stem.split("-")
        which = "-".join(name for name in (system, *control) if name != "moe")
        name = f"{rows[0]['config_sha256']}-{task}-{rows[0]['seed']}"
        _copy_compact(source, target / f"{name}{f'-{which}' if which else ''}.jsonl")


def record_reproduction(folder: Path) -> None:
    """Write the rows of every reproduction, and the scores and answers that they rest on."""
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        how = {name: found[name] for name in ("name", "size", "commit", "dirty")}
        how["hardware"] = _machine(found)
        how["seeds"] = " ".join(map(str, found["seeds"]))
        every = [how | row | _share(row) for row in found["rows"]]
        rows = [{name: _plain(row.get(name)) for name in REPRODUCED} for row in every]
        # What could not be run this time may have been before, of models that lie elsewhere now.
        same = ("name", "size", "seeds", "family", "what")
        before = {
            tuple(row[key] for key in same): row
            for row in read("reproduce.csv", REPRODUCED)
            if row["value"]
        }
        rows = [r if r["value"] else before.get(tuple(r[k] for k in same), r) for r in rows]
        _keep("reproduce.csv", REPRODUCED, ("name", "size"), rows)
    for path in sorted(folder.glob("*/summary.json")):
        summary = json.loads(path.read_text(encoding="utf-8"))
        about = json.loads((Path(summary["model"]).parent / "run.json").read_text("utf-8"))
        common = {name: about[name] for name in ("commit", "dirty", "seed")}
        common |= {"config_sha256": about["config_sha256"][:12], "data_split": about["recipe"]}
        common["hardware"] = _machine(about)
        scores = summary["scores"]
        rows = [{n: _plain((common | r | _share(r)).get(n)) for n in COLUMNS} for r in scores]
        _keep("measured.csv", COLUMNS, (*RUN, "task", "system"), rows)
        task = scores[0]["task"]
        target, asked = RESULTS / "predictions", path.parent / task
        target.mkdir(exist_ok=True)
        name = f"{common['config_sha256']}-{task}-{about['seed']}"
        if scores[0]["system"] != "moe":  # a phase before it, of the same recipe
            name += f"-{scores[0]['system']}"
        _copy_compact(asked / "predictions.jsonl", target / f"{name}.jsonl")
        for source in asked.glob("blind_twin/*.jsonl"):
            _copy_compact(source, target / f"{name}-blind_twin.jsonl")
        for control in {row["control"] for row in scores} - {None}:
            _copy_compact(
                asked / "controls" / f"{control}.jsonl", target / f"{name}-{control}.jsonl"
            )


def _keep(table: str, columns: Iterable[str], which: Iterable[str], rows: list[Row]) -> None:
    """Put rows in the place of those that are of the same run."""
    RESULTS.mkdir(exist_ok=True)
    kept = [row for row in read(table, columns) if any(row[key] != rows[0][key] for key in which)]
    write_table(table, columns, [*kept, *rows])


def write_table(table: str, columns: Iterable[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as a table of results/; numbers with four decimals."""
    with (RESULTS / table).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _plain(row.get(name)) for name in columns} for row in rows)


def _copy_compact(source: Path, target: Path) -> None:
    """Copy a JSON Lines file without the spaces between its values; no value changes."""
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows]
    target.write_text("".join(lines), encoding="utf-8")


def read(table: str = "measured.csv", columns: Iterable[str] = COLUMNS) -> list[Row]:
    """Return the recorded rows of a table."""
    path = RESULTS / table
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [dict.fromkeys(columns, "") | row for row in csv.DictReader(file)]


def runs_of(rows: list[Row]) -> list[list[list[Row]]]:
    """Return the rows by configuration and split, and those of each by seed."""
    groups: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in rows:
        seeds = groups.setdefault((row["config_sha256"], row["data_split"]), {})
        seeds.setdefault(row["seed"], []).append(row)
    # Scores of a reproduction belong to no plan; docs/reproduce.md shows them.
    return [list(s.values()) for s in groups.values() if next(iter(s.values()))[0]["plan_minutes"]]


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


def reproduce_page(rows: list[Row]) -> str:
    """Return docs/reproduce.md: how it is called, what a verdict means, and every table."""
    text = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    lines = [text.partition(MARK)[0] + MARK]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["name"], row["size"]), []).append(row)
    for name in experiments():
        for (_, size), own in (item for item in groups.items() if item[0][0] == name):
            about = experiments()[name]
            found = {"name": name, "size": size, "title": about["title"], "note": ""}
            drawn = table_of(found | {"rows": [_parsed(row) for row in own]})
            lines += ["", f"## {name}, {size}: {about['title']}", ""]
            lines += [about["note"], ""] if "note" in about else []
            lines += [line(drawn.columns), line(["---"] * len(drawn.columns))]
            lines += [line(cells) for cells in drawn.rows]
            ran = [row for row in own if row["value"]] or own
            commits = dict.fromkeys(f"`{row['commit'][:12]}` ({row['hardware']})" for row in ran)
            seeds = own[0]["seeds"].replace(" ", ", ")
            lines += ["", f"Commit {', '.join(commits)}, seeds {seeds}."]
    return "\n".join(lines) + "\n"


def _parsed(row: Row) -> dict[str, Any]:
    """Return a row as `medmoe reproduce` has it."""
    words = ("family", "what", "verdict")
    found: dict[str, Any] = {name: row[name] for name in words}
    found |= {name: _number(row[name]) for name in REPRODUCED[9:16]}
    share = {end: _number(row[f"share_{end}".removesuffix("_value")]) for end in
             ("value", "low", "high")}  # fmt: skip
    found = {k: v for k, v in found.items() if v is not None or k in ("paper", "value")}
    return found | ({"share": share} if share["value"] is not None else {})


def _number(text: str) -> float | int | str | None:
    try:
        number = float(text)
    except ValueError:
        return text or None
    return int(number) if text.isdigit() else number


def line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


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
        "| model | score | its value | blind twin | question alone | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for split, task, called in SHOWN:
        found = [
            by
            for scores in map(headlines, _seeds_of(rows, split))
            for (_, name), by in scores.items()
            if name == called and next(iter(by.values()))["task"] == task
        ]
        lines += [
            _summary_row(split, called, system, by_run)
            for system in ("moe", "dense")
            if (by_run := [by[system] for by in found if system in by])
        ]
    return "\n".join(lines)


def _summary_row(split: str, called: str, system: str, by_run: list[Row]) -> str:
    """Return the results table's line of one score of one model, by seed."""
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
    model = MODELS.get(split, f"`medmoe train {split}`")
    return (
        f"| {model}{', phase 2' if system == 'dense' else ''} "
        f"| {_place(by_run[0])} {called} (n {by_run[0]['n']}) | {shown} "
        f"| {_mean([row['blind_twin'] for row in by_run])} | {sum(asked) / len(asked):.1f} "
        f"| {_verdict(by_run, above)} |"
    )


def _seeds_of(rows: list[Row], split: str) -> list[list[Row]]:
    """Return by seed the rows of the last demonstration on a split, or of a recipe."""
    own = [row for row in rows if row["data_split"] == split]
    if demonstrations := runs_of(own):
        return demonstrations[-1]
    seeds: dict[str, list[Row]] = {}
    for row in own:
        seeds.setdefault(row["seed"], []).append(row)
    return list(seeds.values())


def _verdict(by_run: list[Row], above: bool) -> str:
    """Return what may be claimed, by the blind twins of the runs that have one."""
    if not above:
        return "nothing shown to be learned from pictures"
    known = [row for row in by_run if row["share"]]
    if not known:
        return "above the question alone; no blind twin yet"
    if not all(float(row["share_low"]) > 0 for row in known):
        return "read from the questions"
    seeds = f" ({len(known)} of {len(by_run)} seeds)" if len(known) < len(by_run) else ""
    return f"the picture's share is {_mean([row['share'] for row in known])} points{seeds}"


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
        folder = Path(run)
        (record if (folder / "summary.json").is_file() else record_reproduction)(folder)
    rows = read()
    page_of = ROOT / "docs" / "reproduce.md"
    page_of.write_text(reproduce_page(read("reproduce.csv", REPRODUCED)), encoding="utf-8")
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
