"""The report of `medmoe score`: any model's answers as score rows, then as any run's page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medmoe.evaluation.pages.report import ReportData, write_report
from medmoe.evaluation.pages.run_report import paper_section
from medmoe.evaluation.pages.sections.reliability import reliability_section

MAIN_SUBSETS = ("closed", "open", "all")
_SYSTEM = "answers"
#: What is shown of each protocol; the JSON holds every metric. Question types: strict accuracy.
_SHOWN: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "strict": {
        "closed": ("accuracy",),
        "open": ("exact_match", "f1", "recall"),
        "all": ("accuracy",),
    },
    "reference": {
        "closed": ("accuracy",),
        "open": ("recall", "exact_match", "f1", "bleu1", "bleu2", "bleu3"),
    },
    "llava_med": {"closed": ("accuracy",), "open": ("recall", "f1")},
    "token_f1": {"closed": ("accuracy", "f1"), "open": ("f1",), "all": ("f1",)},
    "label_score": {"all": ("accuracy", "auc")},
}


def write_score_report(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Write the page of what ``score --json`` holds of each file, whole or not at all.

    Raises:
        GuardError: The disk is full.
        MedMoeError: The file cannot be written.
    """
    names = [_name(result, len(results) > 1) for result in results]
    scores = [
        row for name, result in zip(names, results, strict=True) for row in score_rows(result, name)
    ]
    trusted = {
        name: result["reliability"]
        for name, result in zip(names, results, strict=True)
        if "reliability" in result
    }
    sections = (
        reliability_section({"reliability": trusted}), paper_section(scores, lead=_SYSTEM)
    )  # fmt: skip
    notes = list(dict.fromkeys(note for result in results for note in result["notes"]))
    files = ", ".join(str(result["predictions"]) for result in results)
    data = ReportData(
        title=f"Scores of {files}",
        summary={
            "data": ", ".join(dict.fromkeys(str(result["truth"]) for result in results)),
            "seed": results[0]["seed"],
            "scores": scores,
        },
        sections=[section for section in sections if section is not None],
        notes=[note[0].upper() + note[1:] + "." for note in notes],
    )
    write_report(path, data)


def _name(result: Mapping[str, Any], several: bool) -> str:
    """Return what the rows of a file are called: the task, or a name that no other file has."""
    if several:
        return str(result["predictions"])
    return str(result["task"] or result["truth"])


def shown(protocol: str, subsets: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield subset and metric of the cells of a protocol that people are shown first."""
    for subset, metrics in _SHOWN[protocol].items():
        yield from ((subset, metric) for metric in metrics if metric in subsets.get(subset, {}))


def score_rows(result: Mapping[str, Any], task: str) -> Iterator[dict[str, Any]]:
    """Yield the shown cells of ``score --json`` as rows of a ``summary.json``.

    The constant baseline is the best constant answer.
    """
    for protocol, subsets in result["protocols"].items():
        types = [name for name in subsets if name not in MAIN_SUBSETS]
        chosen = list(shown(protocol, subsets))
        if protocol in ("strict", "label_score"):
            chosen += [(name, "accuracy") for name in types]
        for subset, metric in chosen:
            blind = {
                name: cells[protocol][subset][metric]["value"]
                for name, cells in result["baselines"].items()
                if metric in cells.get(protocol, {}).get(subset, {})
            }
            yield {
                "system": _SYSTEM,
                "task": task,
                "split": "",
                "subset": subset,
                "protocol": protocol,
                "metric": metric,
                **subsets[subset][metric],
                "constant_baseline": blind.get("constant"),
                "question_only_baseline": blind.get("question_only"),
                "control": None,
            }
