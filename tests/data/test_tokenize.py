from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.model.tiny import IMAGE_TOKENS, TEXTS, processor

from medmoe.backbones.templates import NO_THINKING, chatml_template
from medmoe.data import tokenize
from medmoe.data.schema import ImageRecord, Record, question_text
from medmoe.data.tokenize import ConversationTokenizer, PlainTokenizer, train_tokenizer
from medmoe.errors import DataError

QUESTIONS = ("?", "Is there a mass?", "what\norgan — is it?", "", "  spaces  ", "x" * 300)


@pytest.fixture
def conversations() -> ConversationTokenizer:
    return ConversationTokenizer(processor(), IMAGE_TOKENS)


def decoded(ids: tuple[int, ...]) -> str:
    text: str = processor().tokenizer.decode(ids)
    return text


def through_the_processor(question: str, *, with_image: bool) -> list[int]:
    content: list[dict[str, Any]] = [{"type": "text", "text": question}]
    if with_image:
        content.insert(0, {"type": "image", "image": Image.new("RGB", (40, 30))})
    out = processor().apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
    )
    ids: list[int] = out["input_ids"][0]
    return list(ids)


@pytest.mark.parametrize("with_image", [True, False])
@pytest.mark.parametrize("question", QUESTIONS)
def test_a_prompt_has_the_processors_own_ids(
    question: str, with_image: bool, conversations: ConversationTokenizer
) -> None:
    ours = conversations.prompt(question, with_image=with_image)
    assert list(ours) == through_the_processor(question, with_image=with_image)
    assert ours.count(processor().image_token_id) == IMAGE_TOKENS * with_image


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_prefix_is_the_same_for_every_question(
    question: str, conversations: ConversationTokenizer
) -> None:
    prefix = conversations.prefix()
    assert prefix + conversations.segment(question, None).ids == conversations.prompt(question)
    assert prefix[-IMAGE_TOKENS:] == (processor().image_token_id,) * IMAGE_TOKENS
    assert prefix[:-IMAGE_TOKENS].count(processor().image_token_id) == 0


@pytest.mark.parametrize("answer", ["yes", "left lung, upper lobe", ""])
def test_a_segment_is_the_question_and_its_answer_with_the_end_token(
    answer: str, conversations: ConversationTokenizer
) -> None:
    asked = conversations.segment("Is there a mass?", None)
    told = conversations.segment("Is there a mass?", answer)
    assert asked.answer_length == 0
    assert told.ids[: len(asked.ids)] == asked.ids
    assert len(told.ids) == len(asked.ids) + told.answer_length
    assert decoded(told.ids[-told.answer_length :]) == f" {answer}</s>"
    assert told.ids[-1] == processor().tokenizer.eos_token_id


def test_the_answer_is_tokenised_as_inside_the_whole_conversation(
    conversations: ConversationTokenizer,
) -> None:
    """Else a model would be trained on other ids than it is asked to produce."""
    told = conversations.segment("Is there a mass?", "yes, left lung")
    whole = processor().tokenizer("USER: <image>\nIs there a mass? ASSISTANT: yes, left lung</s>")
    place = whole.input_ids.index(processor().image_token_id)
    assert list(told.ids) == whole.input_ids[place + 1 :]


@pytest.mark.parametrize("token", ["<image>", "</s>", "<pad>"])
def test_a_special_token_typed_by_the_user_is_text(
    token: str, conversations: ConversationTokenizer
) -> None:
    special = processor().tokenizer.convert_tokens_to_ids(token)
    plain = conversations.prompt("is  a mass?")
    for question in (f"is {token} a mass?", token, f"{token[:-1]}{token}{token[-1]}"):
        ids = conversations.prompt(question)
        assert ids.count(special) == plain.count(special)
        assert conversations.segment(question, None).ids == ids[len(conversations.prefix()) :]
        assert f"{token[0]} {token[1:-1]} {token[-1]}" in decoded(ids)
    # In capitals it is no special token, and must not become one by being read in lower case.
    assert conversations.prompt(f"is {token.upper()}?").count(special) == plain.count(special)
    bare = conversations.prompt(f"is {token} a mass?", with_image=False)
    assert special not in bare


def test_a_special_token_in_an_answer_is_text(conversations: ConversationTokenizer) -> None:
    told = conversations.segment("why?", "an <image> </s> it is")
    answer = told.ids[-told.answer_length :]
    assert processor().image_token_id not in told.ids
    assert answer.count(processor().tokenizer.eos_token_id) == 1
    assert decoded(answer) == " an < image > < /s > it is</s>"


def test_prompts_are_kept_within_bounds(
    conversations: ConversationTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenize, "_MAX_KEPT_PROMPTS", 5)
    found = [conversations.prompt(f"question {i}?") for i in range(20)]
    assert len(conversations._prompts) <= 5
    assert [conversations.prompt(f"question {i}?") for i in range(20)] == found


def test_a_template_that_renders_answers_unlike_prompts_is_refused() -> None:
    class Odd:
        tokenizer = processor().tokenizer
        image_token_id = processor().image_token_id

        def apply_chat_template(self, messages: Any, add_generation_prompt: bool, **_: Any) -> str:
            return "<image> ask:" if add_generation_prompt else "<image> told: yes"

    with pytest.raises(DataError, match="must be how the answer begins"):
        ConversationTokenizer(Odd(), IMAGE_TOKENS).segment("why?", "yes")


TURNS = (("Is there a mass?", "yes"), ("where — which lobe?", "left lung, upper"), ("Why?", ""))


def asked_in_chat(conversations: ConversationTokenizer, turn: int) -> tuple[int, ...]:
    """Return what a model is asked with when a conversation has come to this turn."""
    said = [part for t in TURNS[:turn] for part in zip(("user", "assistant"), t, strict=True)]
    return conversations.conversation([*said, ("user", TURNS[turn][0])], with_image=True)


def test_before_each_answer_of_a_conversation_stands_what_chat_asks_with(
    conversations: ConversationTokenizer,
) -> None:
    (segment,) = conversations.segments(TURNS)
    end = len(segment.ids)
    spans = [*segment.earlier, (end - segment.answer_length, end)]
    for turn, (first, after) in enumerate(spans):
        before = conversations.prefix() + segment.ids[:first]
        assert before == asked_in_chat(conversations, turn)
        assert decoded(segment.ids[first:after]) == f" {TURNS[turn][1]}</s>"
    assert len(spans) == len(TURNS)


def test_a_conversation_of_one_turn_is_a_question(conversations: ConversationTokenizer) -> None:
    assert conversations.segments(TURNS[:1]) == (conversations.segment(*TURNS[0]),)


def test_a_turn_that_is_rendered_otherwise_later_on_begins_a_segment_with_all_before_it() -> None:
    thinking = copy.copy(processor())
    thinking.chat_template = chatml_template(opening=NO_THINKING)
    conversations = ConversationTokenizer(thinking, IMAGE_TOKENS)
    segments = conversations.segments(TURNS)
    assert len(segments) == len(TURNS)
    for turn, segment in enumerate(segments):
        assert segment.earlier == ()
        before = conversations.prefix() + segment.ids[: -segment.answer_length]
        assert before == asked_in_chat(conversations, turn)


def test_a_conversation_without_a_picture_is_its_whole_text(
    conversations: ConversationTokenizer,
) -> None:
    text = "USER: Is there a mass? ASSISTANT: yes</s>USER: Why? ASSISTANT: so</s>"
    ids = conversations.text_only([("Is there a mass?", "yes"), ("Why?", "so")])
    assert list(ids) == processor().tokenizer(text).input_ids


def test_a_trained_tokenizer_reads_and_writes_any_text_in_lower_case() -> None:
    tokenizer = train_tokenizer(TEXTS, 320)
    for text in ("Is there a mass?", "Ödem — 3 µm\t🫁\n", "  two  spaces "):
        assert tokenizer.decode(tokenizer(text).input_ids) == text.lower()
    assert len(tokenizer) <= 320
    assert [tokenizer.convert_tokens_to_ids(t) for t in ("<pad>", "</s>", "<image>")] == [0, 1, 2]
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_training_a_tokenizer_is_deterministic_and_learns_from_its_texts() -> None:
    first, second = (train_tokenizer(TEXTS, 320).get_vocab() for _ in range(2))
    assert first == second
    other = train_tokenizer(["radiograph " * 9, "graph"], 320)
    assert len(other("radiograph").input_ids) < len(train_tokenizer(TEXTS, 320)("radiograph")[0])


def test_a_question_with_a_choice_is_asked_with_its_options() -> None:
    image = ImageRecord("i", np.zeros((2, 2), np.uint8))
    shared: dict[str, Any] = {
        "id": "1",
        "image": image,
        "question": "What is seen?",
        "answer": "normal",
        "answer_type": "closed",
        "question_type": "finding",
        "dataset": "d",
        "split": "train",
        "licence": "CC0",
        "options": ("normal", "pneumonia"),
    }
    for task in ("classification", "vqa"):  # PMC-VQA is a choice among four texts
        chosen = Record(task=task, **shared)
        assert question_text(chosen) == "What is seen? Options: normal, pneumonia."
    assert question_text(Record(task="vqa", **shared | {"options": ()})) == "What is seen?"


def test_the_plain_prompt_is_a_picture_its_caption_and_the_end_of_a_line() -> None:
    plain = PlainTokenizer(processor(), IMAGE_TOKENS)
    assert plain.prefix() == (processor().image_token_id,) * IMAGE_TOKENS
    (caption,) = plain.segments([("Describe the image.", "a chest <image>.")])
    assert decoded(caption.ids) == "a chest < image >.\n"
    assert (caption.answer_length, caption.earlier) == (len(caption.ids), ())
    (said,) = plain.segments([("why?", "so"), ("where?", "left")])
    assert (decoded(said.ids), said.answer_length) == ("so\nleft\n", len(said.ids))
