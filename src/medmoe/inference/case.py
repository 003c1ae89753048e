"""A case: one picture and what was asked and answered about it, as it may leave the program.

It is what the page exports and `medmoe chat` saves. It holds the words that were typed, technical
facts and evidence; never the name of a file, a tag of it, or (unless asked for) its pixels. Names
that somebody typed into a question stay: nobody can take them out safely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from medmoe.data.intake.facts import ImageFacts
from medmoe.inference.evidence import NOTE, Evidence

#: Raised with any change that a reader of the files would notice.
VERSION = 1


@dataclass(slots=True)
class Exchange:
    """One question and its answer.

    Attributes:
        complete: False where the answer was stopped or ran into its longest length.
        confidence: Probability of the answer, 0–1, not calibrated; None where it was stopped.
        picture: Facts of the picture as it was shown, None without one.
        warnings: About the picture and the answer, in words.
        evidence: As `Evidence.to_dict` gives it, None where it was not asked for.
    """

    question: str
    answer: str = ""
    complete: bool = False
    confidence: float | None = None
    picture: ImageFacts | None = None
    warnings: tuple[str, ...] = ()
    evidence: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as an object for JSON."""
        return {
            "question": self.question,
            "answer": self.answer,
            "complete": self.complete,
            "confidence": self.confidence,
            "picture": self.picture.to_json() if self.picture else None,
            "warnings": list(self.warnings),
            "evidence": self.evidence,
        }

    def add_evidence(self, found: Evidence | dict[str, Any]) -> None:
        """Take in what `explain` says about the question."""
        self.evidence = found.to_dict() if isinstance(found, Evidence) else found


def case_to_json(
    model: str, exchanges: Sequence[Exchange], picture: str | None = None
) -> dict[str, Any]:
    """Return a case as an object for JSON.

    Args:
        model: What to call the model: its name, not its path.
        picture: The picture as a data URI, where it was asked for.
    """
    found: dict[str, Any] = {
        "version": VERSION,
        "note": NOTE,
        "model": model,
        "exchanges": [exchange.to_json() for exchange in exchanges],
    }
    return found | ({"picture": picture} if picture else {})


def case_to_text(model: str, exchanges: Sequence[Exchange]) -> str:
    """Return a case as plain lines, to be pasted into a message."""
    lines = [NOTE, f"Model: {model}"]
    for exchange in exchanges:
        lines += ["", f"Question: {exchange.question}", f"Answer: {exchange.answer or '(empty)'}"]
        if exchange.confidence is not None:
            lines.append(f"Confidence: {100 * exchange.confidence:.0f} % (not calibrated)")
        if not exchange.complete:
            lines.append("The answer is not complete.")
        lines += [f"Warning: {warning}" for warning in exchange.warnings]
    return "\n".join(lines) + "\n"
