"""From the scores of ``summary.json`` to the rows and plain sentences of the report.

A row stands for one task, split, subset, protocol and metric; beside each score stand its interval,
its n and its baselines, and sentences say what may be claimed from them and what not. No statistics
are computed here: values, intervals and baselines come with the scores, in percent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medmoe.evaluation.pages.page import percent as percent
from medmoe.evaluation.pages.page import points

Score = Mapping[str, Any]
Key = tuple[str, ...]
Table = Mapping[Key, Mapping[str, Score]]  # row → system → score

_KEY = ("task", "split", "subset", "protocol", "metric")
_BASELINES = {"constant_baseline": "constant-answer", "question_only_baseline": "question-only"}
_SYSTEMS = {"moe": "MoE", "sft": "SFT", "dense": "dense"}
_CONTROLS = {"blank": "blank image", "noise": "noise images", "shuffled": "shuffled images"}
OURS = ("strict", "label_score")  # the protocols that our headline scores use
_LEADING_METRICS = ("accuracy", "exact_match")
_BREAKDOWNS = ("modality:", "organ:", "answer_length:")
_TABLES = (
    *("Our protocol", "Other published protocols", "By question type"),
    "By modality, organ and length of the answer",
)
_MAIN_SUBSETS = ("closed", "open", "all")  # every other subset is a question type


@dataclass(frozen=True)
class Cell:
    """The score of one system, ready to print; ``fails`` says that it clears not all baselines."""

    value: str
    interval: str
    n: str
    fails: bool


@dataclass(frozen=True)
class Row:
    """The same score of every system, beside the baselines of its test set."""

    task: str
    what: str
    protocol: str
    cells: list[tuple[str, Cell | None]]
    n: str
    constant: str
    question_only: str


@dataclass(frozen=True)
class Control:
    """A score with the images taken away, beside the score with them."""

    task: str
    what: str
    system: str
    control: str
    n: str
    with_images: Cell | None
    without: Cell
    change: str


@dataclass(frozen=True)
class Results:
    """All that the report says about scores; ``headlines`` are (name, cell of the ``lead`` system).

    The lead is the MoE model where there is one, else the first system.
    """

    systems: list[str]
    lead: str
    tables: list[tuple[str, list[Row]]]
    controls: list[Control]
    headlines: list[tuple[str, Cell]]
    baseline_sentences: list[str]
    comparison_sentences: list[str]
    control_sentences: list[str]


def results(scores: Sequence[Score], comparisons: Sequence[Mapping[str, Any]] = ()) -> Results:
    """Arrange the scores of ``summary.json`` for the report, in the order in which they came."""
    table: dict[Key, dict[str, Score]] = {}
    for score in scores:
        if score.get("control") is None:
            table.setdefault(_key(score), {})[score["system"]] = score
    controls = [score for score in scores if score.get("control") is not None]
    systems = sorted({s for row in table.values() for s in row}, key=_system_order)
    lead = systems[0] if systems else ""
    leading = {key: row for key, row in table.items() if _leads(key)}
    tables = [
        (title, [_row(row, systems) for key, row in table.items() if _group(key) == title])
        for title in _TABLES
    ]
    leading_controls = [score for score in controls if _leads(_key(score))]
    return Results(
        systems=[system_name(system) for system in systems],
        lead=system_name(lead),
        tables=[(title, rows) for title, rows in tables if rows],
        controls=[_control(score, table) for score in leading_controls],
        headlines=[
            (f"{_place(row[lead])} {_what(row[lead])}", _cell(row[lead], row))
            for key, row in leading.items()
            if lead in row and key[2:4] != ("all", "strict")
        ],
        baseline_sentences=list(_baseline_sentences(_judged(table))),
        comparison_sentences=list(_comparison_sentences(comparisons)),
        control_sentences=[
            line for score in leading_controls if (line := _control_line(score, table))
        ],
    )


def _leads(key: Key) -> bool:
    """Return whether a row is one of the few that comparisons and controls are told of."""
    _, _, subset, protocol, metric = key
    return protocol in OURS and metric in _LEADING_METRICS and subset in _MAIN_SUBSETS


def _group(key: Key) -> str:
    if key[2].startswith(_BREAKDOWNS):
        return "By modality, organ and length of the answer"
    if key[2] not in _MAIN_SUBSETS:
        return "By question type"
    return "Our protocol" if key[3] in OURS else "Other published protocols"


def _judged(table: Table) -> Table:
    """Return the rows held against their baselines in words; the tables mark the others."""
    return {k: row for k, row in table.items() if k[3] in OURS and k[2] in _MAIN_SUBSETS}


def system_name(system: str) -> str:
    """Return the printed name of a system: MoE, SFT, others as they are."""
    return _SYSTEMS.get(system, system)


def interval(score: Score) -> str:
    """Return ``low–high``, the 95 % interval of a score; empty where it has none."""
    low, high = score.get("low"), score.get("high")
    return "" if low is None or high is None else f"{percent(low)}–{percent(high)}"


def _key(score: Score) -> Key:
    return tuple(str(score[name]) for name in _KEY)


def _system_order(system: str) -> tuple[bool, bool, str]:
    return system != "moe", system != "sft", system


def _what(score: Score) -> str:
    metric = str(score["metric"]).replace("_", " ")
    if score["protocol"] == "label_score":
        return metric if score["subset"] == "all" else f"{score['subset']} {metric}"
    return f"{score['subset']} {metric} ({score['protocol']})"


def _place(score: Score) -> str:
    return place(str(score["task"]), str(score["split"]))


def place(task: str, split: str) -> str:
    """Return the printed name of a task's split; that of VQA-RAD's standard test warns."""
    shared = " (shared images)" if (task, split) == ("vqa_rad", "test") else ""
    return f"{task}{shared} {split}".rstrip()


def _n(score: Score) -> str:
    return str(score.get("n", "–"))


def _number(score: Score) -> str:
    """Return ``96.2 (94.0–98.1, n = 400)``."""
    inside = [text for text in (interval(score), f"n = {_n(score)}") if text]
    return f"{percent(score.get('value'))} ({', '.join(inside)})"


def _baselines(row: Mapping[str, Score]) -> dict[str, float]:
    """Return the baselines of a row; they belong to the test set, so any system may carry them."""
    found: dict[str, float] = {}
    for field, name in _BASELINES.items():
        values = [s[field] for s in row.values() if s.get(field) is not None]
        if values:
            found[name] = float(values[0])
    return found


def _clears(score: Score, baseline: float) -> bool:
    low = score.get("low")
    return low is not None and low > baseline


def _cell(score: Score, row: Mapping[str, Score]) -> Cell:
    fails = not all(_clears(score, baseline) for baseline in _baselines(row).values())
    return Cell(percent(score.get("value")), interval(score), _n(score), fails)


def _row(row: Mapping[str, Score], systems: Sequence[str]) -> Row:
    first = next(iter(row.values()))
    baselines = _baselines(row)
    sizes = list(dict.fromkeys(_n(score) for score in row.values()))
    return Row(
        task=_place(first),
        what=_what(first),
        protocol=str(first["protocol"]),
        cells=[(system_name(s), _cell(row[s], row) if s in row else None) for s in systems],
        n=" / ".join(sizes),
        constant=percent(baselines.get("constant-answer")),
        question_only=percent(baselines.get("question-only")),
    )


def _baseline_sentences(table: Table) -> Iterator[str]:
    """Say of each score whether a baseline is as good, or that there is none to compare with."""
    for row in table.values():
        baselines = _baselines(row)
        for system, score in row.items():
            name = f"{system_name(system)}, {_place(score)}, {_what(score)}: {_number(score)}"
            beaten = {b: v for b, v in baselines.items() if not _clears(score, v)}
            if not baselines:
                yield f"{name} has no baseline beside it, so it cannot be judged here."
            elif score.get("value") is None or not interval(score):
                yield f"{name} has no interval, so it cannot be held against its baselines."
            elif beaten:
                which = " and the ".join(f"{b} baseline ({percent(v)})" for b, v in beaten.items())
                yield (
                    f"{name} does not clear the {which} outside its interval: "
                    "it does not show that the picture was used."
                )


def _comparison_sentences(comparisons: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Say of each paired comparison which system is better, or that none is shown to be."""
    for row in comparisons:
        a, b = system_name(row["a"]), system_name(row["b"])
        name = f"{place(row['task'], row['split'])}, {row['subset']}: {b} against {a}"
        text = f"{name} {points(row['difference'])} points"
        if row["low"] is None or row["high"] is None:
            yield f"{text}; a single image gives no interval, so this shows nothing."
            continue
        inside = f"{points(row['low'])} to {points(row['high'])}, McNemar p = {row['p']:.2g}"
        verdict = "the interval holds zero, so neither is shown to be better"
        if row["low"] > 0 or row["high"] < 0:
            verdict = f"{b if row['low'] > 0 else a} is better in this run"
        yield f"{text} ({inside}, n = {row['n']}): {verdict}."


def _control(score: Score, table: Table) -> Control:
    full = table.get(_key(score), {}).get(score["system"])
    change = "–"
    if full is not None and full.get("value") is not None and score.get("value") is not None:
        change = points(score["value"] - full["value"])
    return Control(
        task=_place(score),
        what=_what(score),
        system=system_name(score["system"]),
        control=_control_name(score),
        n=_n(score),
        with_images=None if full is None else _cell(full, {}),
        without=_cell(score, {}),
        change=change,
    )


def _control_line(score: Score, table: Table) -> str | None:
    full = table.get(_key(score), {}).get(score["system"])
    if full is None or full.get("value") is None or score.get("value") is None:
        return None
    name = (
        f"{system_name(score['system'])}, {_place(score)}, {_what(score)}: {_number(full)} with "
        f"the images, {_number(score)} with {_control_name(score)}"
    )
    if interval(full) and interval(score) and not _overlap(full, score):
        if score["value"] < full["value"]:
            points = percent(full["value"] - score["value"])
            return f"{name}. {points} points of the score need the picture."
        return f"{name}. The score is better without the picture: something is wrong."
    return f"{name}. This does not show that the score needs the picture."


def _control_name(score: Score) -> str:
    return _CONTROLS.get(score["control"], str(score["control"]))


def _overlap(one: Score, other: Score) -> bool:
    return bool(one["low"] <= other["high"] and other["low"] <= one["high"])
