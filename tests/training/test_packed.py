"""What a phase trains on: wanted tasks only, images repeated by data set, questions packed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.tiny import IMAGE_TOKENS, WIDTH, processor
from tests.training import toy
from tests.training.toy import SPEC, record

from medmoe.data.collate import (
    IGNORE,
    Packed,
    PackingCollator,
    packed_length,
    packed_together,
)
from medmoe.data.schema import ImageRecord, Record, Task, turns_of
from medmoe.data.tokenize import ConversationTokenizer, PlainTokenizer
from medmoe.errors import DataError
from medmoe.training.context import RunSettings
from medmoe.training.features import FeaturesOnDemand
from medmoe.training.packed import packed_schedule, train_packed
from medmoe.training.schedule import Schedule

IMAGES = [ImageRecord(f"i{n}", Path("none.png")) for n in range(3)]
ROWS = {image.id: 10 + n for n, image in enumerate(IMAGES)}
RECORDS = [
    record("c0", IMAGES[0], task="caption", question="Describe.", answer="a chest."),
    *(record(f"q{n}", IMAGES[0], question=f"question {n}?", answer=f"a{n}") for n in range(5)),
    record("q5", IMAGES[1], question="question 5?", answer="a5", dataset="rare"),
    record(
        "k0",
        IMAGES[2],
        task="classification",
        question="Which?",
        answer="normal",
        options=("normal", "nodule"),
    ),
]


@pytest.fixture(scope="module")
def tokenizer() -> ConversationTokenizer:
    return ConversationTokenizer(processor(), IMAGE_TOKENS)


def samples(
    tokenizer: ConversationTokenizer,
    tasks: Sequence[Task] = ("vqa",),
    *,
    records: Sequence[Record] = tuple(RECORDS),
    **changes: Any,
) -> Schedule[Packed]:
    context = toy.context(toy.dense(), steps=3)
    fields = {"rows": ROWS, "tokenizer": tokenizer, "max_questions": 8, "seed": 4} | changes
    return packed_schedule(
        replace(context, records=[r for r in records if r.task in tasks], **fields)
    )


def text(tokens: Sequence[int]) -> str:
    decoded: Any = processor().tokenizer.decode(list(tokens))
    return str(decoded)


def asked(schedule: Schedule[Packed]) -> Counter[str]:
    return Counter(text(s.ids) for i in range(len(schedule)) for s in schedule[i].segments)


def test_length_is_steps_times_batch(tokenizer: ConversationTokenizer) -> None:
    assert len(samples(tokenizer, steps=5)) == 5 * SPEC.batch_size


@pytest.mark.parametrize(
    ("tasks", "rows"),
    [
        (("caption",), {10}),
        (("vqa",), {10, 11}),
        (("classification",), {12}),
        (("vqa", "classification"), {10, 11, 12}),
    ],
)
def test_only_wanted_tasks_are_trained_on(
    tokenizer: ConversationTokenizer, tasks: tuple[Task, ...], rows: set[int]
) -> None:
    schedule = samples(tokenizer, tasks)
    assert {schedule[i].image for i in range(len(schedule))} == rows
    words = " ".join(asked(schedule))
    assert ("describe" in words) == ("caption" in tasks)
    assert ("question" in words) == ("vqa" in tasks)
    assert ("options: normal, nodule" in words) == ("classification" in tasks)


def test_each_sample_is_one_image_behind_its_prefix(tokenizer: ConversationTokenizer) -> None:
    schedule = samples(tokenizer)
    assert {schedule[i].prefix for i in range(len(schedule))} == {tokenizer.prefix()}
    own = {ROWS[image.id]: {r.question for r in RECORDS if r.image is image} for image in IMAGES}
    for i in range(len(schedule)):
        for segment in schedule[i].segments:
            question = text(segment.ids).split(" ASSISTANT")[0].split(" assistant")[0].strip()
            assert question in own[schedule[i].image]


def test_no_question_stands_twice_in_a_sample(tokenizer: ConversationTokenizer) -> None:
    schedule = samples(tokenizer, steps=6)
    for i in range(len(schedule)):
        assert len(set(schedule[i].segments)) == len(schedule[i].segments)


@pytest.mark.parametrize("limit", [1, 2, 5, 8])
def test_at_most_so_many_questions_are_packed(tokenizer: ConversationTokenizer, limit: int) -> None:
    schedule = samples(tokenizer, max_questions=limit)
    sizes = {schedule[i].image: len(schedule[i].segments) for i in range(len(schedule))}
    assert sizes == {10: min(5, limit), 11: 1}


def test_over_the_epochs_every_question_of_an_image_is_asked(
    tokenizer: ConversationTokenizer,
) -> None:
    assert len(asked(samples(tokenizer, steps=30, max_questions=2))) == 6


def test_only_the_answer_is_trained_on(tokenizer: ConversationTokenizer) -> None:
    schedule = samples(tokenizer)
    for i in range(len(schedule)):
        for segment in schedule[i].segments:
            question, answer = (
                text(part)
                for part in (
                    segment.ids[: -segment.answer_length],
                    segment.ids[-segment.answer_length :],
                )
            )
            assert question.rstrip().endswith("assistant:")
            number = question.split("question ")[1][0]
            assert answer == f" a{number}</s>"


def test_images_come_as_often_as_their_data_set_says(tokenizer: ConversationTokenizer) -> None:
    # one epoch: 1 + 3 groups; three steps of four samples are three epochs
    schedule = samples(tokenizer, repeats={"rare": 3, "unused": 9})
    for epoch in range(3):
        rows = Counter(schedule[4 * epoch + k].image for k in range(4))
        assert rows == {10: 1, 11: 3}


def test_no_sample_is_longer_than_max_length_and_all_questions_come_in_time(
    tokenizer: ConversationTokenizer,
) -> None:
    whole = samples(tokenizer, steps=40)
    longest = max(packed_length(whole[i]) for i in range(len(whole)))
    cut = samples(tokenizer, steps=40, max_length=longest - 1)
    lengths = [packed_length(cut[i]) for i in range(len(cut))]
    assert max(lengths) < longest
    assert set(asked(cut)) == set(asked(whole))


def test_a_limit_nobody_meets_changes_nothing(tokenizer: ConversationTokenizer) -> None:
    free, limited = samples(tokenizer), samples(tokenizer, max_length=2048)
    assert [free[i] for i in range(len(free))] == [limited[i] for i in range(len(limited))]


def test_the_end_of_an_answer_too_long_is_cut(tokenizer: ConversationTokenizer) -> None:
    long = record("long", IMAGES[0], question="why?", answer="because " * 40)
    whole = tokenizer.segment("why?", long.answer)
    room = len(whole.ids) - 5
    limit = len(tokenizer.prefix()) + room
    (segment,) = samples(tokenizer, records=[long], max_length=limit)[0].segments
    assert segment.ids == whole.ids[:room]
    assert segment.answer_length == whole.answer_length - 5


def test_a_question_longer_than_a_sample_is_named(tokenizer: ConversationTokenizer) -> None:
    long = record("long", IMAGES[0], question="why " * 40 + "?", answer="so")
    with pytest.raises(DataError, match=r"hand_made: question long has \d+ tokens, and max_len"):
        samples(tokenizer, records=[long], max_length=60)[0]


TALK = record(
    "talk", IMAGES[0], question="why?", answer="so", further=(("where?", "left"), ("when?", "now"))
)


def test_a_conversation_is_one_question_among_others(tokenizer: ConversationTokenizer) -> None:
    schedule = samples(tokenizer, records=[TALK, *RECORDS], max_questions=2, steps=30)
    (talk,) = tokenizer.segments(turns_of(TALK))
    assert any(talk in schedule[i].segments for i in range(len(schedule)))
    assert max(len(schedule[i].segments) for i in range(len(schedule))) == 2


@pytest.mark.parametrize("turns", [1, 2])
def test_a_conversation_too_long_ends_with_its_last_turn_that_fits(
    tokenizer: ConversationTokenizer, turns: int
) -> None:
    said = turns_of(TALK)
    (longer,) = tokenizer.segments(said[: turns + 1])
    limit = len(tokenizer.prefix()) + len(longer.ids) - 1
    sample = samples(tokenizer, records=[TALK], max_length=limit)[0]
    assert sample.segments == tokenizer.segments(said[:turns])


def test_of_a_conversation_whose_first_answer_is_too_long_its_end_is_cut(
    tokenizer: ConversationTokenizer,
) -> None:
    (first,) = tokenizer.segments(turns_of(TALK)[:1])
    limit = len(tokenizer.prefix()) + len(first.ids) - 1
    (segment,) = samples(tokenizer, records=[TALK], max_length=limit)[0].segments
    assert segment.ids == first.ids[:-1]
    assert (segment.answer_length, segment.earlier) == (first.answer_length - 1, ())


def test_views_change_which_features_are_read_and_nothing_else(
    tokenizer: ConversationTokenizer,
) -> None:
    plain, viewed = (samples(tokenizer, steps=60, views=views) for views in (1, 3))
    pairs = [(plain[i], viewed[i]) for i in range(len(plain))]
    assert all(replace(b, image=a.image) == a for a, b in pairs)
    shifts = Counter((b.image - a.image) / len(ROWS) for a, b in pairs)
    assert set(shifts) == {0, 1, 2}
    # 240 draws of three: fewer than 50 of one come once in 10,000 seeds; this seed is fixed.
    assert min(shifts.values()) > 50
    again = samples(tokenizer, steps=60, views=3)
    assert [again[i] for i in range(len(again))] == [b for _, b in pairs]


# ---- batches of questions ----


def of_questions(
    tokenizer: ConversationTokenizer, batch_size: int = 4, **changes: Any
) -> Schedule[Packed]:
    spec = SPEC.model_copy(update={"batch_of": "questions", "batch_size": batch_size})
    return samples(tokenizer, spec=spec, **changes)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("most", [1, 3, 8])
def test_an_epoch_has_every_question_once_and_ends_with_a_whole_step(
    tokenizer: ConversationTokenizer, most: int, grouped: bool
) -> None:
    schedule = of_questions(tokenizer, steps=6, max_questions=most)
    schedule = schedule.grouped(4) if grouped else schedule
    assert len(schedule) == 6 * 4
    for epoch in range(3):  # six questions in two steps
        drawn = [schedule[8 * epoch + i] for i in range(8)]
        assert {len(sample.segments) for sample in drawn} == {1}
        counts = Counter(sample.segments for sample in drawn)
        assert (len(counts), max(counts.values())) == (6, 2)
        assert grouped or drawn[6:] == drawn[:2]


def test_questions_of_an_image_stand_side_by_side_as_many_as_may(
    tokenizer: ConversationTokenizer,
) -> None:
    images = [ImageRecord(f"m{n}", Path("none.png")) for n in range(8)]
    records = [
        record(f"{i.id}-{n}", i, question=f"question {n}?") for i in images for n in range(7)
    ]
    rows = {image.id: n for n, image in enumerate(images)}
    schedule = of_questions(tokenizer, steps=14, max_questions=3, records=records, rows=rows)
    packed = packed_together([schedule[i] for i in range(56)], 3)
    # Of seven questions 3, 3 and 1; two that come to stand side by side by chance are joined.
    assert {len(row.segments) for row in packed} <= {1, 2, 3}
    assert sum(len(row.segments) for row in packed) == 56
    assert 20 <= len(packed) <= 24
    random = of_questions(tokenizer, steps=14, max_questions=1, records=records, rows=rows)
    assert len(packed_together([random[i] for i in range(56)], 3)) > 40


def test_a_row_holds_what_fits_and_no_question_waits(tokenizer: ConversationTokenizer) -> None:
    one = max(len(segment.ids) for r in RECORDS for segment in tokenizer.segments(turns_of(r)))
    limit = len(tokenizer.prefix()) + 2 * one
    schedule = of_questions(tokenizer, batch_size=8, steps=1, max_length=limit)
    packed = packed_together([schedule[i] for i in range(8)], 8, limit)
    assert max(packed_length(row) for row in packed) <= limit
    assert sum(len(row.segments) for row in packed) == 8
    assert schedule.rows(0, 8) == [f"i{row.image - 10}" for row in packed]


def trained(**settings: Any) -> tuple[list[float], list[int]]:
    """Train two steps of four questions; return their losses and the answers of each part."""
    model = toy.moe()
    context = toy.context(model, steps=2)
    spec = SPEC.model_copy(update={"batch_of": "questions"})
    answers: list[int] = []

    def count(module: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        labels = kwargs["labels"]
        answers.append(int(((labels != IGNORE) & (labels.roll(1, 1) == IGNORE)).sum()))

    model.register_forward_pre_hook(count, with_kwargs=True)
    run = RunSettings(log_every=1, **settings)
    result = train_packed(replace(context, spec=spec, settings=run))
    return [loss for _, loss in result.curve], answers


def test_a_step_has_so_many_answers_in_however_many_parts() -> None:
    whole, answers = trained()
    parts, of_parts = trained(gradient_accumulation=2)
    assert (answers, of_parts) == ([4, 4], [2, 2, 2, 2])
    assert parts == pytest.approx(whole, abs=1e-5)


# ---- several pictures ----

SEVERAL = record(
    "several",
    IMAGES[0],
    question="which is older?",
    answer="the first",
    further=(("and this?", "older still"), ("sure?", "yes")),
    further_images=((0, IMAGES[1]), (1, IMAGES[2]), (1, IMAGES[0])),
)


def test_pictures_of_a_record_stand_where_its_turns_have_them(
    tokenizer: ConversationTokenizer,
) -> None:
    sample = samples(tokenizer, records=[SEVERAL])[0]
    assert sample.images == (10, 11, 12, 10)
    (segment,) = sample.segments
    assert (sample.prefix, segment.images) == (tokenizer.prefix(2), (12, 10))
    image = processor().image_token
    shown = text(sample.prefix + segment.ids).replace(image * IMAGE_TOKENS, "[picture]")
    assert shown.count("[picture]") == 4
    first, second, third = shown.split("user:")[1:]
    assert first.count("[picture]") == second.count("[picture]") == 2
    assert first.index("[picture]") < first.index("which") < first.index("the first")
    assert second.rindex("[picture]") < second.index("and this?")
    assert "[picture]" not in third


@torch.no_grad()
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2)])
def test_the_loss_of_several_pictures_is_that_of_the_conversation_read_at_once(
    tokenizer: ConversationTokenizer, order: tuple[int, ...]
) -> None:
    one, two, three = (IMAGES[i] for i in order)
    talk = replace(SEVERAL, image=one, further_images=((0, two), (1, three), (1, one)))
    model = toy.moe().eval()
    rows = {image.id: n for n, image in enumerate(IMAGES)}
    context = replace(toy.context(model, records=[talk]), rows=rows)
    packed = packed_schedule(context)[0]
    beside = packed_schedule(replace(context, records=RECORDS[1:3]))[0]
    collate = PackingCollator(context.features, processor().tokenizer.pad_token_id)
    said = [
        part for turn in turns_of(talk) for part in zip(("user", "assistant"), turn, strict=True)
    ]
    ids = tokenizer.conversation(said[:-1], with_image=True, further=[0, 2, 2])
    assert packed.prefix + packed.segments[0].ids[: len(ids) - len(packed.prefix)] == ids
    whole = torch.tensor([packed.prefix + packed.segments[0].ids])
    shown = torch.as_tensor(context.features)[[*order, order[0]]]
    scores = model(input_ids=whole, vision_features=shown).logits[0, :-1].log_softmax(-1)
    losses = -scores.gather(-1, whole[0, 1:, None])[:, 0]
    end, at = len(packed.segments[0].ids), len(packed.prefix) - 1
    spans = [*packed.segments[0].earlier, (end - packed.segments[0].answer_length, end)]
    wanted = sum(float(losses[at + first : at + after].sum()) for first, after in spans)
    assert len(spans) == 3
    alone = float(model(**collate([packed]), num_items_in_batch=1).loss)
    assert alone == pytest.approx(wanted, rel=1e-5)
    more = float(model(**collate([beside]), num_items_in_batch=1).loss)
    both = float(model(**collate([beside, packed]), num_items_in_batch=1).loss)
    assert both == pytest.approx(wanted + more, rel=1e-5)


@torch.no_grad()
def test_two_pictures_swapped_are_another_conversation() -> None:
    model = toy.moe().eval()
    rows = {image.id: n for n, image in enumerate(IMAGES)}
    losses = []
    for one, two in ((0, 1), (1, 0), (0, 1)):
        asked = record("q", IMAGES[one], further_images=((0, IMAGES[two]),))
        context = replace(toy.context(model, records=[asked]), rows=rows)
        sample = packed_schedule(context)[0]
        assert sample.images == (one, two)
        collate = PackingCollator(
            torch.randn(3, IMAGE_TOKENS, WIDTH, generator=torch.manual_seed(1)), 0
        )
        losses.append(float(model(**collate([sample])).loss))
    assert losses[0] == losses[2] != losses[1]


def test_questions_on_the_same_pictures_in_the_same_order_share_a_sample(
    tokenizer: ConversationTokenizer,
) -> None:
    pair, turned = ((0, IMAGES[1]),), ((0, IMAGES[0]),)
    asked = [
        *(record(f"p{n}", IMAGES[0], question=f"{n}?", further_images=pair) for n in range(2)),
        record("t", IMAGES[1], further_images=turned),
        *RECORDS[1:3],
    ]
    schedule = samples(tokenizer, records=asked, steps=3)
    sizes = {schedule[i].images: len(schedule[i].segments) for i in range(12)}
    assert sizes == {(10, 11): 2, (11, 10): 1, (10,): 2}
    batches = of_questions(tokenizer, batch_size=5, steps=1, records=asked)
    rows = packed_together([batches[i] for i in range(5)], 8)
    assert {row.images: len(row.segments) for row in rows} == sizes
    names = {(10, 11): "i0 + i1", (11, 10): "i1 + i0", (10,): "i0"}
    assert batches.rows(0, 5) == [names[row.images] for row in rows]


def test_turns_that_are_cut_take_their_pictures_along(tokenizer: ConversationTokenizer) -> None:
    (first,) = tokenizer.segments(turns_of(SEVERAL)[:1], [0])
    limit = len(tokenizer.prefix(2)) + len(first.ids) + 3
    sample = samples(tokenizer, records=[SEVERAL], max_length=limit)[0]
    assert (sample.segments, sample.images) == ((first,), (10, 11))


def test_all_pictures_of_a_sample_are_of_one_view(tokenizer: ConversationTokenizer) -> None:
    schedule = samples(tokenizer, records=[SEVERAL], steps=10, views=3)
    shown = {schedule[i].images for i in range(40)}
    assert shown == {(10, 11, 12, 10), (13, 14, 15, 13), (16, 17, 18, 16)}


def test_pictures_read_on_demand_are_all_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy.moe()
    context = toy.context(model, records=[SEVERAL], steps=1)
    table, begun = context.features, set[int]()

    class OnDemand(FeaturesOnDemand):
        def __init__(self) -> None:
            pass

        def begin(self, row: int) -> None:
            begun.add(row)

        def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
            return table[rows]

    rows = {image.id: n for n, image in enumerate(IMAGES)}
    table = torch.randn(3, IMAGE_TOKENS, WIDTH)
    train_packed(replace(context, features=OnDemand(), rows=rows))
    assert begun == {0, 1, 2}


def test_the_plain_prompt_has_pictures_before_its_caption_only() -> None:
    plain = PlainTokenizer(processor(), IMAGE_TOKENS)
    caption = record("c", IMAGES[0], task="caption", further_images=((0, IMAGES[1]),))
    sample = samples(plain, ("caption",), records=[caption])[0]
    assert text(sample.prefix) == processor().image_token * IMAGE_TOKENS * 2
    assert (sample.images, text(sample.segments[0].ids)) == ((10, 11), "yes\n")
    with pytest.raises(DataError, match="`plain` has images before the caption only"):
        plain.segments(turns_of(SEVERAL), [0, 1])
