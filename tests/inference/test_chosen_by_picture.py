"""What a picture decided is kept with what was read of it: cached, shared, in conversations."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch
from tests.inference.test_kept import QUESTIONS, about, answer, assert_same, shade
from tests.model.tiny import FAMILIES, Family, moe_model, processor

from medmoe.inference.chat import ChatBatch, ChatRequest, ChatRow, prepare
from medmoe.inference.engine import Answer, MedMoe
from medmoe.inference.evidence import candidates
from medmoe.inference.kept import Prefix, PrefixCache

SHADES = (1, 2, 3, 5)


def new_engine(family: Family = "stablelm") -> MedMoe:
    return MedMoe(moe_model(family, routing="image"), processor(), max_new_tokens=6)


def test_the_pictures_here_are_not_all_alike() -> None:
    routings = new_engine().route(new_engine().encode([shade(n) for n in SHADES]))
    assert len({r.domain for r in routings if r is not None}) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_questions_together_are_answered_as_one_by_one(family: Family) -> None:
    asked = [(shade(n), text) for n in SHADES[:2] for text in QUESTIONS[:2]]
    together = new_engine(family).answer_batch(asked, evidence=True)
    for (image, text), found in zip(asked, together, strict=True):
        alone = new_engine(family).answer(image, text, evidence=True)
        assert_same(found, alone)
        assert_same(answer(new_engine(family), about(text, image=image)), alone)


def test_a_conversation_goes_on_as_if_read_anew() -> None:
    engine = new_engine()
    for number in SHADES:
        first = answer(engine, about(QUESTIONS[0], image=shade(number)))
        turns = (QUESTIONS[0], first.text, QUESTIONS[1])
        found = answer(engine, about(*turns, image=shade(number)))
        assert_same(found, answer(new_engine(), about(*turns, image=shade(number))))
        later = about(*turns[:2], QUESTIONS[2], image=shade(number), later=shade(7))
        assert_same(answer(engine, later), answer(new_engine(), later))


def test_conversations_that_come_and_go_keep_their_decisions() -> None:
    requests: list[ChatRequest] = [
        replace(about(text, image=shade(number)), image=None if number == 3 else shade(number))
        for number, text in zip(SHADES, (*QUESTIONS, QUESTIONS[0]), strict=False)
    ]
    expected = [answer(new_engine(), request) for request in requests]
    engine = new_engine()
    batch, waiting = ChatBatch(engine), iter(requests)
    rows: list[ChatRow] = []
    said: dict[ChatRow, Answer] = {}
    while len(said) < len(requests):
        new = [
            prepare(r, engine.pictures.features(r.images), engine.tokenizer, engine.limit)
            for r in islice(waiting, 2)
        ]
        if new:
            batch.join(new)
            rows += new
        said |= {row: c.answer for row, c in batch.step() if c.answer is not None}
    for row, one in zip(rows, expected, strict=True):
        assert said[row].text == one.text
        assert said[row].confidence == pytest.approx(one.confidence, rel=1e-3)


def test_words_before_a_picture_are_not_taken_over_where_it_decides() -> None:
    for decided in (None, torch.zeros(1, 4)):
        cache = PrefixCache(image_id=9, image_tokens=2)
        words, states = tuple(range(10, 40)), ((torch.zeros(1, 1, 34, 2),) * 2,)
        cache.keep(Prefix((*words, 9, 9, 1, 2), (b"a",), (None,), states, decided))
        other, same = (cache.longest((*words, 9, 9, 1, 3), (name,)) for name in (b"b", b"a"))
        assert len(other.ids) == (0 if decided is not None else 30)
        assert len(same.ids) == 33
        assert same.pictured is decided
        assert len(cache.longest((*words, 3, 3), ()).ids) == (0 if decided is not None else 30)


def test_a_beam_search_of_candidates_knows_where_the_picture_is() -> None:
    engine = new_engine()
    found = candidates(engine, engine.encode([shade(1)]), QUESTIONS[0], 2)
    assert 0 < sum(probability for _, probability in found) <= 1
