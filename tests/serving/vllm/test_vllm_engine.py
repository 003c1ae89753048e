"""The real vLLM on tiny models: the same tokens as our own engine, and the manners of an engine.

Starting it takes a minute, so each family is served once and all that is to be seen is collected.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.model.tiny import FAMILIES, Family, moe_model, processor

from medmoe.errors import ConfigError, MedMoeError
from medmoe.inference.chat import ChatChunk, ChatRequest, Turn, stream_chat
from medmoe.inference.engine import MedMoe
from medmoe.model.checkpoint import save_model

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

from medmoe.serving.vllm.vllm_engine import VllmEngine

#: vLLM's attention on CPUs has no heads below 32: two of them.
WIDTH, TOP_K = 64, {"stablelm": 2, "phi": 1}
TOKENS = 12


def picture(seed: int) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    return Image.fromarray(values)


def asked(image: Image.Image | None, *texts: str, tokens: int = TOKENS) -> ChatRequest:
    roles = ("user", "assistant")
    turns = tuple(Turn(roles[i % 2], text) for i, text in enumerate(texts))  # type: ignore[arg-type]
    return ChatRequest(turns, image, tokens)


REQUESTS = (
    asked(picture(1), "What organ is this?"),
    asked(picture(2), "Is there a mass in the left lung?"),
    asked(picture(1), "What organ is this?", "liver", "Is there a mass?"),
    asked(None, "Is there a mass in the left lung?"),
    asked(None, "What organ is this?", "liver", "yes no"),
    replace(asked(picture(1), "What organ is this?"), stop=("e", " ")),
    replace(asked(picture(1), "What organ is this?"), further=((0, picture(2)), (0, picture(3)))),
    replace(
        asked(picture(1), "What organ is this?", "liver", "Is there a mass?"),
        further=((2, picture(2)),),
    ),
)


@dataclass
class Seen:
    """What one life of an engine showed."""

    states: list[str] = field(default_factory=list)
    batch: list[list[ChatChunk]] = field(default_factory=list)
    alone: list[ChatChunk] = field(default_factory=list)
    errors: dict[str, MedMoeError] = field(default_factory=dict)
    under_way: list[int] = field(default_factory=list)


async def answer(engine: VllmEngine, request: ChatRequest, **more: Any) -> list[ChatChunk]:
    async with aclosing(engine.stream(request, **more)) as chunks:
        return [chunk async for chunk in chunks]


async def _error(work: Any) -> MedMoeError:
    try:
        await work
    except MedMoeError as error:
        return error
    raise AssertionError("nothing was refused")


async def live(engine: VllmEngine) -> Seen:
    seen = Seen(states=[engine.state])
    seen.errors["loading"] = await _error(answer(engine, REQUESTS[0]))
    await engine.start()
    try:
        seen.states.append(engine.state)
        seen.batch = await asyncio.gather(*(answer(engine, each) for each in REQUESTS))
        seen.alone = await answer(engine, REQUESTS[0])
        async with aclosing(engine.stream(asked(None, "yes no", tokens=100))) as chunks:
            await anext(chunks)
            seen.under_way.append(engine.load().running)
        seen.under_way.append(engine.load().running)
        seen.errors["late"] = await _error(answer(engine, REQUESTS[0], deadline=0.0))
        seen.errors["long"] = await _error(answer(engine, asked(None, "yes " * 300)))
        seen.errors["explain"] = await _error(engine.explain(picture(1), "What organ is this?"))
        results = await asyncio.gather(
            *(answer(engine, each) for each in (*REQUESTS, *REQUESTS)), return_exceptions=True
        )
        seen.errors["full"] = next(one for one in results if isinstance(one, MedMoeError))
        waiting = asyncio.create_task(answer(engine, REQUESTS[0]))
        await asyncio.sleep(0)
        engine.drain()
        seen.states.append(engine.state)
        seen.errors["draining"] = await _error(answer(engine, REQUESTS[0]))
        assert await waiting == seen.alone
    finally:
        await engine.stop()
    return seen


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def folder(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("vllm") / family
    save_model(moe_model(family, TOP_K[family], width=WIDTH), processor(), directory, {})
    return directory


@pytest.fixture(scope="module")
def seen(folder: Path) -> Seen:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        options = {"dtype": "float32", "enforce_eager": True}
        return asyncio.run(live(VllmEngine(folder, max_batch=8, max_waiting=2, options=options)))


def test_tokens_of_images_texts_and_follow_ups_in_a_batch_are_those_of_our_engine(
    seen: Seen, folder: Path
) -> None:
    ours = MedMoe.load(folder)
    for request, theirs in zip(REQUESTS, seen.batch, strict=True):
        expected = list(stream_chat(ours, request))
        assert "".join(chunk.text for chunk in theirs) == "".join(c.text for c in expected)
        last, wanted = theirs[-1], expected[-1]
        assert last.answer is not None
        assert wanted.answer is not None
        assert (last.finish, last.answer.text) == (wanted.finish, wanted.answer.text)
        assert (last.prompt_tokens, last.completion_tokens) == (
            wanted.prompt_tokens, wanted.completion_tokens,
        )  # fmt: skip
        # A product of a dozen probabilities from sums in another order, in float32.
        assert math.isclose(last.answer.confidence, wanted.answer.confidence, rel_tol=1e-3)
        assert last.answer.routing is None


def test_an_answer_does_not_depend_on_who_is_answered_beside_it(seen: Seen) -> None:
    assert [chunk.text for chunk in seen.alone] == [chunk.text for chunk in seen.batch[0]]


def test_answers_come_piece_by_piece(seen: Seen) -> None:
    assert sum(len(chunks) for chunks in seen.batch) > 2 * len(REQUESTS)


def test_states_follow_a_life(seen: Seen) -> None:
    assert seen.states == ["loading", "ready", "draining"]


def test_closing_a_stream_frees_its_place(seen: Seen) -> None:
    assert seen.under_way == [1, 0]


@pytest.mark.parametrize(
    ("when", "code"),
    [("loading", "not_ready"), ("late", "deadline_passed"), ("explain", "no_evidence"),
     ("full", "queue_full"), ("draining", "not_ready")],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_by_its_code(seen: Seen, when: str, code: str) -> None:
    assert getattr(seen.errors[when], "code", None) == code


def test_a_conversation_that_does_not_fit_is_refused(seen: Seen) -> None:
    assert isinstance(seen.errors["long"], ConfigError)
    assert "the model reads at most 256" in str(seen.errors["long"])


def test_an_option_that_vllm_does_not_have_is_refused_with_the_nearest(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"dtpe: vLLM has no such option; did you mean 'dtype'"):
        VllmEngine(folder, options={"dtpe": "float32"})


def test_an_option_that_is_ours_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="model_impl: is set by medmoe itself"):
        VllmEngine(folder, options={"model_impl": "vllm"})
