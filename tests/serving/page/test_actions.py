"""What the page's controls do, with a real engine and without a browser."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.data.samples import dicom, nifti, ramp
from tests.serving.page.support import Local, service_of

from medmoe.errors import ConfigError, ImageError
from medmoe.inference.chat import ChatChunk
from medmoe.serving.page.actions import (
    ENDED,
    EXAMPLES,
    MAX_EXCHANGES,
    MAX_QUESTION,
    PageActions,
    PageUpdate,
)
from medmoe.serving.page.cases import CaseStore, OpenCase
from medmoe.serving.problems import ProblemError

SCAN = dicom(np.stack([ramp(), ramp()[::-1]]), Modality="CT")


@pytest.fixture(scope="module")
def engine() -> Local:
    return Local(remember=True)


@pytest.fixture
def actions(engine: Local) -> PageActions:
    return PageActions(service_of(engine), CaseStore())


async def opened(actions: PageActions, name: str) -> OpenCase:
    case = actions.cases.get((await actions.example(name)).handle or "")
    assert case is not None
    return case


async def asked(
    actions: PageActions, question: str, handle: str, *, explain: bool = False
) -> list[PageUpdate]:
    return [update async for update in actions.ask(question, handle, explain)]


def test_an_answer_streams_and_its_evidence_follows(actions: PageActions) -> None:
    async def story() -> list[PageUpdate]:
        case = await opened(actions, "ct")
        return await asked(actions, "Is there any nodule?", case.handle, explain=True)

    steps = asyncio.run(story())
    assert (steps[0].busy, steps[0].question, steps[-1].busy) == (True, "", False)
    texts = [step.exchange["answer"] for step in steps if step.exchange]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert "Answering" in steps[0].pending
    assert "Looking at regions" in steps[-2].pending
    last = steps[-1].exchange
    assert last is not None
    assert last["evidence"]["counterfactuals"]
    assert len(last["regions"]["cells"]) > 1
    assert last["regions"]["size"] == (64, 64)


def test_a_follow_up_brings_what_was_said_before(actions: PageActions, engine: Local) -> None:
    async def story() -> None:
        case = await opened(actions, "mri")
        await asked(actions, "What organ is this?", case.handle)
        await asked(actions, "Is it  normal?", case.handle)

    asyncio.run(story())
    first, second = engine.requests[-2:]
    assert [turn.role for turn in second.turns] == ["user", "assistant", "user"]
    assert second.turns[0] == first.turns[0]
    assert second.turns[2].text == "Is it normal?"
    assert first.image is second.image is not None


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_every_example_is_a_picture_with_a_question(actions: PageActions, name: str) -> None:
    update = asyncio.run(actions.example(name))
    assert update.question == EXAMPLES[name][1]
    assert (update.picture or {})["caption"] == "a made-up example"


def test_an_answer_that_is_stopped_frees_the_engine_and_is_marked(
    actions: PageActions, engine: Local
) -> None:
    async def story() -> tuple[PageUpdate, bool]:
        case = await opened(actions, "ct")
        before = engine.freed
        stream = actions.ask("Is there any nodule?", case.handle, False)
        async for update in stream:
            if update.exchange and update.exchange["answer"]:
                break
        await stream.aclose()
        return actions.stopped(case.handle), engine.freed == before + 1

    update, freed = asyncio.run(story())
    assert freed
    assert (update.exchange or {})["complete"] is False
    assert update.busy is False


def test_another_window_is_what_the_next_question_is_about(
    actions: PageActions, engine: Local
) -> None:
    async def story() -> list[np.ndarray]:
        handle = (await actions.receive(SCAN)).handle
        update = actions.show(handle)
        assert "frame 1 of 2" in str(update.picture)
        await asked(actions, "One?", handle)
        update = await actions.look(handle, window=(500.0, 100.0))
        assert "frame 1 of 2, window 500,100 (as given)" in str(update.picture)
        update = await actions.look(handle, frame=2)
        assert "frame 2 of 2, window 500,100 (as given)" in str(update.picture)
        await asked(actions, "Two?", handle)
        return [np.asarray(request.image) for request in engine.requests[-2:]]

    first, second = asyncio.run(story())
    assert not np.array_equal(first, second)


def test_windows_and_frames_that_come_at_once_are_all_taken(actions: PageActions) -> None:
    async def story() -> str:
        handle = (await actions.receive(SCAN)).handle
        steps = [actions.look(handle, window=(500.0, 90.0 + i)) for i in range(4)]
        await asyncio.gather(*steps, actions.look(handle, frame=2))
        case = actions.cases.get(handle)
        assert case is not None
        assert case.picture is not None
        return case.picture.facts.description()

    assert asyncio.run(story()) == "DICOM, ct, frame 2 of 2, window 500,93 (as given)"


def test_a_window_or_frame_that_cannot_be_shown_leaves_the_one_before(actions: PageActions) -> None:
    async def story() -> tuple[PageUpdate, PageUpdate, str]:
        handle = (await actions.receive(SCAN)).handle
        window = await actions.look(handle, window=(1.0, float("nan")))
        frame = await actions.look(handle, frame=99)
        shown = actions.show(handle)
        return window, frame, str(shown.picture)

    window, frame, shown = asyncio.run(story())
    assert "the width must be above 0" in window.picture_notice
    assert frame.picture_notice == "Frame 99: choose one of 1 to 2."
    assert "frame 1 of 2" in shown


def test_a_volume_is_shown_in_the_plane_that_is_chosen(actions: PageActions, engine: Local) -> None:
    async def story() -> list[np.ndarray]:
        handle = (await actions.receive(gzip.compress(nifti()))).handle
        await actions.look(handle, window=(500.0, 100.0))
        await asked(actions, "One?", handle)
        update = await actions.look(handle, plane="sagittal", frame=None)
        assert "sagittal, slice 10 of 20, window 500,100 (as given)" in str(update.picture)
        assert (update.picture or {})["facts"]["frames"] == 20
        assert "sagittal, slice 3 of 20" in str((await actions.look(handle, frame=3)).picture)
        await asked(actions, "Two?", handle)
        return [np.asarray(request.image) for request in engine.requests[-2:]]

    acquired, sagittal = asyncio.run(story())
    assert acquired.shape != sagittal.shape


def test_the_last_question_is_asked_again_of_another_window_and_its_answer_forgotten(
    actions: PageActions, engine: Local
) -> None:
    async def story() -> list[PageUpdate]:
        handle = (await actions.receive(SCAN)).handle
        await asked(actions, "One?", handle)
        await asked(actions, "Two?", handle)
        await actions.look(handle, window=(500.0, 100.0))
        return [update async for update in actions.ask("", handle, False, again=True)]

    last = asyncio.run(story())[-1].exchange
    assert last is not None
    assert (last["number"], last["question"]) == (1, "Two?")
    assert last["picture"]["window"]["center"] == 500.0
    assert [turn.text for turn in engine.requests[-1].turns][::2] == ["One?", "Two?"]


def frame_of(body: bytes) -> tuple[dict[str, Any], np.ndarray]:
    length = int.from_bytes(body[:4], "little")
    head = json.loads(body[4 : 4 + length])
    assert length % 4 == 0
    kind = "<u2" if head["scale"] else np.uint8
    shape = (head["height"], head["width"]) + ((3,) if head["channels"] == 3 else ())
    return head, np.frombuffer(body, kind, offset=4 + length).reshape(shape)


def test_the_viewer_gets_the_values_themselves_and_no_word_of_the_file(
    actions: PageActions,
) -> None:
    tags = {"PatientName": "SMITH^JOHN", "PatientID": "4711", "RescaleIntercept": -1024}
    scan = dicom(np.stack([ramp(), ramp()[::-1]]), Modality="CT", RescaleSlope=1, **tags)

    async def story() -> list[bytes]:
        handle = (await actions.receive(scan)).handle
        return [await actions.pixels(handle, frame, None) for frame in (None, 2)]

    first, second = asyncio.run(story())
    for body, stored in ((first, ramp()), (second, ramp()[::-1])):
        head, values = frame_of(body)
        scale = head["scale"]
        np.testing.assert_array_equal(values * scale["slope"] + scale["intercept"], stored - 1024.0)
        assert head["facts"]["frames"] == 2
        assert b"SMITH" not in body
        assert b"4711" not in body


def test_a_picture_of_8_bits_is_sent_as_the_model_sees_it(actions: PageActions) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    grey = np.repeat(pixels[..., :1], 3, axis=-1)

    async def story() -> list[bytes]:
        found = []
        for each in (pixels, grey):
            buffer = BytesIO()
            Image.fromarray(each).save(buffer, "PNG")
            handle = (await actions.receive(buffer.getvalue())).handle
            found.append(await actions.pixels(handle, None, None))
        return found

    coloured, plain = map(frame_of, asyncio.run(story()))
    np.testing.assert_array_equal(coloured[1], pixels)
    np.testing.assert_array_equal(plain[1], grey[..., 0])
    assert coloured[0]["scale"] is None


@pytest.mark.parametrize(
    ("question", "handle", "part"),
    [
        (" ", "", "Type a question first"),
        ("x" * (MAX_QUESTION + 1), "", "too long"),
        ("Is it?", "gone", ENDED),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(
    actions: PageActions, question: str, handle: str, part: str
) -> None:
    (update,) = asyncio.run(asked(actions, question, handle))
    assert part in update.notice
    assert len(actions.cases) == 0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConfigError("the queue is full; try again"), "The queue is full; try again."),
        (RuntimeError("/secret/path 0x7f"), "The server could not answer; ask again"),
    ],
)
def test_an_engine_that_fails_is_one_line_and_the_page_is_free_again(
    actions: PageActions,
    engine: Local,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    said: str,
) -> None:
    async def fails(*_: object, **__: object) -> AsyncIterator[ChatChunk]:
        raise error
        yield

    monkeypatch.setattr(engine, "stream", fails)
    last = asyncio.run(asked(actions, "Is it a secret?", ""))[-1]
    assert last.notice.startswith(said)
    assert last.busy is False
    assert "secret" not in caplog.text


def test_a_question_needs_no_picture(actions: PageActions, engine: Local) -> None:
    steps = asyncio.run(asked(actions, "What is a nodule?", "", explain=True))
    assert engine.requests[-1].image is None
    assert steps[0].handle
    assert (steps[-1].exchange or {})["evidence"] is None


def test_a_conversation_has_an_end(actions: PageActions) -> None:
    async def story() -> list[PageUpdate]:
        case = await opened(actions, "ct")
        await asked(actions, "One?", case.handle)
        case.exchanges *= MAX_EXCHANGES
        return await asked(actions, "Another?", case.handle)

    (update,) = asyncio.run(story())
    assert "This conversation is full" in update.notice


def test_of_a_bad_file_nothing_is_kept(actions: PageActions) -> None:
    with pytest.raises(ImageError, match="neither PNG nor JPEG"):
        asyncio.run(actions.receive(b"not a picture at all"))
    assert len(actions.cases) == 0


def test_an_ended_case_is_said_and_cleared(actions: PageActions) -> None:
    update = actions.show("gone")
    assert (update.handle, update.picture, update.exchanges) == ("", {}, 0)
    assert update.picture_notice == ENDED
    with pytest.raises(ProblemError, match="has ended"):
        asyncio.run(actions.pixels("gone", None, None))


def test_starting_anew_keeps_the_picture_and_forgets_the_rest(actions: PageActions) -> None:
    async def story() -> tuple[Any, PageUpdate]:
        case = await opened(actions, "ct")
        await asked(actions, "One?", case.handle, explain=True)
        return case, actions.anew(case.handle)

    case, update = asyncio.run(story())
    assert (case.exchanges, update.exchanges) == ([], 0)
    assert case.picture is not None


def test_the_file_of_a_plain_picture_is_not_kept_once_it_is_decoded(actions: PageActions) -> None:
    buffer = BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "PNG")
    assert asyncio.run(actions.receive(buffer.getvalue())).data is None
    assert (
        asyncio.run(actions.receive(SCAN)).data == SCAN
    )  # other windows and frames are made of it


def test_an_engine_that_cannot_explain_is_not_asked_to(
    actions: PageActions, engine: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "explains", False)
    monkeypatch.setattr(engine, "explain", None)

    async def story() -> list[PageUpdate]:
        case = await opened(actions, "ct")
        return await asked(actions, "Is there any nodule?", case.handle, explain=True)

    steps = asyncio.run(story())
    assert steps[-1].busy is False
    assert (steps[-1].exchange or {})["confidence"] is not None
    assert not any("Looking at regions" in step.pending for step in steps)
