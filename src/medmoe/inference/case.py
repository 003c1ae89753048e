"""A case: one picture and what was asked and answered about it, as it may leave the program.

It is what the page exports and `medmoe chat` saves. It holds the words that were typed, technical
facts and evidence; never the name of a file, a tag of it, or (unless asked for) its pixels. Names
that somebody typed into a question stay: nobody can take them out safely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from medmoe.data.intake.facts import ImageFacts
from medmoe.inference.answer import Answer, Routing, disagreements
from medmoe.inference.evidence import NOTE

#: Raised with any change that a reader of the files would notice.
VERSION = 1


@dataclass(slots=True)
class Exchange:
    """One question and its answer.

    Attributes:
        complete: False where the answer was stopped or ran into its longest length.
        confidence: Probability of the answer, 0–1, not calibrated; None where it was stopped.
        routing: The router's decision, None for a dense model, without a picture, or where stopped.
        picture: Facts of the picture as it was shown, None without one.
        warnings: About the picture and the answer, in words.
        evidence: As `Evidence.to_dict` gives it, None where it was not asked for.
    """

    question: str
    answer: str = ""
    complete: bool = False
    confidence: float | None = None
    routing: Routing | None = None
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
            "routing": asdict(self.routing) if self.routing else None,
            "picture": self.picture.to_json() if self.picture else None,
            "warnings": list(self.warnings),
            "evidence": self.evidence,
        }

    def take(self, answer: Answer) -> None:
        """Take in what came with the last words of the answer."""
        self.confidence, self.routing = answer.confidence, answer.routing
        modality = self.picture.modality if self.picture else None
        self.warnings += tuple(disagreements(answer.routing, modality))


def begin(question: str, facts: ImageFacts | None) -> Exchange:
    """Return an exchange that has no answer yet, with the warnings about its picture."""
    return Exchange(question, picture=facts, warnings=tuple(facts.sentences()) if facts else ())


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
