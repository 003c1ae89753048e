"""Reading what an unknown client sends costs no more than its length: counted, never timed."""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
from tests.serving.parsers import PARSERS, Call, reads
from tests.serving.support import Inside, data_url, png, question

from medmoe.serving.json_body import LONG_STRING, MAX_ELEMENTS, read_json
from medmoe.serving.problems import ProblemError
from medmoe.serving.schema import read_chat


@contextmanager
def counted_steps() -> Iterator[list[int]]:
    """Count the lines that run and the functions in C that are called."""
    steps = [0]

    def line(frame: FrameType, event: str, argument: Any) -> Any:
        steps[0] += event == "line"
        return line

    def called(frame: FrameType, event: str, argument: Any) -> None:
        steps[0] += event == "c_call"

    before = sys.gettrace(), sys.getprofile()
    sys.settrace(line)
    sys.setprofile(called)
    try:
        yield steps
    finally:
        sys.settrace(before[0])
        sys.setprofile(before[1])


def steps_of(call: Call) -> int:
    reads(call)  # what is made once is made
    with counted_steps() as steps:
        reads(call)
    return steps[0]


@pytest.mark.parametrize("name", PARSERS)
def test_the_work_grows_no_faster_than_the_input(name: str) -> None:
    once, four, sixteen = (steps_of(PARSERS[name](times * 6_000)) for times in (1, 4, 16))
    assert four <= 5 * once
    assert sixteen <= 20 * once


def peak_of(data: bytes) -> int:
    """Return the most bytes that reading takes beside the body itself.

    The least of three readings: what other threads of the process take meanwhile is counted too.
    """
    peaks = []
    for _ in range(3):
        tracemalloc.start()
        try:
            reads(lambda: read_chat(data))
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return min(peaks)


SIZE = 8 * 2**20


@pytest.mark.parametrize(
    "data",
    [
        b'{"model":"tiny","messages":[' + b"{}," * (SIZE // 3) + b"{}]}",
        b"[" * SIZE,
        b"[" + b"[]," * (SIZE // 3) + b"[]]",
        b"{" + b",".join(b'"%d":0' % n for n in range(SIZE // 12)) + b"}",
        b'["' + b"a" * SIZE + "\U0001f600".encode() + b'"]',
        b'["' + b"a" * SIZE + b'\\ud83d\\ude00"]',
        b'["\\u00e4\\ud83d\\ude00", "' + b"a" * SIZE + b'"]',
        '["\U0001f600", "'.encode() + b"a" * SIZE + b'"]',
        b'["' + b'","' * (SIZE // 3) + b'"]',
        b"[1" + b"0" * SIZE + b"]",
    ],
    ids=["objects", "depth", "lists", "keys", "emoji", "escape", "escapes", "emoji apart", "texts",
         "number"],
)  # fmt: skip
def test_objects_take_at_most_eight_times_the_body(data: bytes) -> None:
    assert peak_of(data) <= 8 * len(data)


def test_the_largest_conversation_passes() -> None:
    words = [{"type": "text", "text": ",[{" * 5}]
    turns = [{"role": role, "content": words} for role in ("user", "assistant")] * 512
    assert (
        len(read_chat(json.dumps({"model": "tiny", "messages": turns}).encode()).messages) == 1024
    )


def test_a_picture_of_many_bytes_passes_also_as_others_write_it() -> None:
    """Some encoders escape every slash, and the question may be in any language."""
    text = json.dumps(question("Gibt es Auffälligkeiten? \U0001f600")).encode()
    picture = data_url(b"\xff" * LONG_STRING).replace("/", "\\/").encode()
    assert len(picture) > LONG_STRING
    data = text.replace(b'"model"', b'"user": "' + picture + b'", "model"', 1)
    assert read_json(data)["user"] == data_url(b"\xff" * LONG_STRING)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[" + b"0," * MAX_ELEMENTS + b"0]", "too many values"),
        (b"[" * 65, "64 levels"),
        (b'["' + b"\xc3\xa4" * LONG_STRING + b'"]', "long string"),
        (b"[" + b"1" * 101 + b"]", "digits"),
        ('["a"]'.encode("utf-16-le"), "RFC 8259"),
        (b'["' + b"\\" * 9, "RFC 8259"),
        (b" " * (2 * LONG_STRING) + b"]", "RFC 8259"),
    ],
)
def test_what_is_refused_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(ProblemError, match=reason):
        read_json(data)


@pytest.mark.parametrize("charset", ["punycode", "latin-1", "utf-16", '"UTF-7"', "idna"])
@pytest.mark.parametrize("path", ["/v1/files", "/v1/chat/completions"])
def test_text_in_another_encoding_than_utf_8_is_refused(
    inside: Inside, path: str, charset: str
) -> None:
    kind = "multipart/form-data; boundary=x" if path == "/v1/files" else "application/json"
    body = {"type": "http.request", "body": b"a" * 9}
    status, _, reply = inside.exchange(
        "POST", path, body, content_length="9", content_type=f"{kind}; charset={charset}"
    )
    assert (status, json.loads(reply)["error"]["code"]) == (415, "unsupported_charset")


@pytest.mark.parametrize("charset", ["utf-8", '"UTF-8"', "utf8"])
def test_text_that_is_said_to_be_in_utf_8_is_taken(talk: Any, charset: str) -> None:
    kind = f"application/json; charset={charset}"
    body = json.dumps(question(image=png())).encode()
    reply = talk("POST", "/v1/chat/completions", content=body, headers={"Content-Type": kind})
    assert reply.status_code == 200
