"""`POST /v1/responses`, and answers that a schema, `logprobs` or both interfaces ask for."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from tests.serving.support import Inside, data_url, png, question

from medmoe.inference.engine import MedMoe
from medmoe.serving.chat_engine import late
from medmoe.serving.local_engine import LocalEngine

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
WORDS = ("yes", "no", "lung")


def asked(text: str = "Is there a mass?", **more: Any) -> dict[str, Any]:
    parts = [{"type": "input_text", "text": text},
             {"type": "input_image", "image_url": data_url(png()), "detail": "auto"}]  # fmt: skip
    return {"model": "tiny", "input": [{"role": "user", "content": parts}], **more}


def schema(one: dict[str, Any], key: str | None = "answer", **more: Any) -> dict[str, Any]:
    whole = {"type": "object", "properties": {key: one}, "required": [key]} if key else one
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": whole | more}}


def events_of(reply: Any) -> list[dict[str, Any]]:
    events = []
    for block in reply.text.strip().split("\n\n"):
        kind, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert kind == f"event: {events[-1]['type']}"
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    return events


def test_a_response_is_chats_answer(talk: Any) -> None:
    chat = talk("POST", CHAT, json=question(image=png())).json()
    reply = talk("POST", RESPONSES, json=asked(max_output_tokens=8))
    told = reply.json()
    (message,) = told["output"]
    assert message["content"][0]["text"] == chat["choices"][0]["message"]["content"]
    assert told["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]
    behind, expected = told["medmoe"], chat["medmoe"]
    # What was read before is taken over: sums of floats in another order.
    assert behind.pop("confidence") == pytest.approx(expected.pop("confidence"), rel=1e-3)
    assert behind == expected
    ended = {"stop": "completed", "length": "incomplete"}[chat["choices"][0]["finish_reason"]]
    assert told["status"] == message["status"] == ended


def test_its_stream_tells_the_same(talk: Any) -> None:
    whole = talk("POST", RESPONSES, json=asked(max_output_tokens=8)).json()
    events = events_of(talk("POST", RESPONSES, json=asked(max_output_tokens=8, stream=True)))
    kinds = [e["type"].removeprefix("response.") for e in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    ended = ["output_text.done", "content_part.done", "output_item.done", whole["status"]]
    assert kinds[-4:] == ended
    text = "".join(e["delta"] for e in events if "delta" in e)
    last = events[-1]["response"]
    assert (
        text == last["output"][0]["content"][0]["text"] == whole["output"][0]["content"][0]["text"]
    )
    assert (last["usage"], last["medmoe"]) == (whole["usage"], whole["medmoe"])


def test_a_stream_that_breaks_off_says_so_at_its_end(
    talk: Any, monkeypatch: pytest.MonkeyPatch, inside: Inside
) -> None:
    stream = LocalEngine.stream

    async def breaks(*given: Any, **more: Any) -> Any:
        async for chunk in stream(*given, **more):
            yield chunk
            raise late()

    monkeypatch.setattr(LocalEngine, "stream", breaks)
    events = events_of(talk("POST", RESPONSES, json=asked(stream=True)))
    assert events[-1]["type"] == "error"
    assert events[-1]["code"] == events[-1]["error"]["code"] == "deadline_passed"
    assert inside.written()[-1] == (504, "deadline_passed")


def test_its_history_and_instructions_are_chats(talk: Any) -> None:
    first = asked()
    said = talk("POST", RESPONSES, json=first).json()["output"]
    again = {"role": "user", "content": "Sure?"}
    body = asked(instructions="Be brief.")
    body["input"] += [*said, again]
    told = talk("POST", RESPONSES, json=body)
    chat = question(image=png())
    chat["messages"] = [
        {"role": "system", "content": "Be brief."}, *chat["messages"],
        {"role": "assistant", "content": said[0]["content"][0]["text"]}, again,
    ]  # fmt: skip
    expected = talk("POST", CHAT, json=chat | {"max_tokens": 64})
    assert told.json()["usage"]["input_tokens"] == expected.json()["usage"]["prompt_tokens"]
    assert told.headers["x-medmoe-warning"] == expected.headers["x-medmoe-warning"]
    upload = talk("POST", "/v1/files", files={"file": ("x", png())}).json()["id"]
    body = asked()
    body["input"][0]["content"][1] = {"type": "input_image", "file_id": upload}
    by_id = talk("POST", RESPONSES, json=body).json()
    assert by_id["medmoe"] == talk("POST", RESPONSES, json=first).json()["medmoe"]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"tone": "kind"}}, "text.tone"),
        ({"text": 3}, "text"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"input": 7}, "messages"),
        ({"input": []}, "messages"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "messages.0.role"),
        ({"input": [{"role": "user", "content": [{"type": "input_audio"}]}]},
         "messages.0.content.0"),
        ({"text": {"format": {"type": "json_object"}}}, "response_format"),
    ],
)  # fmt: skip
def test_what_a_response_cannot_do_is_refused_by_name(talk: Any, more: Any, param: str) -> None:
    reply = talk("POST", RESPONSES, json=asked() | more)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def test_it_is_admitted_logged_and_counted_as_chat_is(inside: Inside, talk: Any) -> None:
    talk("POST", RESPONSES, json=asked())
    talk("POST", RESPONSES, json=asked() | {"model": "other"})
    assert inside.written() == [(200, None), (404, "model_not_found")]
    assert 'route="/v1/responses",status="200"' in talk("GET", "/metrics").text


def shares_of(tiny: MedMoe, text: str, options: tuple[str, ...]) -> dict[str, float]:
    """Return the options' shares by the engine's own scores."""
    scores, _ = tiny.scored_options(tiny.encode([png()]), [0], [text], [options])[0]
    weights = [math.exp(score - max(scores)) for score in scores]
    return {o: w / sum(weights) for o, w in zip(options, weights, strict=True)}


@pytest.mark.parametrize("streamed", [False, True])
def test_an_enum_is_chosen_from_by_likelihood(talk: Any, tiny: MedMoe, streamed: bool) -> None:
    enum = {"type": "string", "enum": list(WORDS), "title": "Answer"}
    body = question(image=png(), response_format=schema(enum), stream=streamed)
    reply = talk("POST", CHAT, json=body)
    expected = shares_of(tiny, "Is there a mass?", WORDS)
    best = max(expected, key=lambda option: expected[option])
    if streamed:
        lines = [json.loads(line[6:]) for line in reply.text.split("\n\n") if line[6:7] == "{"]
        content = "".join(c["choices"][0]["delta"].get("content", "") for c in lines)
        behind = lines[-1]["medmoe"]
    else:
        told = reply.json()
        content, behind = told["choices"][0]["message"]["content"], told["medmoe"]
        plain = talk("POST", CHAT, json=question(image=png())).json()
        assert told["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]
        assert behind["routing"]["probabilities"] == pytest.approx(
            plain["medmoe"]["routing"]["probabilities"], abs=1e-5
        )
    assert json.loads(content) == {"answer": best}
    assert behind["options"] == pytest.approx(expected, rel=1e-3)
    assert behind["confidence"] == pytest.approx(expected[best], rel=1e-3)


@pytest.mark.parametrize(
    ("given", "values"),
    [
        (schema({"type": "boolean"}), [{"answer": True}, {"answer": False}]),
        (schema({"enum": ["yes", "no"]}, None), ["yes", "no"]),
        (schema({"enum": [1, 2, 3.5]}), [{"answer": 1}, {"answer": 2}, {"answer": 3.5}]),
        (schema({"$ref": "#/$defs/Organ"}, "organ", **{"$defs": {"Organ": {"enum": list(WORDS)}}}),
         [{"organ": word} for word in WORDS]),
    ],
)  # fmt: skip
def test_schemas_as_libraries_write_them(talk: Any, given: Any, values: list[Any]) -> None:
    chat = talk("POST", CHAT, json=question(image=png(), response_format=given)).json()
    content = chat["choices"][0]["message"]["content"]
    assert json.loads(content) in values
    text = {"format": {"type": "json_schema", "strict": True, **given["json_schema"]}}
    told = talk("POST", RESPONSES, json=asked() | {"text": text}).json()
    assert told["output"][0]["content"][0]["text"] == content


@pytest.mark.parametrize(
    "given",
    [
        {"type": "json_object"}, {"type": "json_schema"},
        {"type": "json_schema", "json_schema": []},
        schema({"type": "string"}), schema({"enum": ["one"]}), schema({"enum": ["a", "a"]}),
        schema({"enum": ["", "a"]}), schema({"enum": [["a"], "b"]}), schema({"enum": 3}),
        schema({"enum": [str(n) for n in range(65)]}), schema({"enum": [{}, []]}),
        schema({"$ref": "#/$defs/None"}), schema({"$ref": 3}), 7,
        schema({"enum": ["a", "b"]}, properties={"a": {"enum": ["a", "b"]}, "b": {}}),
    ],
)  # fmt: skip
def test_other_formats_are_refused_with_what_there_is(talk: Any, given: Any) -> None:
    reply = talk("POST", CHAT, json=question(image=png(), response_format=given))
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "response_format")
    assert 'send {"type": "text"}, or a json_schema that leaves one enum' in error["message"]


def test_options_are_for_one_question_about_a_picture(talk: Any) -> None:
    given = schema({"enum": ["yes", "no"]})
    turns = question(image=png())["messages"]
    later = [*turns, {"role": "assistant", "content": "no"}, {"role": "user", "content": "Sure?"}]
    for body in (question(), question(image=png()) | {"messages": later}):
        reply = talk("POST", CHAT, json=body | {"response_format": given})
        assert reply.status_code == 400
        assert "options need one question about a picture" in reply.json()["error"]["message"]
    body = question(image=png(), response_format=given, medmoe={"evidence": True})
    assert talk("POST", CHAT, json=body).status_code == 400


@pytest.mark.parametrize("streamed", [False, True])
def test_each_token_and_its_log_probability_are_told(
    talk: Any, tiny: MedMoe, streamed: bool
) -> None:
    reply = talk("POST", CHAT, json=question(image=png(), logprobs=True, stream=streamed))
    if streamed:
        lines = [json.loads(line[6:]) for line in reply.text.split("\n\n") if line[6:7] == "{"]
        choice, behind = lines[-1]["choices"][0], lines[-1]["medmoe"]
        text = "".join(c["choices"][0]["delta"].get("content", "") for c in lines)
    else:
        choice, behind = reply.json()["choices"][0], reply.json()["medmoe"]
        text = choice["message"]["content"]
    tokens = choice["logprobs"]["content"]
    assert "".join(t["token"] for t in tokens).strip() == text
    assert all(bytes(t["bytes"]).decode() == t["token"] for t in tokens)
    total = math.exp(sum(t["logprob"] for t in tokens))
    if choice["finish_reason"] == "length":
        assert total == pytest.approx(behind["confidence"], rel=1e-4)
    else:  # the end, too, was a token
        assert total > behind["confidence"]
    plain = talk("POST", CHAT, json=question(image=png())).json()["choices"][0]
    assert plain["logprobs"] is None
