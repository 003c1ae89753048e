"""From the scores of ``summary.json`` to the tables and plain sentences of the report.

A row stands for one task, split, subset, protocol and metric; beside each score stand its interval,
its n and its baselines, and sentences say what may be claimed from them and what not. No statistics
are computed here: values, intervals and baselines come with the scores, in percent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medmoe import numbers
from medmoe.evaluation.pages.table import FAILS, Table
from medmoe.evaluation.score.measures import MAIN_SUBSETS
from medmoe.numbers import count, percent, points, with_interval

Score = Mapping[str, Any]
Key = tuple[str, ...]
Scores = Mapping[Key, Mapping[str, Score]]  # row → system → score

_KEY = ("task", "split", "subset", "protocol", "metric")
_BASELINES = {"constant_baseline": "constant-answer", "question_only_baseline": "question-only"}
_SHARE = "Picture's share"
_SYSTEMS = {"moe": "MoE", "sft": "SFT", "dense": "dense", "blind_twin": "blind twin"}
_CONTROLS = {"blank": "blank image", "noise": "noise images", "shuffled": "shuffled images"}
OURS = ("strict", "label_score", "letter", "report")  # the protocols that our headline scores use
_LEADING_METRICS = ("accuracy", "exact_match")
_BREAKDOWNS = ("modality:", "organ:", "answer_length:")
#: The tables by what they hold; the last two under our protocols only.
OUR_PROTOCOL, OTHER_PROTOCOLS = "Our protocol", "Other published protocols"
JUDGED = "Judged by a language model"
BY_TYPE, BY_PART = "By question type", "By modality, organ and length of the answer"
_UPPER_BOUND = "≤ "
#: What begins a cell of a score table → what it means.
_LEGEND = {
    FAILS: "the score does not clear its baselines outside its interval.",
    _UPPER_BOUND: "this constant answer was chosen on the scored answers: an upper bound.",
}
_SHARE_LEGEND = (
    "Blind twin: the same training without pictures. Picture's share: the score of {} − that of "
    "its twin; where its interval holds zero, the score is read from the questions."
)


@dataclass(frozen=True)
class Headline:
    """One of the few scores that stand first.

    Attributes:
        fails: Whether it clears not all of its baselines.
        share: The picture's share; empty where there is no blind twin.
    """

    name: str
    value: str
    interval: str
    n: str
    fails: bool
    share: str


@dataclass(frozen=True)
class Results:
    """All that the report says about scores; ``headlines`` are those of the ``lead`` system.

    The lead is the MoE model where there is one, else the first system.

    Attributes:
        tables: By what they hold: `OUR_PROTOCOL` and its like; those without a row are left out.
        legend: What the marks in the tables mean.
        controls: The scores with the images taken away, beside those with them.
    """

    systems: list[str]
    lead: str
    tables: dict[str, Table]
    legend: list[str]
    controls: Table | None
    headlines: list[Headline]
    baseline_sentences: list[str]
    share_sentences: list[str]
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
    lead = lead_system(scores)
    leading = {key: row for key, row in table.items() if _leads(key)}
    # Held against their baselines in words; the tables mark the others.
    judged = {k: row for k, row in table.items() if k[3] in OURS and k[2] in MAIN_SUBSETS}
    titles = (OUR_PROTOCOL, OTHER_PROTOCOLS, JUDGED, BY_TYPE, BY_PART)
    groups = {t: [row for key, row in table.items() if _group(key) == t] for t in titles}
    tables = {t: _table(t, rows, systems) for t, rows in groups.items() if rows}
    leading_controls = [score for score in controls if _leads(_key(score))]
    legend = [
        mark + text
        for mark, text in _LEGEND.items()
        if any(cell.startswith(mark) for t in tables.values() for row in t.rows for cell in row)
    ]
    if any(_SHARE in t.columns for t in tables.values()):
        legend.append(_SHARE_LEGEND.format(system_name(lead)))
    return Results(
        systems=[system_name(system) for system in systems],
        lead=system_name(lead),
        tables=tables,
        legend=legend,
        controls=Table(
            ("Task", "Score", "System", "Control", "With images", "Without", "Change", "n"),
            [_control_row(score, table) for score in leading_controls],
            "Control: how much of the score needs the picture?",
            4,
            by_first=True,
        )
        if leading_controls
        else None,
        headlines=[
            _headline(row[lead], row)
            for key, row in leading.items()
            if lead in row and key[2:4] != ("all", "strict")
        ],
        baseline_sentences=list(_baseline_sentences(judged)),
        share_sentences=[
            line
            for row in leading.values()
            for score in row.values()
            for line in _share_line(score)
        ],
        comparison_sentences=list(_comparison_sentences(comparisons)),
        control_sentences=[
            line for score in leading_controls if (line := _control_line(score, table))
        ],
    )


def lead_system(scores: Sequence[Score]) -> str:
    """Return the system whose scores are ours: the MoE model where there is one."""
    systems = {str(score["system"]) for score in scores if score.get("control") is None}
    return min(systems, key=_system_order, default="")


def _leads(key: Key) -> bool:
    """Return whether a row is one of the few that comparisons and controls are told of."""
    _, _, subset, protocol, metric = key
    return protocol in OURS and metric in _LEADING_METRICS and subset in MAIN_SUBSETS


def _group(key: Key) -> str | None:
    """Return which table a row stands in; parts of the questions under our protocols only."""
    _, _, subset, protocol, _ = key
    if protocol == "judge":
        return JUDGED
    if subset in MAIN_SUBSETS:
        return OUR_PROTOCOL if protocol in OURS else OTHER_PROTOCOLS
    if protocol not in OURS:
        return None
    return BY_PART if subset.startswith(_BREAKDOWNS) else BY_TYPE


def system_name(system: str) -> str:
    """Return the printed name of a system: MoE, SFT, others as they are."""
    return _SYSTEMS.get(system, system)


def interval(score: Score) -> str:
    """Return ``low–high``, the 95 % interval of a score; empty where it has none."""
    return numbers.interval(score.get("low"), score.get("high"))


def value_cell(score: Score | None) -> str:
    """Return ``91.6 (88.9–94.1)`` for the cell of a table; a dash where there is no score."""
    score = score or {}
    return with_interval(score.get("value"), score.get("low"), score.get("high"))


def share_cell(score: Score) -> str:
    """Return ``+2.6 (−2.4 to +7.9)``, the picture's share; a dash where it is not known."""
    share = score.get("share") or {}
    return numbers.gain(share.get("value"), share.get("low"), share.get("high"))


def _key(score: Score) -> Key:
    return tuple(str(score[name]) for name in _KEY)


def _system_order(system: str) -> tuple[bool, bool, str]:
    return system != "moe", system != "sft", system


def _what(score: Score) -> str:
    metric = str(score["metric"]).replace("_", " ")
    if score["protocol"] == "label_score":
        metric += " (label_score)"
        return metric if score["subset"] == "all" else f"{score['subset']} {metric}"
    return f"{score['subset']} {metric} ({score['protocol']})"


def _place(score: Score) -> str:
    return place(str(score["task"]), str(score["split"]))


def place(task: str, split: str) -> str:
    """Return the printed name of a task's split; that of VQA-RAD's standard test warns."""
    shared = " (shared images)" if task in ("vqa_rad", "vqa_rad_hub") and split == "test" else ""
    return f"{task}{shared} {split}".rstrip()


def _n(score: Score) -> str:
    return count(score["n"]) if "n" in score else numbers.NONE


def _number(score: Score) -> str:
    """Return ``96.2 (94.0–98.1, n = 400)``."""
    inside = [text for text in (interval(score), f"n = {_n(score)}") if text]
    return f"{percent(score.get('value'))} ({', '.join(inside)})"


def _baselines(row: Mapping[str, Score]) -> dict[str, float]:
    """Return the baselines of a row; they belong to the test set, so any system may carry them."""
    known: dict[str, float] = {}
    for field, name in _BASELINES.items():
        values = [s[field] for s in row.values() if s.get(field) is not None]
        if values:
            known[name] = float(values[0])
    return known


def _clears(score: Score, baseline: float) -> bool:
    low = score.get("low")
    return low is not None and low > baseline


def _fails(score: Score, row: Mapping[str, Score]) -> bool:
    share = score.get("share")
    seen = share is None or (share["low"] is not None and share["low"] > 0)
    return not (seen and all(_clears(score, base) for base in _baselines(row).values()))


def _headline(score: Score, row: Mapping[str, Score]) -> Headline:
    name = f"{_place(score)} {_what(score)}"
    value = percent(score.get("value"))
    share = share_cell(score) if score.get("share") else ""
    return Headline(name, value, interval(score), _n(score), _fails(score, row), share)


def _table(title: str, rows: Sequence[Mapping[str, Score]], systems: Sequence[str]) -> Table:
    """Return a table with a column for each system, beside the baselines of its test set."""
    baselines = ("Constant", "Question only", "Blind twin", _SHARE)
    columns = ["Task", "Score", *map(system_name, systems), *baselines, "n"]
    cells = [_row(row, systems) for row in rows]
    known = [
        column
        for column, name in enumerate(columns)
        if name not in baselines[1:] or any(row[column] != numbers.NONE for row in cells)
    ]
    kept = [tuple(row[column] for column in known) for row in cells]
    return Table([columns[c] for c in known], kept, title, text_columns=2, by_first=True)


def _row(row: Mapping[str, Score], systems: Sequence[str]) -> tuple[str, ...]:
    first = next(iter(row.values()))
    lead = row[min(row, key=_system_order)]
    baselines = _baselines(row)
    constant = percent(baselines.get("constant-answer"))
    if constant != numbers.NONE and any(s.get("constant_chosen_on") for s in row.values()):
        constant = _UPPER_BOUND + constant
    return (
        _place(first),
        _what(first),
        *(
            (FAILS if s in row and _fails(row[s], row) else "") + value_cell(row.get(s))
            for s in systems
        ),
        constant,
        percent(baselines.get("question-only")),
        percent(lead.get("blind_twin")),
        share_cell(lead),
        " / ".join(dict.fromkeys(_n(score) for score in row.values())),
    )


def _baseline_sentences(table: Scores) -> Iterator[str]:
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


def _share_line(score: Score) -> Iterator[str]:
    """Say what of a score the pictures gave, or that it is read from the questions."""
    share = score.get("share")
    if share is None:
        return
    name = f"{system_name(score['system'])}, {_place(score)}, {_what(score)}"
    text = (
        f"{name}: {percent(score['value'])}, its blind twin {percent(score['blind_twin'])}; the "
        f"picture's share is {share_cell(score)} points"
    )
    if share["low"] is None:
        yield f"{text}; a single image gives no interval, so this shows nothing."
    elif share["low"] > 0:
        yield f"{text}."
    elif share["high"] < 0:
        yield f"{text}: the pictures made it worse."
    else:
        yield f"{text}: read from the questions."


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
        yield f"{text} ({inside}, n = {count(row['n'])}): {verdict}."


def _control_row(score: Score, table: Scores) -> tuple[str, ...]:
    full = table.get(_key(score), {}).get(score["system"], {})
    values = score.get("value"), full.get("value")
    return (
        _place(score),
        _what(score),
        system_name(score["system"]),
        _control_name(score),
        value_cell(full),
        value_cell(score),
        points(None if None in values else score["value"] - full["value"]),
        _n(score),
    )


def _control_line(score: Score, table: Scores) -> str | None:
    full = table.get(_key(score), {}).get(score["system"])
    if full is None or full.get("value") is None or score.get("value") is None:
        return None
    name = (
        f"{system_name(score['system'])}, {_place(score)}, {_what(score)}: {_number(full)} with "
        f"the images, {_number(score)} with {_control_name(score)}"
    )
    apart = (
        interval(full)
        and interval(score)
        and (score["high"] < full["low"] or full["high"] < score["low"])
    )
    if apart:
        if score["value"] < full["value"]:
            lost = percent(full["value"] - score["value"])
            if full.get("share"):  # a model that always had a picture may be lost without one
                return f"{name}. {lost} points are lost; what the picture gave, its twin says."
            return f"{name}. {lost} points of the score need the picture."
        return f"{name}. The score is better without the picture: something is wrong."
    return f"{name}. This does not show that the score needs the picture."


def _control_name(score: Score) -> str:
    return _CONTROLS.get(score["control"], str(score["control"]))
