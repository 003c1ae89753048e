"""Transport and server rows of the catalogue of bad inputs, and what replies look like."""

from __future__ import annotations

import base64
import gzip
import json
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.data.readers.parquet import png as grey_png
from tests.data.samples import nifti
from tests.model.tiny import IMAGE_TOKENS
from tests.serving.support import Inside, data_url, png, question

from medmoe.data.intake.facts import WARNINGS
from medmoe.serving.audit import verify
from medmoe.serving.chat_engine import busy
from medmoe.serving.local_engine import LocalEngine
from medmoe.serving.transport import SMALL_BODY

CHAT = "/v1/chat/completions"
FLAT = "data:image/png;base64," + base64.b64encode(grey_png(255)).decode()


def refused(reply: Any) -> tuple[int, str]:
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    assert reply.headers["x-request-id"].startswith("req-")
    return reply.status_code, error["code"]


def parts(*content: dict[str, Any]) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": list(content)}]}


def image(url: str) -> dict[str, Any]:
    return parts(
        {"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url}}
    )


@pytest.mark.parametrize(
    "url",
    ["http://169.254.169.254/latest", "https://example.org/a.png", "file:///etc/passwd",
     "/etc/passwd", "ftp://x/y", "", "//x/y", "DATA", "gopher://x"],
)  # fmt: skip
def test_addresses_and_paths_are_neither_fetched_nor_opened(
    talk: Any, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("a socket or a file was opened")

    monkeypatch.setattr(socket, "create_connection", forbidden)
    monkeypatch.setattr(Path, "read_bytes", forbidden)
    assert refused(talk("POST", CHAT, json=image(url))) == (400, "remote_media_disabled")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "bad_json"),
        (b"{", "bad_json"),
        (b"[]", "bad_parameter"),
        (b"\xff\xfe", "bad_json"),
        (b"[" * 10_000 + b"]" * 10_000, "bad_json"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "bad_json"),
        # A string without an end is read once: read anew from each quote it would take days.
        (b"[" * 100 + b'"' + b'\\"' * 200_000, "bad_json"),
        (b'{"model":"tiny","model":"tiny"}', "bad_json"),
        (b'{"model":"tiny","messages":[],"temperature":NaN}', "bad_json"),
        (b'{"model":"tiny","messages":[],"temperature":1e999}', "bad_parameter"),
        (b'{"model":"\\ud800","messages":[]}', "bad_json"),
        (b'{"model":"tiny","messages":[]}', "bad_parameter"),
    ],
)
def test_bad_json_is_refused(talk: Any, body: bytes, code: str) -> None:
    reply = talk("POST", CHAT, content=body, headers={"Content-Type": "application/json"})
    assert refused(reply) == (400, code)


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"n": 10**9}, "bad_parameter"),
        ({"max_tokens": -1}, "bad_parameter"),
        ({"max_tokens": 10**30}, "bad_parameter"),
        ({"max_tokens": 0}, "bad_parameter"),
        ({"max_tokens": True}, "bad_parameter"),
        ({"temperature": "hot"}, "bad_parameter"),
        ({"stream": "yes"}, "bad_parameter"),
        ({"tool_choice": "required"}, "bad_parameter"),
        ({"unheard_of": [1]}, "unknown_parameter"),
        ({"medmoe": {"evidence": 1}}, "bad_parameter"),
        ({"medmoe": {"frame": 0}}, "bad_parameter"),
        ({"medmoe": {"window": [1]}}, "bad_parameter"),
        ({"medmoe": {"window": "lung"}}, "bad_window"),
        ({"medmoe": {"plane": "axial"}}, "bad_window"),
        ({"medmoe": {"plane": "oblique"}}, "bad_parameter"),
    ],
)
def test_bad_parameters_are_refused(talk: Any, more: dict[str, Any], code: str) -> None:
    assert refused(talk("POST", CHAT, json=question() | more)) == (400, code)


def test_the_plane_of_a_volume_can_be_chosen(talk: Any) -> None:
    volume = base64.b64encode(gzip.compress(nifti())).decode()
    body = image(f"data:application/gzip;base64,{volume}")
    told = talk("POST", CHAT, json=body | {"medmoe": {"plane": "sagittal"}}).json()["medmoe"]
    assert (told["picture"]["view"], told["picture"]["frames"]) == ("sagittal", 20)


def test_about_a_flat_picture_there_is_a_warning_and_no_confidence(talk: Any) -> None:
    told = talk("POST", CHAT, json=image(FLAT)).json()["medmoe"]
    assert told["confidence"] is None
    assert told["picture"]["warnings"] == ["flat_picture"]
    assert told["warnings"][0] == WARNINGS["flat_picture"]


@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 0.7}, {"n": 1}, {"seed": 3, "user": "u"}, {"tools": []}, {"top_p": 1},
        {"response_format": {"type": "text"}, "tool_choice": "none", "parallel_tool_calls": True},
        {"tool_choice": "auto", "logit_bias": {}, "top_logprobs": 0, "logprobs": False, "stop": []},
        {"service_tier": "auto", "modalities": ["text"], "frequency_penalty": 0.0, "top_k": -1},
        {"metadata": {"a": "b"}, "store": False, "prompt_cache_key": "x", "presence_penalty": 0},
        dict.fromkeys([
            "response_format", "stop", "tools", "tool_choice", "functions", "function_call",
            "audio", "top_p", "logit_bias", "logprobs", "top_logprobs", "n",
            "max_completion_tokens",
            "temperature", "prediction", "web_search_options", "reasoning_effort", "seed",
            "verbosity", "modalities", "service_tier", "metadata", "store", "user", "stream",
            "stream_options", "parallel_tool_calls", "medmoe", "what_comes_next_year",
        ]),
    ],
)  # fmt: skip
def test_what_official_clients_send_by_default_is_taken(talk: Any, more: dict[str, Any]) -> None:
    plain = talk("POST", CHAT, json=question()).json()["choices"]
    reply = talk("POST", CHAT, json=question() | more)
    assert (reply.status_code, reply.json()["choices"]) == (200, plain)


@pytest.mark.parametrize(
    ("more", "param", "words"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format",
         'send {"type": "text"}, or a json_schema'),
        ({"tool_choice": "required"}, "tool_choice", '"required"'),
        ({"n": 9}, "n", "less than or equal to 8"),
        ({"n": True}, "n", "valid integer"),
        ({"stop": ""}, "stop.0", "string should have at least 1 character"),
        ({"stop": [".", ""]}, "stop.1", "string should have at least 1 character"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "list should have at most 4 items"),
        ({"stop": 7}, "stop", "input should be a valid list"),
        ({"stop": ["a", 7]}, "stop.1", "input should be a valid string"),
        ({"stop": "a" * 257}, "stop.0", "string should have at most 256 characters"),
        ({"top_logprobs": 5}, "top_logprobs", "5"),
        ({"logit_bias": {"50256": -100}}, "logit_bias", "50256"),
        ({"modalities": ["text", "audio"]}, "modalities", "audio"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction", "leave it out"),
        ({"best_of\n": 3}, "best_of\\n", "best_of\\n: this server does not know that field"),
        ({"temperature": "hot"}, "temperature", "temperature: input should be a valid number"),
        ({"messages": []}, "messages", "messages: list should have at least 1 item"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_named_with_its_value(
    talk: Any, more: dict[str, Any], param: str, words: str
) -> None:
    reply = talk("POST", CHAT, json=question() | more)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param)
    assert error["message"].startswith(f"{param}: ")
    assert words in error["message"]


@pytest.mark.parametrize(
    ("turn", "param", "words"),
    [
        ({"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "input_text"}]},
         "messages.0.content.1", "input_text"),
        ({"role": "user", "content": [{"type": "text", "text": 3}]},
         "messages.0.content.0.text", "valid string"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"uri": "x"}}]},
         "messages.0.content.0.image_url.url", "field required"),
        ({"role": "user", "content": 7}, "messages.0.content", "valid list"),
        ({"role": "tool", "content": "x"}, "messages.0.role", "'assistant'"),
        ({"role": "user", "content": "x", "id": "m1"}, "messages.0.id", "does not know"),
        ({"role": "assistant", "content": "x", "tool_calls": [{"id": "c"}]},
         "messages.0.tool_calls", "or send []"),
    ],
)  # fmt: skip
def test_the_wrong_part_of_a_message_is_named(
    talk: Any, turn: dict[str, Any], param: str, words: str
) -> None:
    error = talk("POST", CHAT, json={"model": "tiny", "messages": [turn]}).json()["error"]
    assert error["param"] == param
    assert words in error["message"]


def test_a_picture_may_be_a_plain_string(talk: Any) -> None:
    url = data_url(png())
    told = talk("POST", CHAT, json=image(url)).json()["choices"]
    body = parts({"type": "text", "text": "What?"}, {"type": "image_url", "image_url": url})
    asked = parts(
        {"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url}}
    )
    assert told
    replies = [talk("POST", CHAT, json=each).json()["choices"] for each in (body, asked)]
    assert replies[0] == replies[1]


def test_a_longer_answer_than_there_is_is_lowered_with_a_warning(talk: Any) -> None:
    for wanted in (257, 2**31):
        reply = talk("POST", CHAT, json=question() | {"max_tokens": wanted})
        assert reply.status_code == 200
        warning = f"max_tokens {wanted} is lowered to 256"
        assert warning in reply.json()["medmoe"]["warnings"]
        assert reply.headers["x-medmoe-warning"] == warning


@pytest.mark.parametrize("streamed", [False, True])
def test_what_clients_send_by_themselves_is_ignored_with_a_warning(
    talk: Any, streamed: bool
) -> None:
    more = {"frequency_penalty": 0.1, "presence_penalty": 0, "num_ctx": 4096, "store": True,
            "tools": [{"type": "function", "function": {"name": "get_time"}}]}  # fmt: skip
    body = question() | {"stream": streamed}
    plain, reply = talk("POST", CHAT, json=body), talk("POST", CHAT, json=body | more)
    warning = reply.headers["x-medmoe-warning"]
    assert warning.startswith("ignored: ")
    assert set(warning[9:].split(", ")) == more.keys() - {"presence_penalty"}
    assert warning in reply.text
    assert "x-medmoe-warning" not in plain.headers
    if not streamed:
        assert reply.json()["choices"] == plain.json()["choices"]


@pytest.mark.parametrize("streamed", [False, True])
def test_several_choices_are_one_answer_and_the_warning_says_so(talk: Any, streamed: bool) -> None:
    reply = talk("POST", CHAT, json=question() | {"n": 2, "stream": streamed})
    assert reply.headers["x-medmoe-warning"].startswith("n 2: the choices are one answer")
    lines = [line[6:] for line in reply.text.split("\n\n") if line[6:7] == "{"]
    for told in map(json.loads, lines) if streamed else [reply.json()]:
        one, other = told["choices"]
        assert one | {"index": 1} == other


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_ends_before_a_stop_string(talk: Any, as_list: bool, streamed: bool) -> None:
    whole = talk("POST", CHAT, json=question()).json()["choices"][0]["message"]["content"]
    stop = whole[3:5]
    more = {"stop": [stop] if as_list else stop, "stream": streamed}
    reply = talk("POST", CHAT, json=question() | more)
    if streamed:
        lines = [line[6:] for line in reply.text.split("\n\n") if line[6:7] == "{"]
        choices = [json.loads(line)["choices"][0] for line in lines]
        text = "".join(choice["delta"].get("content", "") for choice in choices)
        finish = choices[-1]["finish_reason"]
    else:
        (choice,) = reply.json()["choices"]
        text, finish = choice["message"]["content"], choice["finish_reason"]
    assert (text, finish) == (whole[: whole.index(stop)].strip(), "stop")


def test_a_byte_order_mark_is_no_fault(talk: Any) -> None:
    data = b"\xef\xbb\xbf" + json.dumps(question()).encode()
    reply = talk("POST", CHAT, content=data, headers={"Content-Type": "application/json"})
    assert reply.status_code == 200


@pytest.mark.parametrize("content", [None, "", " ", []])
def test_an_answer_without_a_word_may_be_sent_back(talk: Any, content: Any) -> None:
    turns = [("user", "Is there"), ("assistant", content), ("user", "a mass?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    reply = talk("POST", CHAT, json={"model": "tiny", "messages": messages})
    joined = talk("POST", CHAT, json=question("Is there\na mass?"))
    assert reply.json()["usage"]["prompt_tokens"] == joined.json()["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([{"role": "user", "content": ""}], "no_question"),
        ([{"role": "user", "content": None}], "no_question"),
        ([{"role": "assistant", "content": "yes"}], "bad_conversation"),
        ([{"role": "system", "content": "x"}], "bad_conversation"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
         "bad_conversation"),
        ([{"role": "user", "content": " "}, {"role": "assistant", "content": "x"},
          {"role": "user", "content": "y"}], "bad_conversation"),
        ([{"role": "tool", "content": "x"}], "bad_parameter"),
        ([{"role": "user", "content": "x" * 10_000_000}], "prompt_too_long"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "bad_parameter"),
    ],
)  # fmt: skip
def test_bad_conversations_are_refused(talk: Any, messages: list[Any], code: str) -> None:
    assert refused(talk("POST", CHAT, json={"model": "tiny", "messages": messages})) == (400, code)


def pictures(count: int) -> list[dict[str, Any]]:
    """Return so many different pictures as parts of a message."""
    urls = [data_url(png(seed=i)) for i in range(count)]
    return [{"type": "image_url", "image_url": {"url": url}} for url in urls]


def test_of_more_images_than_an_engine_takes_the_newest_are_read(talk: Any, inside: Inside) -> None:
    shown = pictures(inside.app.state.service.engine.most_images + 1)

    def ask(*images: dict[str, Any]) -> Any:
        turns = [{"role": "user", "content": [{"type": "text", "text": "What?"}, image]}
                 for image in images]  # fmt: skip
        return talk("POST", CHAT, json={"model": "tiny", "messages": turns})

    reply, newest = ask(*shown), ask(*shown[1:])
    assert reply.headers["x-medmoe-warning"] == (
        "1 older images are left out: here at most 4 are read together"
    )
    assert "x-medmoe-warning" not in newest.headers
    told, alone = reply.json()["medmoe"], newest.json()["medmoe"]
    assert told["routing"] == alone["routing"]
    # The first one is new again where it is sent again: then it is the second that is left out.
    again = ask(*shown, shown[0]).json()["medmoe"]
    kept = ask(shown[0], *shown[2:]).json()["medmoe"]
    assert (again["routing"], again["further"]) == (kept["routing"], kept["further"])


def test_each_picture_of_a_conversation_is_told_apart_in_the_order_sent(talk: Any) -> None:
    first, second = pictures(2)
    texts = [{"type": "text", "text": text} for text in ("What?", "Where?")]
    between = {"role": "assistant", "content": "liver"}

    def ask(one: dict[str, Any], two: dict[str, Any], **more: Any) -> Any:
        turns = [{"role": "user", "content": [texts[0], one]}, between]
        turns += [{"role": "user", "content": [one, two, texts[1]]}]
        return talk("POST", CHAT, json={"model": "tiny", "messages": turns, **more})

    alone, both = ask(first, first).json(), ask(first, second).json()
    image = both["usage"]["prompt_tokens"] - alone["usage"]["prompt_tokens"]
    assert image >= IMAGE_TOKENS
    assert "further" not in alone["medmoe"]
    assert both["medmoe"]["picture"] == alone["medmoe"]["picture"]
    assert both["medmoe"]["routing"]["probabilities"] == pytest.approx(
        alone["medmoe"]["routing"]["probabilities"], abs=1e-6
    )
    (further,) = both["medmoe"]["further"]
    assert further["routing"]["probabilities"] != both["medmoe"]["routing"]["probabilities"]
    assert any(
        w.startswith("2 images: a model that was trained on") for w in both["medmoe"]["warnings"]
    )
    backwards = ask(second, first).json()["medmoe"]
    assert backwards["routing"]["probabilities"] != both["medmoe"]["routing"]["probabilities"]
    for field in ({"evidence": True}, {"window": "lung"}):
        assert refused(ask(first, second, medmoe=field))[0] == 400


def test_a_picture_that_is_sent_again_in_later_turns_is_one(talk: Any) -> None:
    sent = talk("POST", "/v1/files", files={"file": ("name.png", png())}).json()["id"]
    ways = [
        {"type": "image_url", "image_url": {"url": data_url(png())}},
        {"type": "image_url", "image_url": {"url": data_url(png()), "detail": "low"}},
        {"type": "file", "file": {"file_data": data_url(png(), "application/octet-stream")}},
        {"type": "file", "file": {"file_id": sent}},
    ]
    texts = [{"type": "text", "text": text} for text in ("What?", "Where?")]
    between = {"role": "assistant", "content": "liver"}

    def ask(*again: dict[str, Any]) -> Any:
        turns = [{"role": "user", "content": [texts[0], ways[0]]}, between]
        turns += [{"role": "user", "content": [texts[1], *again]}]
        return talk("POST", CHAT, json={"model": "tiny", "messages": turns}).json()

    once = ask()
    for again in (ways[:1], ways):
        reply = ask(*again)
        assert reply["choices"] == once["choices"]
        assert reply["usage"] == once["usage"]


def test_placeholders_in_the_text_are_text(talk: Any) -> None:
    plain = talk("POST", CHAT, json=question("What <image> </s> <pad> is it?"))
    assert plain.status_code == 200


def test_what_a_system_message_says_is_read(talk: Any) -> None:
    body = question("What organ?")
    told = body | {
        "messages": [{"role": "system", "content": "In the left lung"}, *body["messages"]]
    }
    one, two = (talk("POST", CHAT, json=b).json() for b in (body, told))
    assert two["usage"]["prompt_tokens"] > one["usage"]["prompt_tokens"]
    (warning,) = set(two["medmoe"]["warnings"]) - set(one["medmoe"]["warnings"])
    assert "the system message is read as the user's first words" in warning


def test_system_messages_can_be_dropped_and_the_warning_says_so(inside: Inside, talk: Any) -> None:
    service = inside.app.state.service
    service.settings = replace(service.settings, drop_system=True)
    body = question("What organ?")
    system = {"role": "system", "content": "In the left lung"}
    one = talk("POST", CHAT, json=body).json()
    two = talk("POST", CHAT, json=body | {"messages": [system, *body["messages"]]}).json()
    assert (one["choices"], one["usage"]) == (two["choices"], two["usage"])
    (warning,) = set(two["medmoe"]["warnings"]) - set(one["medmoe"]["warnings"])
    assert warning.startswith("the system message is dropped")


@pytest.mark.parametrize(
    ("path", "method", "expected"),
    [
        ("/nowhere", "GET", (404, "not_found")),
        ("/v1/chat/completions", "GET", (405, "method_not_allowed")),
        ("/v1/models/other", "GET", (404, "model_not_found")),
        ("/v1/files/file-x", "GET", (404, "file_not_found")),
        ("/v1/files/file-x", "DELETE", (404, "file_not_found")),
        ("/v1/models/..%2f..%2fetc", "GET", (404, "not_found")),
    ],
)
def test_other_addresses(talk: Any, path: str, method: str, expected: tuple[int, str]) -> None:
    assert refused(talk(method, path)) == expected


def test_another_model_is_not_there(talk: Any) -> None:
    assert refused(talk("POST", CHAT, json=question() | {"model": "x"})) == (404, "model_not_found")


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd"])
def test_packed_bodies_are_not_unpacked(talk: Any, encoding: str) -> None:
    headers = {"Content-Encoding": encoding, "Content-Type": "application/json"}
    assert refused(talk("POST", CHAT, content=b"x", headers=headers)) == (
        415,
        "unsupported_encoding",
    )


def test_a_body_that_says_it_is_too_large_is_not_read(talk: Any) -> None:
    headers = {"Content-Length": str(4 * 2**30), "Content-Type": "application/json"}
    reply = talk("POST", CHAT, content=b"{", headers=headers)
    assert refused(reply) == (413, "request_too_large")


def test_a_body_without_end_is_cut_off(talk: Any) -> None:
    given = 0

    async def endless() -> Any:
        nonlocal given
        while True:
            given += 2**20
            yield b" " * 2**20

    headers = {"Content-Type": "application/json"}
    reply = talk("POST", CHAT, content=endless(), headers=headers)
    assert refused(reply) == (413, "request_too_large")
    assert given <= 66 * 2**20


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_what_a_form_of_another_site_can_send_is_refused(talk: Any, kind: str) -> None:
    body = json.dumps(question()).encode()
    reply = talk("POST", CHAT, content=body, headers={"Content-Type": kind})
    assert refused(reply) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "name", ["../../x", "a\0b", "x" * 4096, "\u202egnp.exe", "<script>alert(1)</script>"]
)
def test_the_clients_name_of_a_file_is_nowhere(talk: Any, name: str) -> None:
    reply = talk("POST", "/v1/files", files={"file": (name, png())}, data={"purpose": "vision"})
    assert reply.status_code == 200
    assert reply.json()["filename"] == reply.json()["id"]


def test_a_form_that_is_none_is_refused(talk: Any) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    many = b"--x\r\n" + b"A: b\r\n" * 10_000 + b"\r\n\r\n--x--"
    for content in (b"", b"--y", many, b"--x\r\n\r\n\r\n--x--"):
        reply = talk("POST", "/v1/files", content=content, headers=headers)
        assert refused(reply) == (400, "bad_form")


def test_every_reply_says_what_it_is_for_and_is_closed_to_others(talk: Any) -> None:
    for reply in (
        talk("GET", "/health/live"),
        talk("GET", "/nowhere"),
        talk("POST", CHAT, json={}),
    ):
        assert reply.headers["x-medmoe-notice"] == "Research use only, not a medical device"
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"


def test_health_and_numbers(talk: Any) -> None:
    assert talk("GET", "/health/ready").json() == {"status": "ready"}
    talk("POST", CHAT, json=question(image=png()))
    text = talk("GET", "/metrics").text
    assert 'medmoe_requests_total{route="/v1/chat/completions",status="200"} 1.0' in text
    assert 'medmoe_pictures_total{outcome="ok"} 1.0' in text
    assert "medmoe_ready 1.0" in text


def test_the_log_holds_outcomes_and_nothing_of_what_was_said(talk: Any, tmp_path: Path) -> None:
    secret = "Jane Doe, born 1970"
    talk("POST", CHAT, json=question(secret, png()))
    talk("POST", CHAT, json=question(secret, b"broken"))
    talk("POST", CHAT, json=question(secret) | {"stream": True})
    log = tmp_path / "audit.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    asked = [line for line in lines if line["event"] == "chat"]
    assert [(line["status"], line["code"]) for line in asked] == [
        (200, None), (415, "unsupported_image_type"), (200, None),
    ]  # fmt: skip
    assert asked[0]["image"] is not None
    assert "Doe" not in log.read_text()
    assert verify(log).fault is None


def test_the_interface_is_described(talk: Any) -> None:
    found = talk("GET", "/openapi.json").json()
    assert {"/v1/chat/completions", "/v1/models", "/v1/files", "/health/ready"} <= set(
        found["paths"]
    )
    place = found["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"Message", "ImagePart"} <= place["$defs"].keys()
    for reference in set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(found))):
        at = found
        for step in reference.split("/"):
            at = at[step.replace("~1", "/").replace("~0", "~")]


def test_a_full_queue_refuses_before_a_body_is_looked_at_and_keeps_the_connection(
    talk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalEngine, "check_room", full)
    nonsense = {"content": b"{", "headers": {"Content-Type": "application/json"}}
    reply = talk("POST", CHAT, **nonsense)
    assert refused(reply) == (429, "queue_full")
    assert reply.headers["retry-after"] == "1"
    assert "connection" not in reply.headers
    assert talk("GET", "/v1/models").status_code == 200
    # What is large is not read to its end, and so the connection ends.
    reply = talk("POST", CHAT, **nonsense | {"content": b"{" * (SMALL_BODY + 1)})
    assert refused(reply) == (429, "queue_full")
    assert reply.headers["connection"] == "close"


def full(*_: object) -> None:
    raise busy(1)


@pytest.mark.parametrize("stream", [False, True])
def test_evidence_that_the_engine_cannot_give_is_refused_before_anything_is_answered(
    talk: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stream: bool
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(LocalEngine, "explains", False)
    monkeypatch.setattr(LocalEngine, "stream", lambda *_, **__: asked.append(1))
    body = question(image=png()) | {"medmoe": {"evidence": True}, "stream": stream}
    assert refused(talk("POST", CHAT, json=body)) == (501, "no_evidence")
    assert asked == []
    last = json.loads((tmp_path / "audit.jsonl").read_text().splitlines()[-1])
    assert (last["status"], last["code"]) == (501, "no_evidence")
