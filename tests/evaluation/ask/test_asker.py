"""Asking a model the questions of a task: every record once, each about its own image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from tests.model.tiny import IMAGE_TOKENS, WIDTH, moe_model, processor
from torch import Tensor

from medmoe.data.phantom import read_phantom
from medmoe.data.schema import Record, question_text
from medmoe.evaluation.ask.asker import ask_chunk, predict
from medmoe.evaluation.score.rows import score_task
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
