"""How a record is put to the model, the same in training and in evaluation."""

from __future__ import annotations

from medmoe.data.schema import Record


def question_text(record: Record) -> str:
    """Return the question as asked: where an answer is to be chosen, the options stand behind."""
    if record.options:
        return f"{record.question} Options: {', '.join(record.options)}."
    return record.question


def turns_of(record: Record) -> tuple[tuple[str, str], ...]:
    """Return question, as asked, and answer of each turn of a record."""
    return ((question_text(record), record.answer), *record.further)
