"""Rows in the chat forms of trainers: what is said in turn, and the pictures.

Read are ``messages`` (TRL, LLaMA-Factory, ms-swift, OpenAI), ``conversations`` (ShareGPT, LLaVA,
LLaVA-Med), ``query`` and ``response`` (ms-swift), ``instruction``, ``input`` and ``output``
(Alpaca), and ``prompt`` and ``completion`` (TRL). A content may be a list of parts: text and
pictures; any other part is refused by name, and so are system prompts and tools.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from medmoe.errors import DataError, quoted

Row = dict[str, Any]
IMAGE_MARK = "<image>"

#: Columns with a list of what is said; the alignment file of LLaVA-Med misspells one.
_LISTS = ("messages", "conversations", "conversatons")
#: Columns with a question and its answer.
_PAIRS = (("query", "response"), ("instruction", "output"), ("prompt", "completion"))
#: What trainers write beside, and we cannot train on: it must be empty.
_NOT_TRAINED = ("system", "tools", "videos", "audios", "objects")
COLUMNS = (
    *(*_LISTS, "images", "history", "input"),
    *(*(name for pair in _PAIRS for name in pair), *_NOT_TRAINED),
)
#: Flags of LLaVA-Med's ``domain`` -> our modality.
_DOMAINS = {
    "chest_xray": "xray",
    "ct_scan": "ct",
    "gross": "gross pathology",
    "histology": "pathology",
    "mri": "mri",
}
_ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot"), "assistant"),
}
#: Blanks that `str.strip` leaves: zero width, and byte-order marks inside a text.
_BLANKS = "\u200b\u2060\ufeff"


def is_chat(row: Row) -> bool:
    """Return whether a row is in one of the forms."""
    names = (*_LISTS, *(question for question, _ in _PAIRS))
    return any(row.get(name) is not None for name in names)


def plain_text(value: object, name: str, where: str) -> str:
    """Return a value as stripped text; None and NaN are empty.

    Raises:
        DataError: It is a list, an object or a truth value.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        what = "a truth value" if isinstance(value, bool) else f"a {type(value).__name__}"
        raise DataError(
            f"{where}: {name} is {what} ({quoted(json.dumps(value, default=str), 40)}), text is "
            "needed; write it as text"
        )
    text = str(value).replace("\xa0", " ")
    return text.strip(f"{_BLANKS} \t\r\n\v\f")


def turns_of(
    row: Row, where: str, needs_answers: bool = True
) -> tuple[list[tuple[str, str]], list[int]]:
    """Return question and answer of each turn, and the place of each picture's mark or part.

    Args:
        needs_answers: Without, the last answer may be missing.

    Returns:
        Of the places those in a question are even: 0 in the first, 2 in the second; the place in
        an answer is that of its question and one more.

    Raises:
        DataError: Something else than a conversation of a user and an assistant stands there.
    """
    for name in _NOT_TRAINED:
        if row.get(name):
            raise DataError(f"{where}: {name} is not trained on; remove it, or empty it")
    said = [part for part in _said(row, where) if part[:2] != ("system", "")]
    if said and said[-1][:2] == ("assistant", "") and not needs_answers:
        said.pop()
    roles = [role for role, *_ in said]
    if not needs_answers and roles[-1:] == ["user"]:
        said.append(("assistant", "", 0))
        roles.append("assistant")
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise DataError(
            f"{where}: messages must be one of user, one of assistant, and so on in turn, found "
            f"[{', '.join(roles[:6])}]; correct the row or remove it"
        )
    texts = [text for _, text, _ in said]
    needed = texts if needs_answers else texts[:-1]
    if "" in needed:
        what = ("question", "answer")[needed.index("") % 2]
        raise DataError(f"{where}: empty {what}; fill it in or remove the row")
    places = [place for place, (*_, marks) in enumerate(said) for _ in range(marks)]
    return list(zip(texts[::2], texts[1::2], strict=True)), places


def _said(row: Row, where: str) -> list[tuple[str, str, int]]:
    """Return role, text and number of pictures of each contribution."""
    for name in _LISTS:
        if row.get(name):
            return [_turn(turn, name, where) for turn in _list(row[name], name, where)]
    said: list[tuple[str, str, int]] = []
    for turn in _list(row.get("history") or [], "history", where):
        if not isinstance(turn, list) or len(turn) != 2:
            raise DataError(f"{where}: history must hold pairs of question and answer; correct it")
        roles = zip(("user", "assistant"), turn, strict=True)
        said += [(role, *_content(text, "history", where)) for role, text in roles]
    for question, answer in _PAIRS:
        if not row.get(question):
            continue
        if isinstance(row[question], list):
            turns = [*row[question], *_list(row.get(answer) or [], answer, where)]
            return [*said, *(_turn(turn, question, where) for turn in turns)]
        asked = [_content(row[question], question, where)]
        if question == "instruction":
            asked.append(_content(row.get("input"), "input", where))
        text = "\n".join(filter(None, (text for text, _ in asked)))
        said.append(("user", text, sum(marks for _, marks in asked)))
        said.append(("assistant", *_content(row.get(answer), answer, where)))
    return said


def _list(value: object, name: str, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{where}: {name} is {type(value).__name__}, a list is needed; correct it")
    return value


def _turn(turn: object, name: str, where: str) -> tuple[str, str, int]:
    """Return role, text and number of pictures of one turn, under either pair of keys."""
    if not isinstance(turn, dict):
        raise DataError(f"{where}: {name} holds a {type(turn).__name__}, objects are needed")
    raw = plain_text(turn.get("role") or turn.get("from"), "role", where).lower()
    content = turn.get("content") if turn.get("content") is not None else turn.get("value")
    if turn.get("tool_calls") or turn.get("function_call"):
        raise DataError(f"{where}: a call of a tool cannot be trained on; remove it")
    role = _ROLES.get(raw, raw)
    text, marks = _content(content, "content", where)
    if role not in _ROLES.values() and text:
        raise DataError(
            f"{where}: a turn of {quoted(raw)} is not trained on; only user and assistant may "
            "speak, remove it"
        )
    return role, text, marks


def _content(value: object, name: str, where: str) -> tuple[str, int]:
    """Return a text, or those of a content's parts, without the marks of pictures, and how many."""
    parts = value if isinstance(value, list) else [{"type": "text", "text": value}]
    texts, marks = [], 0
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            texts.append(plain_text(part.get("text"), name, where))
        elif kind == "image":
            marks += 1
        else:
            what = type(part).__name__ if kind is None else quoted(str(kind))
            raise DataError(f"{where}: a part {what} cannot be read; text and image can, remove it")
    text = "\n".join(texts)
    return text.replace(IMAGE_MARK, "").strip(), marks + text.count(IMAGE_MARK)


def image_references(row: Row, where: str) -> list[Any]:
    """Return what ``image``, ``images`` and the parts of contents name, each once."""
    references: list[Any] = []
    for value in (row.get("images"), row.get("image"), *_parts_with_images(row)):
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except json.JSONDecodeError:
                raise DataError(f"{where}: images {quoted(value)} is no list; correct it") from None
        for one in value if isinstance(value, list) else [value]:
            if one not in (None, "", {}) and one not in references:
                references.append(one)
    return references


def _parts_with_images(row: Row) -> list[Any]:
    lists = (row.get(name) for name in (*_LISTS, "prompt"))
    turns: Sequence[Any] = next((one for one in lists if isinstance(one, list)), ())
    contents = [turn.get("content") for turn in turns if isinstance(turn, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return [
        part.get("image") or part.get("path") or part.get("url")
        for part in parts
        if isinstance(part, dict) and part.get("type") == "image"
    ]


def flagged_modality(row: Row) -> str | None:
    """Return the one modality that LLaVA-Med's ``domain`` flags, None for none or several."""
    domain = row.get("domain")
    if not isinstance(domain, dict):
        return None
    named = [name for key, name in _DOMAINS.items() if domain.get(key)]
    return named[0] if len(named) == 1 else None
