"""An endpoint: what it is sent, how often, and what becomes of an answer that does not come."""

from __future__ import annotations

import base64
import io
import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medmoe.errors import ConfigError
from medmoe.inference import endpoint as module
from medmoe.inference.endpoint import Endpoint

Sent = tuple[dict[str, str], dict[str, Any]]  # headers and body of a request
TALK = [("user", "Is there a mass?"), ("assistant", "yes"), ("user", "Where?")]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAITS", (0.0, 0.0, 0.0))


@contextmanager
def serving(reply: Callable[[int, str], tuple[int, Any]]) -> Iterator[tuple[str, list[Sent]]]:
    """Serve what ``reply`` makes of a request's number and last words; yield address and requests.

    A status of 302 leads to the body.
    """
    sent: list[Sent] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            sent.append((dict(self.headers) | {"path": self.path}, body))
            status, content = reply(len(sent), body["messages"][-1]["content"][-1]["text"])
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            if status == 302:
                self.send_header("Location", content)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", sent
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def said(text: str | None, finish: str = "stop") -> tuple[int, dict[str, Any]]:
    return 200, {"choices": [{"message": {"content": text}, "finish_reason": finish}]}


def picture(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 17, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_a_request_holds_the_turns_the_pixels_and_the_key() -> None:
    with serving(lambda *_: said(" left \n")) as (url, sent):
        asked = Endpoint(f"{url}/", "some/model", "secret", 2)
        asked.max_new_tokens = 7
        (reply,) = asked.answers([picture()], [TALK])
        Endpoint(url, "some/model", None, 2).answers([picture()], [TALK])
    assert (reply.text, reply.cut, reply.failed, reply.routing) == ("left", False, None, None)
    assert math.isnan(reply.confidence)
    (headers, body), (without, _) = sent
    assert headers["path"] == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert "Authorization" not in without
    messages = body.pop("messages")
    assert body == {"model": "some/model", "max_tokens": 7, "temperature": 0}
    assert [m["role"] for m in messages] == ["user", "assistant", "user"]
    assert [m["content"][-1]["text"] for m in messages] == [words for _, words in TALK]
    assert [len(m["content"]) for m in messages] == [2, 1, 1]
    kind, data = messages[0]["content"][0]["image_url"]["url"].split(",")
    assert kind == "data:image/png;base64"
    shown = Image.open(io.BytesIO(base64.b64decode(data)))
    assert np.array_equal(np.asarray(shown), np.asarray(picture()))


def test_further_pictures_stand_in_their_messages() -> None:
    with serving(lambda *_: said("left")) as (url, sent):
        asked = Endpoint(url, "m", None, 1)
        asked.answers([picture(0)], [TALK], [((0, picture(1)), (2, picture(2)))])
    ((_, body),) = sent
    kinds = [[part["type"] for part in message["content"]] for message in body["messages"]]
    assert kinds == [["image_url", "image_url", "text"], ["text"], ["image_url", "text"]]
    urls = [
        part["image_url"]["url"]
        for message in body["messages"]
        for part in message["content"]
        if part["type"] == "image_url"
    ]
    for seed, url in enumerate(urls):
        shown = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
        assert np.array_equal(np.asarray(shown), np.asarray(picture(seed)))


def test_answers_come_in_the_order_of_the_questions() -> None:
    with serving(lambda _, words: said(words[::-1])) as (url, _):
        talks = [[("user", f"question {n}")] for n in range(20)]
        replies = Endpoint(url, "m", None, 6).answers([picture()] * 20, talks)
    assert [reply.text for reply in replies] == [f"question {n}"[::-1] for n in range(20)]


@pytest.mark.parametrize(
    ("reply", "text", "cut", "failed"),
    [
        (said("a long", "length"), "a long", True, False),
        (said(None, "length"), "", True, False),
        (said("no", "content_filter"), "no", False, True),
    ],
)
def test_what_ended_an_answer_is_kept(
    reply: tuple[int, Any], text: str, cut: bool, failed: bool
) -> None:
    with serving(lambda number, _: reply if number == 1 else said("else")) as (url, _):
        one, other = Endpoint(url, "m", None, 1).answers([picture()] * 2, [TALK] * 2)
    assert (one.text, one.cut, bool(one.failed)) == (text, cut, failed)
    assert other.text == "else"


@pytest.mark.parametrize("first", [(503, b"busy"), (429, b"busy"), (200, b"no JSON"), (200, {})])
def test_what_may_pass_is_tried_again(first: tuple[int, Any]) -> None:
    with serving(lambda number, _: first if number < 4 else said("yes")) as (url, sent):
        (reply,) = Endpoint(url, "m", None, 1).answers([picture()], [TALK])
    assert (reply.text, reply.failed, len(sent)) == ("yes", None, 4)


def test_tries_have_an_end_and_the_failed_answer_says_why() -> None:
    with serving(lambda _, words: (503, b"out\nof memory") if words == "a" else said("b")) as found:
        url, sent = found
        talks = [[("user", "a")], [("user", "b")]]
        failed, answered = Endpoint(url, "m", None, 1).answers([picture()] * 2, talks)
    assert (failed.text, failed.failed) == ("", "HTTP 503: out of memory")
    assert (answered.text, answered.failed) == ("b", None)
    assert len(sent) == 5


def test_a_refusal_is_not_tried_again_and_where_all_fail_nothing_is_answered() -> None:
    with serving(lambda *_: (401, b"wrong key")) as (url, sent):
        line = r"/v1/chat/completions answered none of 2 questions \(HTTP 401: wrong key\)"
        with pytest.raises(ConfigError, match=line):
            Endpoint(url, "m", "secret", 2).answers([picture()] * 2, [TALK] * 2)
    assert len(sent) == 2
    with pytest.raises(ConfigError, match="Connection refused"):  # nobody is there any more
        Endpoint(url, "m", None, 1).answers([picture()], [TALK])


def test_pictures_and_key_follow_no_redirect() -> None:
    with (
        serving(lambda *_: said("mine now")) as (elsewhere, stolen),
        serving(lambda *_: (302, f"{elsewhere}/chat/completions")) as (url, _),
    ):
        with pytest.raises(ConfigError, match="HTTP 302"):
            Endpoint(url, "m", "secret", 1).answers([picture()], [TALK])
        assert stolen == []
