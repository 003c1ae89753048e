"""Asking a model the questions of a task: every record once, each about its own image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.model.tiny import IMAGE_TOKENS, WIDTH, moe_model, processor
from torch import Tensor

from medmoe.data.images import open_record
from medmoe.data.phantom import read_phantom
from medmoe.data.schema import ImageRecord, Record, question_text, spoken, turns_of
from medmoe.evaluation.ask.asker import ask_chunk, predict
from medmoe.evaluation.ask.controls import controlled
from medmoe.evaluation.ask.records import TaskRecords, turn_by_turn
from medmoe.evaluation.score.rows import score_task
from medmoe.evaluation.tasks import task_spec
from medmoe.inference.chat import ChatRequest, Turn, stream_chat
from medmoe.inference.engine import MedMoe

RECORDS = [r for r in read_phantom("test", 6, seed=3, size=32) if r.task != "caption"]
#: Rows in another order than the records' images, with a row that no record uses.
ROWS = {f"phantom/test/{n:06d}": 6 - n for n in range(6)}


@pytest.fixture(scope="module")
def engine() -> MedMoe:
    return MedMoe(moe_model("stablelm"), processor(), batch_size=5, max_new_tokens=6)


@pytest.fixture(scope="module")
def features() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(7, IMAGE_TOKENS, WIDTH, generator=generator)


def test_every_record_is_answered_once_and_in_order(engine: MedMoe, features: Tensor) -> None:
    found = predict(engine, RECORDS, features, ROWS)
    assert [p.id for p in found] == [r.id for r in RECORDS]


def test_kinds_mixed_in_any_order_give_the_same_predictions(
    engine: MedMoe, features: Tensor
) -> None:
    forwards = {p.id: p for p in predict(engine, RECORDS, features, ROWS)}
    backwards = {p.id: p for p in predict(engine, RECORDS[::-1], features, ROWS)}
    assert {r.task for r in RECORDS} == {"vqa", "classification"}
    assert {i: p.text for i, p in forwards.items()} == {i: p.text for i, p in backwards.items()}


def test_a_picture_in_the_place_of_all_is_encoded_once(
    engine: MedMoe, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, encoded = RECORDS, []
    encode = engine.encode
    monkeypatch.setattr(engine, "encode", lambda found: encoded.append(len(found)) or encode(found))
    grey = Image.new("RGB", (64, 64), (90, 90, 90))
    blank = ask_chunk(engine, records, lambda name, picture: grey)
    own = ask_chunk(engine, records)
    assert encoded == [1, 6]
    assert [p.id for p in blank] == [p.id for p in own] == [r.id for r in records]
    same: dict[str, set[str]] = {}
    for record, prediction in zip(records, blank, strict=True):
        same.setdefault(question_text(record), set()).add(prediction.text)
    assert all(len(texts) == 1 for texts in same.values())


def test_each_question_is_asked_about_its_own_image(engine: MedMoe, features: Tensor) -> None:
    for record, prediction in zip(RECORDS, predict(engine, RECORDS, features, ROWS), strict=True):
        if record.task != "vqa":
            continue
        alone = engine.answer_features(features, [ROWS[record.image.id]], [question_text(record)])[
            0
        ]
        assert prediction.text == alone.text
        # batches pad differently: float32 rounding, on a product of up to six probabilities
        assert prediction.confidence == pytest.approx(alone.confidence, rel=1e-3)


def test_the_answers_depend_on_the_images(engine: MedMoe, features: Tensor) -> None:
    own = predict(engine, RECORDS, features, ROWS)
    blank = predict(engine, RECORDS, torch.zeros(1, IMAGE_TOKENS, WIDTH), dict.fromkeys(ROWS, 0))
    assert [p.text for p in own] != [p.text for p in blank]


def test_classification_is_the_option_with_the_largest_score(
    engine: MedMoe, features: Tensor
) -> None:
    chosen = [r for r in RECORDS if r.task == "classification"]
    for record, prediction in zip(chosen, predict(engine, chosen, features, ROWS), strict=True):
        scores = prediction.option_scores
        assert scores is not None
        assert len(scores) == len(record.options)
        assert prediction.text == record.options[scores.index(max(scores))]
        assert prediction.confidence is None
        assert all(score < 0 for score in scores)


def test_option_scores_follow_the_options_when_these_are_reordered(
    engine: MedMoe, features: Tensor
) -> None:
    """The options stand in the question too: they keep its wording, only their list is turned."""
    record = next(r for r in RECORDS if r.task == "classification")
    text, rows = question_text(record), [ROWS[record.image.id]]
    straight, _ = engine.scored_options(features, rows, [text], [record.options])[0]
    turned, _ = engine.scored_options(features, rows, [text], [record.options[::-1]])[0]
    # the options stand at other places of the packed row: float32 rounding
    assert turned[::-1] == pytest.approx(straight, rel=1e-4)


def test_words_only_for_questions_and_scores_only_for_options(
    engine: MedMoe, features: Tensor
) -> None:
    calls: list[str] = []

    class Watched(MedMoe):
        def answer_features(self, *args: Any, **kwargs: Any) -> Any:
            calls.append("answer")
            return super().answer_features(*args, **kwargs)

        def scored_options(self, *args: Any, **kwargs: Any) -> Any:
            calls.append("options")
            return super().scored_options(*args, **kwargs)

    watched = Watched(engine.model, engine.processor, max_new_tokens=2)

    def asked(records: Sequence[Record]) -> list[str]:
        calls.clear()
        predict(watched, records, features, ROWS)
        return sorted(calls)

    assert asked([r for r in RECORDS if r.task == "vqa"][:2]) == ["answer"]
    assert asked([r for r in RECORDS if r.task == "classification"][:2]) == ["options"]
    assert asked([RECORDS[0], RECORDS[-1]]) == ["answer", "options"]
    assert asked([]) == []


def test_predictions_can_be_scored_as_they_are(engine: MedMoe, features: Tensor) -> None:
    for kind, protocol in (("vqa", "strict"), ("classification", "label_score")):
        records = [r for r in RECORDS if r.task == kind]
        rows = score_task(
            system="moe",
            task="phantom",
            split="test",
            records=records,
            predictions=predict(engine, records, features, ROWS),
            train_records=[],
            seed=1,
        )
        assert protocol in {row["protocol"] for row in rows}
        assert max(row["n"] for row in rows) == len(records)


def test_an_image_that_was_not_encoded_is_our_own_mistake(engine: MedMoe, features: Tensor) -> None:
    stray = replace(RECORDS[0], image=replace(RECORDS[0].image, id="phantom/test/999999"))
    with pytest.raises(KeyError, match="phantom/test/999999"):
        predict(engine, [stray], features, ROWS)


# ---- several pictures ----


def pictures(count: int = 3) -> list[ImageRecord]:
    rng = np.random.default_rng(5)
    return [
        ImageRecord(f"set/{n}", rng.integers(0, 256, (32, 32, 3), np.uint8)) for n in range(count)
    ]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_pictures_of_a_conversation_are_asked_about_as_they_are_served(
    engine: MedMoe, order: tuple[int, ...]
) -> None:
    one, two, three = (pictures()[n] for n in order)
    talk = replace(
        RECORDS[0],
        task="vqa",
        options=(),
        image=one,
        further=(("Where?", "left"), ("Sure?", "yes")),
        further_images=((0, two), (2, three)),
    )
    asked = turn_by_turn(talk)
    assert [[image.id for image in record.images] for record in asked] == [
        [one.id, two.id],
        [one.id, two.id],
        [one.id, two.id, three.id],
    ]
    first, _, last = ask_chunk(engine, [*asked, *RECORDS[1:3]])[:3]
    said = spoken(turns_of(talk))
    for prediction, end, shown in ((first, 1, 2), (last, 5, 3)):
        turns = tuple(Turn(role, text) for role, text in said[:end])
        further = tuple(
            (place, open_record(image)) for place, image in ((0, two), (4, three))[: shown - 1]
        )
        request = ChatRequest(turns, open_record(one), 6, further=further)
        chunks = list(stream_chat(engine, request))
        answer = chunks[-1].answer
        assert answer is not None
        assert prediction.text == answer.text
        assert prediction.confidence == pytest.approx(answer.confidence, rel=1e-3)
        assert prediction.routing is not None
        routings = [prediction.routing, *prediction.routing["further"]]
        served = [answer.routing, *answer.further]
        assert len(routings) == len(served) == shown
        for told, routing in zip(routings, served, strict=True):
            assert routing is not None
            assert told["domain"] == routing.domain
            assert told["domain_probability"] == pytest.approx(routing.domain_probability, abs=1e-5)


@torch.no_grad()
def test_options_about_several_pictures_are_scored_as_each_alone_is_read(engine: MedMoe) -> None:
    options, images = ("a mass", "nothing", "a cyst"), pictures(2)
    records = [
        replace(
            RECORDS[0],
            id=str(n),
            task="classification",
            options=options,
            answer=options[0],
            image=images[n],
            further_images=((0, images[1 - n]),),
        )
        for n in range(2)
    ]
    found = ask_chunk(engine, records)
    assert found[0].option_scores != pytest.approx(found[1].option_scores, rel=1e-3)
    for n, prediction in enumerate(found):
        shown = engine.encode([open_record(images[n]), open_record(images[1 - n])])
        said = [("user", question_text(records[n]))]
        ids = engine.tokenizer.conversation(said, with_image=True, further=[0])
        for option, score in zip(options, prediction.option_scores or (), strict=True):
            segment = engine.tokenizer.segment(said[0][1], option)
            whole = torch.tensor([ids + segment.ids[-segment.answer_length :]])
            logits = engine.model(input_ids=whole, vision_features=shown).logits[0, :-1]
            of_tokens = logits.log_softmax(-1).gather(-1, whole[0, 1:, None])
            # packed beside the other options: float32 rounding
            assert score == pytest.approx(
                float(of_tokens[-segment.answer_length :].sum()), rel=1e-4
            )


def test_controls_change_every_picture_and_the_hash_of_what_is_asked_knows_their_order() -> None:
    one, two, three = pictures()
    asked = [
        replace(RECORDS[0], image=one, further_images=((0, two),)),
        replace(RECORDS[1], image=three),
    ]
    shown = {image.id: image.source for record in asked for image in record.images}
    (first, second) = controlled(asked, "shuffled", 3)
    changed = {i.id: i.source for record in (first, second) for i in record.images}
    assert changed.keys() == shown.keys()
    assert all(changed[name] is not shown[name] for name in shown)
    assert [turn for turn, _ in first.further_images] == [0]
    spec = task_spec("phantom_vqa")
    turned = replace(asked[0], image=two, further_images=((0, one),))
    hashes = {
        TaskRecords(spec, "test", None, records, ()).sha256()
        for records in ([asked[0]], [turned], [replace(asked[0], further_images=())])
    }
    assert len(hashes) == 3
