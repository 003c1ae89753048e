"""What the page's controls do, with a real engine and without a browser."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.data.samples import dicom, ramp
from tests.serving.page.support import Local

from medmoe.errors import ConfigError, ImageError
from medmoe.inference.chat import ChatChunk
from medmoe.serving.page.cases import CaseStore
from medmoe.serving.page.desk import ENDED, EXAMPLES, MAX_EXCHANGES, MAX_QUESTION, Desk, Seen

SCAN = dicom(np.stack([ramp(), ramp()[::-1]]), Modality="CT")


@pytest.fixture(scope="module")
def engine() -> Local:
    return Local(remember=True)


@pytest.fixture
def desk(engine: Local) -> Desk:
    return Desk(engine, CaseStore(), 4)


async def asked(desk: Desk, question: str, handle: str, *, explain: bool = False) -> list[Seen]:
    return [seen async for seen in desk.ask(question, handle, explain, "page")]


def test_an_answer_streams_and_its_evidence_follows(desk: Desk) -> None:
    async def story() -> list[Seen]:
        case, _ = await desk.example("ct", "page")
        return await asked(desk, "Is there any nodule?", case.handle, explain=True)

    steps = asyncio.run(story())
    assert (steps[0].busy, steps[0].question, steps[-1].busy) == (True, "", False)
    texts = [step.messages[-1]["content"] for step in steps[1:] if step.messages]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert "Answering" in str(steps[0].evidence)
    assert "Looking at regions" in str(steps[-2].evidence)
    assert "What would change it" in str(steps[-1].evidence)
    assert 'class="regions"' in str(steps[-1].picture)


def test_a_follow_up_brings_what_was_said_before(desk: Desk, engine: Local) -> None:
    async def story() -> None:
        case, _ = await desk.example("mri", "page")
        await asked(desk, "What organ is this?", case.handle)
        await asked(desk, "Is it  normal?", case.handle)

    asyncio.run(story())
    first, second = engine.requests[-2:]
    assert [turn.role for turn in second.turns] == ["user", "assistant", "user"]
    assert second.turns[0] == first.turns[0]
    assert second.turns[2].text == "Is it normal?"
    assert first.image is second.image is not None


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_every_example_is_a_picture_with_a_question(desk: Desk, name: str) -> None:
    case, seen = asyncio.run(desk.example(name, "page"))
    assert seen.question == EXAMPLES[name][1]
    assert "a made-up example" in str(seen.picture)
    assert case.picture is not None


def test_an_answer_that_is_stopped_frees_the_engine_and_is_marked(
    desk: Desk, engine: Local
) -> None:
    async def story() -> tuple[Seen, bool]:
        case, _ = await desk.example("ct", "page")
        before = engine.freed
        stream = desk.ask("Is there any nodule?", case.handle, False, "page")
        async for seen in stream:
            if seen.messages and len(seen.messages) == 2:
                break
        await stream.aclose()  # type: ignore[attr-defined]
        return desk.stopped(case.handle), engine.freed == before + 1

    seen, freed = asyncio.run(story())
    assert freed
    assert "The answer is not complete" in str(seen.evidence)
    assert seen.busy is False


def test_another_window_is_what_the_next_question_is_about(desk: Desk, engine: Local) -> None:
    async def story() -> list[np.ndarray]:
        handle = (await desk.receive(SCAN)).handle
        _, seen = await desk.show(handle, "page")
        assert "frame 1 of 2" in str(seen.picture)
        await asked(desk, "One?", handle)
        _, seen = await desk.window(handle, (500.0, 100.0), "page")
        assert "frame 1 of 2, window 500,100 (as given)" in str(seen.picture)
        seen = await desk.frame(handle, 2, "page")
        assert "frame 2 of 2, window 500,100 (as given)" in str(seen.picture)
        await asked(desk, "Two?", handle)
        return [np.asarray(request.image) for request in engine.requests[-2:]]

    first, second = asyncio.run(story())
    assert not np.array_equal(first, second)


def test_windows_and_frames_that_come_at_once_are_all_taken(desk: Desk) -> None:
    async def story() -> str:
        handle = (await desk.receive(SCAN)).handle
        steps = [desk.window(handle, (500.0, 90.0 + i), "page") for i in range(4)]
        await asyncio.gather(*steps, desk.frame(handle, 2, "page"))
        case = desk.cases.get(handle)
        assert case is not None
        assert case.picture is not None
        return case.picture.facts.description()

    assert asyncio.run(story()) == "DICOM, ct, frame 2 of 2, window 500,93 (as given)"


def test_a_window_or_frame_that_cannot_be_shown_leaves_the_one_before(desk: Desk) -> None:
    async def story() -> tuple[Seen, Seen, str]:
        handle = (await desk.receive(SCAN)).handle
        _, window = await desk.window(handle, (1.0, float("nan")), "page")
        frame = await desk.frame(handle, 99, "page")
        _, shown = await desk.show(handle, "page")
        return window, frame, str(shown.picture)

    window, frame, shown = asyncio.run(story())
    assert "the width must be above 0" in window.picture_said
    assert frame.picture_said == "Frame 99: choose one of 1 to 2."
    assert "frame 1 of 2" in shown


def test_regions_are_not_drawn_over_another_view(desk: Desk) -> None:
    async def story() -> tuple[str, str, str]:
        handle = (await desk.receive(SCAN)).handle
        with_regions = (await asked(desk, "One?", handle, explain=True))[-1].picture
        other = await desk.frame(handle, 2, "page")
        back = await desk.frame(handle, 1, "page")
        return str(with_regions), str(other.picture), str(back.picture)

    drawn, other, back = asyncio.run(story())
    assert 'class="regions"' in drawn
    assert 'class="regions"' not in other
    assert back == drawn


@pytest.mark.parametrize(
    ("question", "handle", "part"),
    [
        (" ", "", "Type a question first"),
        ("x" * (MAX_QUESTION + 1), "", "too long"),
        ("Is it?", "gone", ENDED),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(
    desk: Desk, question: str, handle: str, part: str
) -> None:
    (seen,) = asyncio.run(asked(desk, question, handle))
    assert part in seen.said
    assert len(desk.cases) == 0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConfigError("the queue is full; try again"), "The queue is full; try again."),
        (RuntimeError("/secret/path 0x7f"), "The server could not answer; ask again"),
    ],
)
def test_an_engine_that_fails_is_one_line_and_the_page_is_free_again(
    desk: Desk,
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
    last = asyncio.run(asked(desk, "Is it a secret?", ""))[-1]
    assert last.said.startswith(said)
    assert last.busy is False
    assert "secret" not in caplog.text


def test_a_question_needs_no_picture(desk: Desk, engine: Local) -> None:
    steps = asyncio.run(asked(desk, "What is a nodule?", "", explain=True))
    assert engine.requests[-1].image is None
    assert steps[0].handle
    assert "What would change it" not in str(steps[-1].evidence)


def test_a_conversation_has_an_end(desk: Desk) -> None:
    async def story() -> list[Seen]:
        case, _ = await desk.example("ct", "page")
        await asked(desk, "One?", case.handle)
        case.exchanges *= MAX_EXCHANGES
        return await asked(desk, "Another?", case.handle)

    (seen,) = asyncio.run(story())
    assert "This conversation is full" in seen.said


def test_of_a_bad_file_nothing_is_kept(desk: Desk) -> None:
    with pytest.raises(ImageError, match="neither PNG nor JPEG"):
        asyncio.run(desk.receive(b"not a picture at all"))
    assert len(desk.cases) == 0


def test_an_ended_case_is_said_and_cleared(desk: Desk) -> None:
    case, seen = asyncio.run(desk.show("gone", "page"))
    assert case is None
    assert (seen.handle, seen.picture, seen.messages, seen.picture_said) == ("", "", [], ENDED)


def test_starting_anew_keeps_the_picture_and_forgets_the_rest(desk: Desk) -> None:
    async def story() -> tuple[Any, Seen]:
        case, _ = await desk.example("ct", "page")
        await asked(desk, "One?", case.handle, explain=True)
        return case, await desk.anew(case.handle, "page")

    case, seen = asyncio.run(story())
    assert (case.exchanges, seen.messages, seen.evidence) == ([], [], "")
    assert 'class="regions"' not in str(seen.picture)


def test_the_file_of_a_plain_picture_is_not_kept_once_it_is_decoded(desk: Desk) -> None:
    buffer = BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "PNG")
    assert asyncio.run(desk.receive(buffer.getvalue())).data is None
    assert asyncio.run(desk.receive(SCAN)).data == SCAN  # other windows and frames are made of it


def test_an_engine_that_cannot_explain_is_not_asked_to(
    desk: Desk, engine: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "explains", False)
    monkeypatch.setattr(engine, "explain", None)

    async def story() -> list[Seen]:
        case, _ = await desk.example("ct", "page")
        return await asked(desk, "Is there any nodule?", case.handle, explain=True)

    steps = asyncio.run(story())
    assert steps[-1].busy is False
    assert "Confidence" in str(steps[-1].evidence)
    assert not any("Looking at regions" in str(step.evidence) for step in steps)
