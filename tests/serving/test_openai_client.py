"""The official client against a real server."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from pydicom.data import get_testdata_file
from tests.serving.support import Running, data_url, png

from medmoe.inference.engine import SHORT_ANSWER, MedMoe


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as client:
        yield client


def messages(text: str, image: bytes | None, kind: str = "image/png") -> list[dict]:  # type: ignore[type-arg]
    parts: list[dict] = [{"type": "text", "text": text}]  # type: ignore[type-arg]
    if image is not None:
        parts.append({"type": "image_url", "image_url": {"url": data_url(image, kind)}})
    return [{"role": "user", "content": parts}]


def ask(client: openai.OpenAI, text: str, image: bytes | None, **more):  # type: ignore[no-untyped-def]
    return client.chat.completions.create(
        model="tiny", messages=messages(text, image), max_tokens=SHORT_ANSWER, **more
    )


def test_it_lists_the_model(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert (model.id, model.medmoe["evidence"]) == ("tiny", True)
    assert client.models.retrieve("tiny").id == "tiny"


@pytest.mark.parametrize("image", [png(), None], ids=["image", "words"])
def test_the_answer_is_the_engines(
    client: openai.OpenAI, tiny: MedMoe, image: bytes | None
) -> None:
    expected = tiny.answer(image, "Is there a mass?")
    reply = ask(client, "Is there a mass?", image)
    assert reply.choices[0].message.content == expected.text
    assert reply.medmoe["confidence"] == pytest.approx(expected.confidence, rel=1e-4)
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.medmoe["notice"] == "Research use only, not a medical device"


def test_a_stream_is_the_same_answer_piece_by_piece(client: openai.OpenAI) -> None:
    whole = ask(client, "What organ is this?", png())
    stream = ask(
        client, "What organ is this?", png(), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in {"stop", "length"}
    assert chunks[-1].usage == whole.usage
    last = [c for c in chunks if c.choices][-1]
    assert last.medmoe["routing"]["domain"] == whole.medmoe["routing"]["domain"]


def test_a_follow_up_is_read_with_what_was_said(client: openai.OpenAI) -> None:
    before = messages("Is there a mass?", png())
    turns = [*before, {"role": "assistant", "content": "no"}, {"role": "user", "content": "Sure?"}]
    reply = client.chat.completions.create(model="tiny", messages=turns, max_tokens=4)
    assert reply.usage.prompt_tokens > ask(client, "Sure?", png()).usage.prompt_tokens


def test_an_answer_is_sent_back_as_it_came(client: openai.OpenAI) -> None:
    first = ask(client, "Is there a mass?", png()).choices[0].message
    before, after = messages("Is there a mass?", png()), {"role": "user", "content": "Sure?"}
    dumped = first.model_dump()
    assert {"annotations", "audio", "function_call", "refusal", "tool_calls"} <= dumped.keys()
    replies = [
        client.chat.completions.create(model="tiny", messages=[*before, turn, after], max_tokens=4)
        for turn in (dumped, {"role": "assistant", "content": first.content})
    ]
    assert replies[0].choices == replies[1].choices
    assert replies[0].usage == replies[1].usage


def test_an_upload_can_be_asked_about_until_it_is_deleted(client: openai.OpenAI) -> None:
    upload = client.files.create(file=("Doe^Jane 1970.png", png()), purpose="vision")
    assert "Doe" not in upload.model_dump_json()
    parts = [{"type": "text", "text": "Is there a mass?"},
             {"type": "file", "file": {"file_id": upload.id}}]  # fmt: skip
    turns = [{"role": "user", "content": parts}]
    reply = client.chat.completions.create(model="tiny", messages=turns, max_tokens=SHORT_ANSWER)
    direct = ask(client, "Is there a mass?", png())
    assert reply.choices[0].message.content == direct.choices[0].message.content
    client.files.delete(upload.id)
    with pytest.raises(openai.NotFoundError, match="no such upload"):
        client.chat.completions.create(model="tiny", messages=turns)


def test_dicom_in_a_window_of_choice_with_evidence(client: openai.OpenAI) -> None:
    path = get_testdata_file("CT_small.dcm")
    with open(path, "rb") as file:
        turns = messages("Is there a mass?", file.read(), "application/dicom")
    reply = client.chat.completions.create(
        model="tiny", messages=turns, max_tokens=4,
        extra_body={"medmoe": {"evidence": True, "window": [40, 400]}},
    )  # fmt: skip
    assert reply.medmoe["picture"]["modality"] == "ct"
    assert reply.medmoe["picture"]["window"]["center"] == 40
    assert reply.medmoe["evidence"]["question"] == "Is there a mass?"
    assert "CompressedSamples" not in reply.model_dump_json()


@pytest.mark.parametrize(
    ("image", "error", "code"),
    [
        (b"", openai.BadRequestError, "empty_or_malformed_image"),
        (png(4), openai.BadRequestError, "image_too_small"),
        (b"%PDF-1.4 nothing", openai.APIStatusError, "unsupported_image_type"),
    ],
)
def test_errors_are_the_clients_own(
    client: openai.OpenAI, image: bytes, error: type[openai.APIStatusError], code: str
) -> None:
    with pytest.raises(error) as caught:
        ask(client, "Is there a mass?", image)
    assert caught.value.code == code
    assert caught.value.request_id.startswith("req-")


def test_a_bad_request_is_no_stream(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        ask(client, "Is there a mass?", b"", stream=True)
