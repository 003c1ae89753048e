"""How close a written report is to the true one, without a model: ROUGE-L, words, findings.

Findings are those of CheXpert, read by rules of our own, each as present or absent: the numbers are
not those of CheXpert's or CheXbert's labellers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from medmoe.evaluation.metrics import token_overlap

_FINDINGS = {
    "cardiomegaly": "cardiomegaly|heart size|cardiac silhouette|heart is|enlarged heart",
    "mediastinum": "mediastin",
    "opacity": "opacit|infiltrat|airspace|air space|lungs?(?: are| is)? clear",
    "consolidation": "consolidat",
    "pneumonia": "pneumonia",
    "edema": "o?edema|vascular congestion",
    "nodule": "nodul|mass(?:es)?\\b|lesion",
    "atelectasis": "atelecta|volume loss",
    "pneumothorax": "pneumothora",
    "effusion": "effusion|blunting",
    "fracture": "fracture",
    "device": "pacemaker|catheter|picc|sternotomy|surgical clip|tube\\b",
}
#: What says that a finding is absent: before it in its clause, or in it and up to a comma.
_DENIED_BEFORE = re.compile(r"\b(?:no|not|without|free of|negative for|absence of|clear of)\b")
_DENIED = re.compile(r"\b(?:normal|unremarkable|clear|not|absent|resolved)\b")


def report_scores(prediction: str, answer: str) -> dict[str, float]:
    """Return scores from 0 to 1.

    ``rouge_l``: F1 of the longest common subsequence of words (Lin 2004), in lower case without
    stemming. ``f1``: of the words, normalised. ``finding_f1``: of what is said present or absent;
    where neither report names a finding, they agree.
    """
    said, true = (re.findall(r"[a-z0-9]+", text.lower()) for text in (prediction, answer))
    named, known = findings(prediction), findings(answer)
    return {
        "rouge_l": _share(longest_common(said, true), len(said), len(true)),
        "f1": token_overlap(prediction, answer)[0],
        "finding_f1": _share(len(named & known), len(named), len(known)) if named | known else 1.0,
    }


def _share(shared: int, said: int, true: int) -> float:
    return 2 * shared / (said + true) if said + true else 0.0


def longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence."""
    before = [0] * (len(b) + 1)
    for word in a:
        row = [0]
        for place, other in enumerate(b):
            row.append(before[place] + 1 if word == other else max(before[place + 1], row[-1]))
        before = row
    return before[-1]


def findings(report: str) -> frozenset[tuple[str, bool]]:
    """Return the findings that a report names, each with whether it is present."""
    named = set()
    for clause in re.split(r"[.;\n]+|\b(?:but|however|although|with)\b", report.lower()):
        for name, words in _FINDINGS.items():
            for mention in re.finditer(words, clause):
                before, after = clause[: mention.start()], clause[mention.start() :]
                denied = _DENIED_BEFORE.search(before) or _DENIED.search(after.partition(",")[0])
                named.add((name, not denied))
    return frozenset(named)
