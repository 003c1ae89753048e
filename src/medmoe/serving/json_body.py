"""JSON as clients send it: looked through first, and only then made into objects.

The look is linear, takes a bounded number of steps outside strings, and lets other threads in at
least once for each MiB. What passes has few values, is not deep, and has no long string but
plain ASCII (a picture), so that its objects take little more memory than its bytes. No duplicate
keys, no NaN, no half of a character.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from medmoe.serving.problems import ProblemError

MAX_DEPTH = 64
#: Brackets, commas, colons and strings; the largest conversation that is accepted has some 24,000.
MAX_ELEMENTS = 2**15
#: Only a picture is longer. Also the most bytes that are looked through at once.
LONG_STRING = 2**20
MAX_DIGITS = 100
_MARK = re.compile(rb'[][{},:"]')
_INSIDE = re.compile(rb'(?:[^"\\]{1,1024}+|\\.){0,1024}+', re.DOTALL)


class _JsonError(ValueError):
    """A JSON text that is refused for a reason of ours."""


def read_json(data: bytes) -> Any:
    """Return the JSON of a body.

    Raises:
        ProblemError: It is none, or is more than it should be.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
    try:
        _look_through(data)
        text = data.decode("utf-8")
        content = json.loads(
            text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_int=_integer
        )
        if "\\u" in text:  # half of a character can only come by an escape
            for piece in json.JSONEncoder(ensure_ascii=False).iterencode(content):
                piece.encode()
    except ValueError as error:
        reason = str(error) if isinstance(error, _JsonError) else "see RFC 8259"
        raise ProblemError(
            400, "bad_json", f"the body is no JSON that is accepted: {reason}"
        ) from None
    return content


def _look_through(data: bytes) -> None:
    """Refuse what would be too deep, too many values or too long a text, before it is parsed."""
    if b"\0" in data:
        raise ValueError  # as in UTF-16, whose brackets and strings would be taken for others
    ascii_only = data.isascii()
    place = depth = elements = 0
    while mark := _MARK.search(data, place, place + LONG_STRING):
        sign, place = mark[0], mark.end()
        depth += (sign in b"[{") - (sign in b"]}")
        elements += 1
        if depth > MAX_DEPTH:
            raise _JsonError(f"more than {MAX_DEPTH} levels")
        if elements > MAX_ELEMENTS:
            raise _JsonError("too many values")
        if sign == b'"':
            end = _end_of_string(data, place)
            if end - place > LONG_STRING and (
                data.find(b"\\u", place, end) >= 0 or not (ascii_only or data[place:end].isascii())
            ):
                raise _JsonError("a long string that is no picture")
            place = end + 1
    if place + LONG_STRING < len(data):
        raise ValueError


def _end_of_string(data: bytes, place: int) -> int:
    """Return where the string that begins here has its last quote."""
    while data[place : place + 1] != b'"':
        inside = _INSIDE.match(data, place)
        if inside is None or inside.end() == place:
            raise ValueError  # it never ends
        place = inside.end()
    return place


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise _JsonError("a key stands twice in one object")
    return content


def _no_constant(name: str) -> NoReturn:
    raise _JsonError(f"{name} is no number of JSON")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _JsonError(f"a number of more than {MAX_DIGITS} digits")
    return int(digits)
