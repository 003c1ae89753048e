"""A case: one picture and what was asked and answered about it, and how it may leave the program.

The page and `medmoe chat` talk about one. What the page exports and `medmoe chat` saves holds the
words that were typed, technical facts and evidence; never the name of a file, a tag of it, or
(unless asked for) its pixels. Names that somebody typed into a question stay: nobody can take them
out safely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from medmoe.data.images import Picture, open_picture
from medmoe.data.intake.display import Plane, WindowChoice
from medmoe.data.intake.facts import ImageFacts
from medmoe.inference.answer import Routing, all_warnings, told_confidence
from medmoe.inference.chat import ChatChunk, ChatRequest, Turn
from medmoe.notice import RESEARCH_ONLY
from medmoe.numbers import probability

#: Raised with any change that a reader of the files would notice.
VERSION = 1


@dataclass(slots=True)
class Exchange:
    """One question and its answer.

    Attributes:
        complete: False where the answer was stopped or ran into its longest length.
        confidence: Probability of the answer, 0–1, not calibrated; None where it was stopped, or
            the picture is flat.
        routing: The router's decision, None for a dense model, without a picture, or where stopped.
        picture: Facts of the picture as it was shown, None without one.
        further, further_pictures: Routings and facts of further pictures.
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
    further: tuple[Routing | None, ...] = ()
    further_pictures: tuple[ImageFacts, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the exchange as an object for JSON."""
        content = asdict(self)
        del content["further"], content["further_pictures"]
        if self.further_pictures:
            content["further"] = [
                {"picture": asdict(facts), "routing": asdict(routing) if routing else None}
                for facts, routing in zip_longest(self.further_pictures, self.further)
            ]
        return content

    def take(self, chunk: ChatChunk) -> str:
        """Take in a piece of the answer and what comes with its last one; return its text."""
        self.answer += chunk.text
        self.complete = chunk.finish == "stop"
        if chunk.answer is not None:
            facts = (self.picture, *self.further_pictures)
            self.confidence = told_confidence(chunk.answer.confidence, *facts)
            self.routing, self.further = chunk.answer.routing, chunk.answer.further
            self.warnings = tuple(all_warnings(facts, (self.routing, *self.further)))
        if chunk.finish is not None:
            self.answer = self.answer.strip()
        return chunk.text


@dataclass(slots=True)
class Case:
    """One picture, or none, and the conversation about it, to which further ones may be added.

    Attributes:
        window: In which it is shown; None as the file says.
        frame: Which is shown; None for the default of the format.
        plane: Of a volume; None for that of its acquisition.
        added: Further pictures, each with the number of exchanges before it.
    """

    picture: Picture | None = None
    window: WindowChoice | None = None
    frame: int | None = None
    plane: Plane | None = None
    exchanges: list[Exchange] = field(default_factory=list)
    added: list[tuple[int, Picture]] = field(default_factory=list)

    def look(
        self, source: Path | bytes, window: WindowChoice | None = None, frame: int | None = None
    ) -> Picture:
        """Show the case's file, or another window or frame of it, and return what is shown.

        Raises:
            ImageError: It cannot be used; what was shown before stays.
        """
        picture = open_picture(source, window=window, frame=frame, plane=self.plane)
        self.picture, self.window, self.frame = picture, window, frame
        return picture

    def ask(self, question: str, max_new_tokens: int) -> tuple[Exchange, ChatRequest]:
        """Begin an exchange about the picture as it is shown.

        Returns:
            The exchange, which has no answer yet, and the conversation to answer: a question whose
            answer was stopped before its first word is left out of it.
        """
        turns: list[Turn] = []
        places: list[int] = []  # of each exchange; of one that is left out, the place of the next
        for earlier in self.exchanges:
            places.append(len(turns))
            if earlier.answer.strip():
                turns += [Turn("user", earlier.question), Turn("assistant", earlier.answer)]
        facts = self.picture.facts if self.picture else None
        others = tuple(picture.facts for _, picture in self.added)
        warnings = tuple(all_warnings((facts, *others), ()))
        exchange = Exchange(question, picture=facts, warnings=warnings, further_pictures=others)
        image = self.picture.image if self.picture else None
        places.append(len(turns))
        further = tuple((places[before], picture.image) for before, picture in self.added)
        turns.append(Turn("user", question))
        request = ChatRequest(tuple(turns), image, max_new_tokens, further=further)
        self.exchanges.append(exchange)
        return exchange, request


def case_to_json(
    model: str, exchanges: Sequence[Exchange], picture: str | None = None
) -> dict[str, Any]:
    """Return a case as an object for JSON.

    Args:
        model: What to call the model: its name, not its path.
        picture: The picture as a data URI, where it was asked for.
    """
    content: dict[str, Any] = {
        "version": VERSION,
        "note": RESEARCH_ONLY,
        "model": model,
        "exchanges": [exchange.to_json() for exchange in exchanges],
    }
    return content | ({"picture": picture} if picture else {})


def case_to_text(model: str, exchanges: Sequence[Exchange]) -> str:
    """Return a case as plain lines, to be pasted into a message."""
    lines = [RESEARCH_ONLY, f"Model: {model}"]
    for exchange in exchanges:
        lines += ["", f"Question: {exchange.question}", f"Answer: {exchange.answer or '(empty)'}"]
        if exchange.confidence is not None:
            lines.append(f"Confidence: {probability(exchange.confidence)} (not calibrated)")
        if not exchange.complete:
            lines.append("The answer is not complete.")
        lines += [f"Warning: {warning}" for warning in exchange.warnings]
    return "\n".join(lines) + "\n"
