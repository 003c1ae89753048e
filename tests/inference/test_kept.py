"""What begins alike is read once: the same answers from fewer tokens, of the same picture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image
from tests.model.tiny import IMAGE_TOKENS, moe_model, processor
from torch import Tensor

from medmoe.inference import kept as kept_module
from medmoe.inference.chat import ChatBatch, ChatRequest, ChatRow, Turn, prepare, stream_chat
from medmoe.inference.engine import Answer, MedMoe
from medmoe.inference.kept import Prefix, PrefixCache

IMAGE = 7
QUESTIONS = ("Is there a mass?", "Where is it, and how large?", "Which organ?")


def shade(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def new_engine() -> MedMoe:
    return MedMoe(moe_model("stablelm"), processor(), max_new_tokens=6)


def about(*texts: str, image: Image.Image, later: Image.Image | None = None) -> ChatRequest:
    roles = ("user", "assistant")
    turns = tuple(Turn(roles[i % 2], text) for i, text in enumerate(texts))  # type: ignore[arg-type]
    further = () if later is None else ((len(texts) - 1, later),)
    return ChatRequest(turns, image, 6, further=further)


def answer(engine: MedMoe, request: ChatRequest) -> Answer:
    last = list(stream_chat(engine, request))[-1].answer
    assert last is not None
    return last


@contextmanager
def tokens_read(engine: MedMoe, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Collect how many tokens of a prompt, padding included, each pass reads."""
    lengths: list[int] = []
    embed = engine.model.model.embed

    def counted(ids: Tensor, features: Tensor | None) -> Tensor:
        lengths.append(ids.shape[1])
        return embed(ids, features)

    with monkeypatch.context() as patch:
        patch.setattr(engine.model.model, "embed", counted)
        yield lengths


def assert_same(found: Answer, expected: Answer) -> None:
    assert found.text == expected.text
    assert found.confidence == pytest.approx(expected.confidence, rel=1e-3)
    for one, other in zip(
        (found.routing, *found.further), (expected.routing, *expected.further), strict=True
    ):
        assert one is not None
        assert other is not None
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)
        assert one.experts == other.experts


def states(length: int) -> tuple[tuple[Tensor, Tensor], ...]:
    column = torch.arange(length, dtype=torch.float32).view(1, 1, length, 1)
    return ((column.expand(1, 2, -1, 4), -column.expand(1, 2, -1, 4)),) * 3


def prompt(*pictures: int, words: int = 20) -> tuple[int, ...]:
    """Return the ids of a prompt: pictures of four tokens each, each before some words."""
    ids: tuple[int, ...] = (1,)
    for number in pictures:
        ids += (IMAGE,) * 4 + tuple(range(100 * number, 100 * number + words))
    return ids


def kept(ids: tuple[int, ...], *pictures: bytes) -> Prefix:
    return Prefix(ids, pictures, (None,) * len(pictures), states(len(ids)))


def test_the_longest_beginning_is_taken_over_but_for_the_last_token() -> None:
    cache = PrefixCache(IMAGE, 4)
    cache.keep(kept(prompt(1), b"a"))
    cache.keep(kept(prompt(1, 2), b"a", b"b"))
    same = cache.longest(prompt(1, 2), (b"a", b"b"))
    assert same.ids == prompt(1, 2)[:-1]
    assert same.pictures == (b"a", b"b")
    assert same.states[0][0].shape[2] == len(same.ids)
    longer = cache.longest(prompt(1, 2, 3), (b"a", b"b", b"c"))
    assert longer.ids == prompt(1, 2)
    other = cache.longest((*prompt(1)[:-3], 5, 5), (b"a",))
    assert other.ids == prompt(1)[:-3]


def test_a_prompt_ends_before_a_picture_that_is_another() -> None:
    cache = PrefixCache(IMAGE, 4)
    cache.keep(kept(prompt(1, 2), b"a", b"b"))
    found = cache.longest(prompt(1, 2), (b"a", b"other"))
    assert found.ids == prompt(1)
    assert found.pictures == (b"a",)
    assert cache.longest(prompt(1, 2), (b"other", b"b")).ids == ()


def test_little_that_begins_alike_is_read_anew() -> None:
    cache = PrefixCache(IMAGE, 4)
    cache.keep(kept(prompt(1, words=4), b"a"))
    assert cache.longest(prompt(1, words=9), (b"a",)).ids == ()


def test_the_prompt_that_was_not_used_for_longest_is_dropped() -> None:
    each = sum(k.nbytes + v.nbytes for k, v in states(len(prompt(1))))
    cache = PrefixCache(IMAGE, 4, most_bytes=2 * each)
    for name in (b"a", b"b"):
        cache.keep(kept(prompt(1), name))
    assert cache.longest(prompt(1), (b"a",)).ids
    cache.keep(kept(prompt(1), b"c"))
    assert [bool(cache.longest(prompt(1), (name,)).ids) for name in (b"a", b"b", b"c")] == [
        True, False, True,
    ]  # fmt: skip


def test_a_prompt_is_forgotten_a_minute_after_its_last_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(kept_module.time, "monotonic", lambda: now[0])
    cache = PrefixCache(IMAGE, 4)
    for name in (b"a", b"b"):
        cache.keep(kept(prompt(1), name))
    now[0] += 50
    assert cache.longest(prompt(1), (b"a",)).ids
    now[0] += 50
    cache.forget()
    assert cache.longest(prompt(1), (b"a",)).ids
    assert not cache.longest(prompt(1), (b"b",)).ids


def test_questions_that_come_together_read_their_picture_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = [answer(new_engine(), about(text, image=shade(1))) for text in QUESTIONS]
    engine = new_engine()
    features = engine.encode([shade(1)])
    rows = [
        prepare(about(text, image=shade(1)), features, engine.tokenizer, engine.limit)
        for text in QUESTIONS
    ]
    batch = ChatBatch(engine)
    with tokens_read(engine, monkeypatch) as read:
        batch.join(rows)
    assert len(read) == 2
    assert read[0] == len(rows[0].ids)
    assert read[1] <= max(len(row.ids) for row in rows[1:]) - IMAGE_TOKENS
    said: dict[ChatRow, Answer] = {}
    while batch.rows:
        said |= {row: chunk.answer for row, chunk in batch.step() if chunk.answer is not None}
    for row, one in zip(rows, expected, strict=True):
        assert_same(said[row], one)


def test_a_later_turn_reads_only_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, image = new_engine(), shade(2)
    first = answer(engine, about(QUESTIONS[0], image=image))
    turns = (QUESTIONS[0], first.text, QUESTIONS[1])
    with tokens_read(engine, monkeypatch) as read:
        found = answer(engine, about(*turns, image=image))
    whole = len(engine.tokenizer.conversation([*zip(("user", "assistant", "user"), turns,
                                                    strict=True)], with_image=True))  # fmt: skip
    assert read[0] < whole - IMAGE_TOKENS - 6
    assert_same(found, answer(new_engine(), about(*turns, image=image)))


def test_a_picture_of_a_later_turn_is_decided_on_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = new_engine()
    first = answer(engine, about(QUESTIONS[0], image=shade(1)))
    later = about(QUESTIONS[0], first.text, QUESTIONS[2], image=shade(1), later=shade(5))
    with tokens_read(engine, monkeypatch) as read:
        found = answer(engine, later)
    assert IMAGE_TOKENS < read[0] < 2 * IMAGE_TOKENS + 20
    assert_same(found, answer(new_engine(), later))


def test_another_picture_with_the_same_question_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = new_engine()
    answer(engine, about(QUESTIONS[0], image=shade(1)))
    found = answer(engine, about(QUESTIONS[0], image=shade(3)))
    assert_same(found, answer(new_engine(), about(QUESTIONS[0], image=shade(3))))
