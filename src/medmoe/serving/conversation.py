"""From the messages of a chat request to the turns of a conversation."""

from __future__ import annotations

from collections.abc import Sequence

from medmoe.inference.chat import Turn
from medmoe.serving.problems import ProblemError
from medmoe.serving.schema import Message, TextPart
from medmoe.serving.settings import ServerSettings


def turns_of(messages: Sequence[Message], settings: ServerSettings) -> tuple[Turn, ...]:
    """Return the turns; what system messages say stands before the user's first words.

    The models are trained without system messages of a user's, so theirs are words like others.
    Messages of one role in a row are one turn; the image's place in the text does not matter, as
    it stands before the first.

    Raises:
        ProblemError: There are no words, too many, or the user is not first and last.
    """
    turns: list[tuple[str, list[str]]] = []
    before: list[str] = []
    for message in messages:
        words = _words(message)
        if message.role in {"system", "developer"}:
            before += words
        elif turns and turns[-1][0] == message.role:
            turns[-1][1].extend(words)
        else:
            turns.append((message.role, words))
    if not turns or turns[0][0] != "user" or turns[-1][0] != "user":
        raise _bad("bad_conversation", "the user's messages must be the first and the last")
    turns[0] = ("user", before + turns[0][1])
    joined = tuple(
        Turn("user" if role == "user" else "assistant", "\n".join(words)) for role, words in turns
    )
    _check(joined, settings)
    return joined


def _check(turns: Sequence[Turn], settings: ServerSettings) -> None:
    if not turns[-1].text.strip():
        raise _bad("no_question", "the last message has no words; ask something")
    if len(turns) > settings.max_turns:
        raise _bad("too_many_turns", f"at most {settings.max_turns} turns; begin anew")
    length = sum(len(turn.text) for turn in turns)
    if length > settings.max_text:
        limit = f"{settings.max_text:,}"
        raise _bad(
            "prompt_too_long", f"{length:,} characters of text; at most {limit} are accepted"
        )


def _words(message: Message) -> list[str]:
    if isinstance(message.content, str):
        return [message.content]
    return [part.text for part in message.content or () if isinstance(part, TextPart)]


def _bad(code: str, message: str) -> ProblemError:
    return ProblemError(400, code, message, param="messages")
