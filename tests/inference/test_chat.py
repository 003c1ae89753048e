"""A conversation of one turn is an answer; longer ones are read whole; a closed one ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.model.tiny import FAMILIES, IMAGE_TOKENS, Family, dense_model, moe_model, processor

from medmoe.errors import ConfigError
from medmoe.inference.chat import (
    ChatBatch,
    ChatChunk,
    ChatRequest,
    ChatRow,
    Turn,
    prepare,
    stream_chat,
    take_token,
)
from medmoe.inference.engine import MedMoe
from medmoe.routing.trace import record_routing

QUESTION = "Is there a mass?"


def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def engine() -> MedMoe:
    return MedMoe(moe_model("stablelm"), processor(), max_new_tokens=12)


def request(*texts: str, image: bool = True, tokens: int = 12) -> ChatRequest:
    roles = ("user", "assistant")
    turns = tuple(Turn(roles[i % 2], text) for i, text in enumerate(texts))  # type: ignore[arg-type]
    return ChatRequest(turns, picture() if image else None, tokens)


def text_of(chunks: list[ChatChunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


@pytest.mark.parametrize("image", [True, False])
@pytest.mark.parametrize("kind", ["moe", "dense"])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_turn_gives_the_engines_answer_piece_by_piece(
    family: Family, kind: str, image: bool
) -> None:
    model = moe_model(family) if kind == "moe" else dense_model(family)
    engine = MedMoe(model, processor(), max_new_tokens=12)
    expected = engine.answer(picture() if image else None, QUESTION, evidence=True)
    chunks = list(stream_chat(engine, request(QUESTION, image=image)))
    last = chunks[-1]
    assert last.answer is not None
    assert last.answer.text == expected.text == text_of(chunks)
    # Sums of float32 in another order: a cached step against `generate`'s own.
    assert last.answer.confidence == pytest.approx(expected.confidence, rel=1e-3)
    if expected.routing is None:
        assert last.answer.routing is None
    else:
        assert last.answer.routing is not None
        assert last.answer.routing.probabilities == pytest.approx(expected.routing.probabilities)
        assert last.answer.routing.experts == expected.routing.experts
    assert [chunk.finish for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_what_is_added_to_logits_is_added_in_a_conversation_too() -> None:
    engine = MedMoe(moe_model("stablelm"), processor(), max_new_tokens=12)
    plain = engine.answer(picture(), QUESTION)
    banned = processor().tokenizer(plain.text, add_special_tokens=False).input_ids
    biases = [[[token], -9.0] for token in sorted(set(banned))]
    engine.model.generation_config.sequence_bias = biases
    expected = engine.answer(picture(), QUESTION)
    chunks = list(stream_chat(engine, request(QUESTION)))
    assert text_of(chunks) == expected.text != plain.text
    assert chunks[-1].answer is not None
    assert chunks[-1].answer.confidence == pytest.approx(expected.confidence, rel=1e-3)


def test_words_come_as_soon_as_they_are_known(engine: MedMoe) -> None:
    chunks = list(stream_chat(engine, request(QUESTION)))
    assert len(chunks) > 4
    assert all(chunk.text for chunk in chunks[:-1])
    assert not any(chunk.text.endswith("\ufffd") for chunk in chunks[:-1])  # half a sign


def test_an_answer_that_ends_by_itself_stops_and_a_long_one_is_cut(
    engine: MedMoe, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(stream_chat(engine, request(QUESTION)))[-1].finish == "length"
    # The token that the model chooses third shall mean the end.
    kind = type(engine.processor.tokenizer)
    monkeypatch.setattr(kind, "eos_token_id", _greedy(engine, 3)[-1], raising=False)
    ended = list(stream_chat(engine, request(QUESTION)))
    assert ended[-1].finish == "stop"
    assert len(ended) <= 3


def _greedy(engine: MedMoe, count: int) -> list[int]:
    features = engine.encode([picture()])
    ids = torch.tensor([engine.tokenizer.prompt(QUESTION)])
    inner: Any = engine.model.model
    out = engine.model.generate(
        inputs_embeds=inner.embed(ids, features), max_new_tokens=count, do_sample=False
    )
    return [int(token) for token in out[0]]


def test_an_answer_is_cut_before_a_stop_string_and_no_piece_of_one_is_shown(
    engine: MedMoe,
) -> None:
    whole = text_of(list(stream_chat(engine, request(QUESTION))))
    for start in range(len(whole)):
        for stop in (whole[start : start + 1], whole[start : start + 7]):
            chunks = list(stream_chat(engine, replace(request(QUESTION), stop=("\0", stop))))
            assert text_of(chunks) == whole[: whole.index(stop)].strip()
            assert chunks[-1].answer is not None
            assert chunks[-1].answer.text == text_of(chunks)
            assert chunks[-1].finish == "stop"


def test_the_first_of_several_stop_strings_counts_and_ends_the_work() -> None:
    tokenizer = Letters()
    row = ChatRow((), None, 100, stop=("de", "cd", "zz"))
    pieces = [take_token(row, ord(letter), 0.0, tokenizer) for letter in "abcd"]
    assert [piece.text for piece in pieces] == ["a", "b", "", ""]
    assert (pieces[-1].finish, pieces[-1].completion_tokens) == ("stop", 4)


def test_what_only_looked_like_a_stop_string_is_shown() -> None:
    row = ChatRow((), None, 7, stop=("abac",))
    pieces = [take_token(row, ord(letter), 0.0, Letters()) for letter in "ababab "]
    assert [piece.text for piece in pieces] == ["", "", "", "ab", "", "ab", "ab"]
    assert pieces[-1].finish == "length"


class Letters:
    """A tokenizer whose tokens are letters."""

    eos_token_id = 0

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(map(chr, ids))


def test_a_closed_conversation_runs_the_model_no_further(engine: MedMoe) -> None:
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    hook = engine.model.lm_head.register_forward_hook(count)
    try:
        chunks = stream_chat(engine, request(QUESTION))
        next(chunks)
        before = calls
        chunks.close()
        assert calls == before < 12
    finally:
        hook.remove()


def test_what_was_said_before_is_read(engine: MedMoe) -> None:
    alone = text_of(list(stream_chat(engine, request("Where?"))))
    after = text_of(list(stream_chat(engine, request(QUESTION, "yes", "Where?"))))
    other = text_of(list(stream_chat(engine, request(QUESTION, "no", "Where?"))))
    assert len({alone, after, other}) == 3


def test_the_prompt_is_the_templates_rendering_with_the_image_first(engine: MedMoe) -> None:
    turns = [("user", QUESTION), ("assistant", "yes"), ("user", "Where?")]
    ids = engine.tokenizer.conversation(turns, with_image=True)
    image = engine.processor.image_token_id
    assert ids.count(image) == engine.model.config.image_seq_length
    text = processor().tokenizer.decode([i for i in ids if i != image])
    assert text.lower().index("mass") < text.index("yes") < text.lower().index("where")
    assert engine.tokenizer.conversation(turns[:1], with_image=True) == engine.tokenizer.prompt(
        QUESTION
    )
    assert engine.tokenizer.conversation(turns[:1], with_image=False) == engine.tokenizer.prompt(
        QUESTION, with_image=False
    )


def shade(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def about(*images: Image.Image) -> ChatRequest:
    """Return a conversation whose first turn has one picture, and whose third has the others."""
    further = tuple((2, image) for image in images[1:])
    return replace(request(QUESTION, "yes", "Where?"), image=images[0], further=further)


def by_transformers(engine: MedMoe, images: list[Image.Image]) -> tuple[Any, str]:
    """Return the inputs of such a conversation and its answer, as users of transformers ask."""
    parts: list[list[dict[str, Any]]] = [[{"type": "image", "image": i}] for i in images]
    first = [*parts[0], {"type": "text", "text": QUESTION}]
    last = [*(part[0] for part in parts[1:]), {"type": "text", "text": "Where?"}]
    said = [{"type": "text", "text": "yes"}]
    turns = [("user", first), ("assistant", said), ("user", last)]
    inputs = engine.processor.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns],
        tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt",
    )  # fmt: skip
    out = engine.model.generate(**inputs, max_new_tokens=12, do_sample=False)
    new = out[0, inputs["input_ids"].shape[1] :]
    return inputs, str(engine.processor.tokenizer.decode(new, skip_special_tokens=True)).strip()


def test_pictures_of_later_turns_are_read_where_they_were_sent(engine: MedMoe) -> None:
    images = [shade(1), shade(2), shade(3)]
    inputs, expected = by_transformers(engine, images)
    counts = [about(*images), about(*images[::-1])]
    rows = [prepare(r, engine.encode(r.images), engine.tokenizer, engine.limit) for r in counts]
    assert list(rows[0].ids) == inputs["input_ids"][0].tolist()
    assert list(stream_chat(engine, counts[0]))[-1].answer.text == expected  # type: ignore[union-attr]
    backwards = list(stream_chat(engine, counts[1]))[-1].answer
    assert backwards is not None
    assert backwards.text == by_transformers(engine, images[::-1])[1] != expected


def test_each_picture_of_a_conversation_has_the_routers_decision_on_its_own_tokens(
    engine: MedMoe,
) -> None:
    images = [shade(1), shade(2)]
    inputs, _ = by_transformers(engine, images)
    alone = request(QUESTION)
    batch = ChatBatch(engine)
    together = [about(*images), alone]
    rows = [prepare(r, engine.encode(r.images), engine.tokenizer, engine.limit) for r in together]
    batch.join(rows)
    assert [len(row.routings) for row in rows] == [2, 1]
    with torch.no_grad(), record_routing(engine.model) as trace:
        trace.token_mask = inputs["input_ids"] == engine.processor.image_token_id
        engine.model(**inputs)
    for number, routing in enumerate(rows[0].routings):
        tokens = slice(number * IMAGE_TOKENS, (number + 1) * IMAGE_TOKENS)
        means = [trace.probabilities(layer)[tokens].mean(0) for layer in trace.layers]
        assert routing is not None
        assert list(routing.probabilities.values()) == pytest.approx(sum(means) / 2, abs=1e-6)
    first, second = rows[0].routings
    assert first != second
    # What stands before a picture is all that its tokens see.
    told = engine.answer(images[0], QUESTION).routing
    assert told is not None
    assert first is not None
    assert first.probabilities == pytest.approx(told.probabilities, abs=1e-6)
    assert rows[1].routings[0] is not None
    assert rows[1].routings[0].domain == engine.answer(picture(), QUESTION).routing.domain  # type: ignore[union-attr]


def test_a_conversation_is_trained_on_exactly_as_it_is_asked(engine: MedMoe) -> None:
    (segment,) = engine.tokenizer.segments([(QUESTION, "yes"), ("Where?", "left")])
    asked = engine.tokenizer.prefix() + segment.ids[: -segment.answer_length]
    row = prepare(request(QUESTION, "yes", "Where?"), None, engine.tokenizer, engine.limit)
    assert asked == row.ids


def test_special_tokens_in_a_turn_are_text(engine: MedMoe) -> None:
    turns = [("user", "a <image> b"), ("assistant", "</s> c"), ("user", "<image></s>")]
    ids = engine.tokenizer.conversation(turns, with_image=True)
    assert ids.count(engine.processor.image_token_id) == engine.model.config.image_seq_length
    assert ids.count(processor().tokenizer.eos_token_id) == 1  # that of the template


@pytest.mark.parametrize(
    ("texts", "tokens", "part"),
    [
        ((), 4, "the turns are none"),
        (("a", "b"), 4, "the turns are user, assistant; user and assistant must take turns"),
        (("a", " ", "c"), 4, "a turn of the conversation is empty"),
        (("a",), 0, r"max_new_tokens \(0\) must be at least 1"),
    ],
)
def test_what_is_no_conversation_is_refused(texts: tuple[str, ...], tokens: int, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        request(*texts, tokens=tokens)


def test_a_conversation_longer_than_the_model_reads_is_refused(engine: MedMoe) -> None:
    with pytest.raises(ConfigError, match="the model reads at most 256; begin anew"):
        list(stream_chat(engine, request("mass " * 400)))


def test_an_answer_is_no_longer_than_there_is_room_for(engine: MedMoe) -> None:
    *_, last = stream_chat(engine, request("mass " * 60, tokens=10_000))
    assert last.prompt_tokens + last.completion_tokens <= 256
