from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medmoe.errors import CheckpointError, ConfigError
from medmoe.inference.chat import ChatRequest, Turn
from medmoe.inference.engine import SHORT_ANSWER, MedMoe
from medmoe.inference.kept import PictureCache
from medmoe.serving.chat_engine import EngineError, busy
from medmoe.serving.local_engine import LocalEngine

IMAGES = [
    Image.fromarray(np.random.default_rng(s).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    for s in range(3)
]
QUESTIONS = ["Is there a mass?", "What organ is this?", "In the left lung?", "Is it liver, yes no?"]


def request(text: str, image: Image.Image | None = None, tokens: int = SHORT_ANSWER) -> ChatRequest:
    return ChatRequest((Turn("user", text),), image, tokens)


@pytest.fixture(autouse=True)
def nothing_kept(tiny: MedMoe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test begin with pictures that nobody has shown."""
    monkeypatch.setattr(tiny, "pictures", PictureCache(lambda images: tiny.encode(images)))


def run(
    tiny_model: Path, tiny: MedMoe, work: Callable[[LocalEngine], Awaitable[Any]], **settings: Any
) -> Any:
    async def all_of_it() -> Any:
        engine = LocalEngine(tiny_model, load_model=lambda: tiny, **settings)
        await engine.start()
        try:
            return await work(engine)
        finally:
            await engine.stop()

    return asyncio.run(all_of_it())


async def whole(engine: LocalEngine, chat: ChatRequest, deadline: float | None = None) -> str:
    return "".join([chunk.text async for chunk in engine.stream(chat, deadline=deadline)])


def test_many_at_once_get_what_each_gets_alone(tiny_model: Path, tiny: MedMoe) -> None:
    asked = [(text, image) for text in QUESTIONS for image in (*IMAGES, None)]
    expected = [tiny.answer(image, text).text for text, image in asked]

    async def work(engine: LocalEngine) -> list[str]:
        return await asyncio.gather(*(whole(engine, request(t, i)) for t, i in asked))

    assert run(tiny_model, tiny, work, max_batch=5) == expected


def test_one_picture_is_encoded_once_for_all_its_questions(
    tiny_model: Path, tiny: MedMoe, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = tiny.encode
    monkeypatch.setattr(
        tiny, "encode", lambda images: encoded.append(len(images)) or encode(images)
    )

    async def work(engine: LocalEngine) -> None:
        again = [image.copy() for image in (IMAGES[0],) * 4]
        await asyncio.gather(
            *(whole(engine, request(q, i)) for q, i in zip(QUESTIONS, again, strict=True))
        )
        await whole(engine, request(QUESTIONS[0], IMAGES[0].copy()))

    run(tiny_model, tiny, work)
    assert sum(encoded) == 1


def test_a_full_queue_refuses_and_says_when_to_come_back(tiny_model: Path, tiny: MedMoe) -> None:
    async def work(engine: LocalEngine) -> list[Any]:
        asked = [whole(engine, request(QUESTIONS[0], IMAGES[0])) for _ in range(12)]
        return await asyncio.gather(*asked, return_exceptions=True)

    found = run(tiny_model, tiny, work, max_batch=1, max_waiting=3)
    refused = [one for one in found if isinstance(one, EngineError)]
    assert 0 < len(refused) < 12
    assert {(one.status, one.code) for one in refused} == {(429, "queue_full")}
    assert {one.retry_after for one in refused} <= {1, 2, 3}


def test_who_is_refused_together_is_not_told_to_return_together() -> None:
    told = [busy(2).retry_after for _ in range(200)]
    assert set(told) == {1, 2, 3}
    assert {busy(1).retry_after for _ in range(20)} == {1}


def test_a_late_answer_is_given_up_and_its_place_is_free(tiny_model: Path, tiny: MedMoe) -> None:
    async def work(engine: LocalEngine) -> None:
        with pytest.raises(EngineError, match="no answer in time") as caught:
            await whole(engine, request(QUESTIONS[0], IMAGES[0]), deadline=0.001)
        assert caught.value.status == 504
        await until_idle(engine)
        assert await whole(engine, request(QUESTIONS[0], IMAGES[0])) is not None

    run(tiny_model, tiny, work)


def test_who_leaves_frees_the_place_within_a_token(tiny_model: Path, tiny: MedMoe) -> None:
    async def work(engine: LocalEngine) -> None:
        for _ in range(20):
            async with aclosing(engine.stream(request("left lung", IMAGES[0], 150))) as chunks:
                async for _ in chunks:
                    break
            await until_idle(engine)

    run(tiny_model, tiny, work)


async def until_idle(engine: LocalEngine) -> None:
    end = time.monotonic() + 10
    while engine.load().running or engine.load().waiting:
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


def test_draining_finishes_what_is_under_way_and_takes_nothing_new(
    tiny_model: Path, tiny: MedMoe
) -> None:
    async def work(engine: LocalEngine) -> None:
        under_way = asyncio.ensure_future(whole(engine, request(QUESTIONS[1], IMAGES[1])))
        await asyncio.sleep(0)
        engine.drain()
        with pytest.raises(EngineError, match="draining") as caught:
            await whole(engine, request(QUESTIONS[0]))
        assert caught.value.status == 503
        assert await under_way == tiny.answer(IMAGES[1], QUESTIONS[1]).text

    run(tiny_model, tiny, work)


def test_a_conversation_that_does_not_fit_harms_no_other(tiny_model: Path, tiny: MedMoe) -> None:
    async def work(engine: LocalEngine) -> None:
        long = whole(engine, request("lung " * 4000, IMAGES[0]))
        good = whole(engine, request(QUESTIONS[0], IMAGES[0]))
        found = await asyncio.gather(long, good, return_exceptions=True)
        assert isinstance(found[0], ConfigError)
        assert found[1] == tiny.answer(IMAGES[0], QUESTIONS[0]).text

    run(tiny_model, tiny, work)


def test_a_fault_of_ours_ends_the_requests_and_not_the_engine(
    tiny_model: Path, tiny: MedMoe, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(engine: LocalEngine) -> None:
        with monkeypatch.context() as broken:
            broken.setattr(tiny, "encode", lambda images: 1 / 0)
            with pytest.raises(EngineError, match="answering failed"):
                await whole(engine, request(QUESTIONS[0], IMAGES[2]))
        assert await whole(engine, request(QUESTIONS[0], IMAGES[2])) is not None

    run(tiny_model, tiny, work)


def test_evidence_comes_between_the_words_of_others(tiny_model: Path, tiny: MedMoe) -> None:
    async def work(engine: LocalEngine) -> Any:
        asked = [whole(engine, request(q, IMAGES[0])) for q in QUESTIONS]
        found = await asyncio.gather(engine.explain(IMAGES[0], QUESTIONS[0]), *asked)
        return found[0]

    evidence = run(tiny_model, tiny, work)
    assert evidence["question"] == QUESTIONS[0]


def test_a_model_that_cannot_be_loaded_is_said(tiny_model: Path) -> None:
    def refuse() -> MedMoe:
        raise CheckpointError("damaged")

    async def work() -> None:
        engine = LocalEngine(tiny_model, load_model=refuse)
        with pytest.raises(CheckpointError, match="damaged"):
            await engine.start()
        assert engine.state == "broken"

    asyncio.run(work())
