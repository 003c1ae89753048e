"""What is summed over a task equals the routers called one question at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.model.tiny import (
    IMAGE_TOKENS,
    MOE_LAYERS,
    bare_model,
    dense_model,
    moe_model,
    processor,
)

from medmoe.data.images import open_record
from medmoe.data.schema import ImageRecord, Record
from medmoe.evaluation.routes import observe as module
from medmoe.evaluation.routes.observe import Observation, image_states, observe
from medmoe.inference.engine import MedMoe
from medmoe.routing.hooks import ffn_inputs
from medmoe.routing.trace import KINDS, record_routing

QUESTIONS = ("Is there a mass?", "What organ is this?", "Is there a mass in the left lung?")


def records() -> list[Record]:
    """Three images: one with three questions, one with one, one with two."""
    rng = np.random.default_rng(0)
    images = [
        ImageRecord(f"i{n}", rng.integers(0, 256, (30, 40, 3), dtype=np.uint8), modality)
        for n, modality in enumerate(("ct", "mri", None))
    ]
    asked = [(0, 0, "no"), (1, 1, "liver"), (0, 1, "lung"), (2, 2, "yes"), (0, 2, "no"), (2, 0, "")]
    return [
        Record(
            id=f"q{n}", image=images[image], question=QUESTIONS[question], answer=answer,
            answer_type="open", question_type="x", task="vqa", dataset="d", split="test",
            licence="none",
        )
        for n, (image, question, answer) in enumerate(asked)
    ]  # fmt: skip


@pytest.fixture(scope="module", params=[1, 2])
def engine(request: pytest.FixtureRequest) -> MedMoe:
    return MedMoe(moe_model("stablelm", top_k=request.param), processor())


@pytest.fixture(scope="module")
def observation(engine: MedMoe) -> Observation:
    return observe(engine, records(), {"i0", "i2"})


@torch.no_grad()
def one_by_one(engine: MedMoe, record: Record) -> Any:
    """Return the trace of one question with its answer."""
    segment = engine.tokenizer.segment(record.question, record.answer)
    ids = torch.tensor([[*engine.tokenizer.prefix(), *segment.ids]])
    labels = ids.clone()
    labels[:, : ids.shape[1] - segment.answer_length] = -100
    features = engine.encode([open_record(record.image)])
    with record_routing(engine.model) as trace:
        engine.model(input_ids=ids, vision_features=features, labels=labels)
    return trace


def test_sums_equal_those_of_one_question_at_a_time(
    engine: MedMoe, observation: Observation
) -> None:
    counts = np.zeros_like(observation.counts)
    places = {image.id: i for i, image in enumerate(observation.images)}
    seen: set[str] = set()
    for record in records():
        trace = one_by_one(engine, record)
        image = places[record.image.id]
        at = len(engine.tokenizer.prefix()) if record.image.id in seen else 0  # the image once
        seen.add(record.image.id)
        for place, layer in enumerate(MOE_LAYERS):
            chosen_by = zip(trace.kinds[at:], trace.experts(layer)[at:], strict=True)
            for kind, chosen in chosen_by:
                counts[image, place, kind, chosen] += 1
    assert np.array_equal(observation.counts, counts)
    top_k = engine.model.config.num_experts_per_tok
    assert (counts.sum(-1)[:, :, KINDS.index("image")] == IMAGE_TOKENS * top_k).all()


def test_many_questions_are_split_over_rows_and_nothing_counts_twice(
    engine: MedMoe, observation: Observation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_QUESTIONS", 1)
    monkeypatch.setattr(module, "_BATCH", 2)
    found = observe(engine, records(), {"i0", "i2"})
    assert np.array_equal(found.counts, observation.counts)
    # float32 sums in batches of another size
    assert np.allclose(found.states, observation.states, atol=1e-5)
    assert np.allclose(found.logits, observation.logits, atol=1e-4)


def test_each_image_is_encoded_once(engine: MedMoe, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    encode = engine.encode

    def counted(images: Any) -> Any:
        encoded.append(len(images))
        return encode(images)

    monkeypatch.setattr(engine, "encode", counted)
    observe(engine, records())
    assert sum(encoded) == 3


@torch.no_grad()
def test_points_are_means_over_the_images_tokens(engine: MedMoe, observation: Observation) -> None:
    assert [observation.images[i].id for i in observation.points] == ["i0", "i2"]
    for point, image in enumerate(observation.points):
        record = next(r for r in records() if r.image.id == observation.images[image].id)
        trace = one_by_one(engine, record)
        of_image = trace.kinds == KINDS.index("image")
        for place, layer in enumerate(MOE_LAYERS):
            mean = trace.logits(layer)[of_image].mean(0)
            assert np.allclose(observation.logits[point, place], mean, atol=1e-4)


@torch.no_grad()
def test_states_of_images_need_no_question_and_a_dense_model_has_them_too(
    engine: MedMoe, observation: Observation
) -> None:
    images = [observation.images[i] for i in observation.points]
    alone = image_states(engine, images, MOE_LAYERS)
    assert np.allclose(alone, observation.states, atol=1e-5)
    dense = MedMoe(dense_model("phi"), processor())
    features = dense.encode([open_record(images[0])])
    ids = torch.tensor([dense.tokenizer.prompt("?")])
    with ffn_inputs(dense.model, MOE_LAYERS) as seen:
        dense.model(input_ids=ids, vision_features=features)
    mask = ids[0] == dense.processor.image_token_id
    expected = torch.stack([s[0][mask].mean(0) for s in seen]).numpy()
    assert np.allclose(image_states(dense, images[:1], MOE_LAYERS)[0], expected, atol=1e-5)


def test_a_model_without_a_meta_expert_is_observed_too() -> None:
    found = observe(MedMoe(bare_model(), processor()), records())
    assert found.counts.sum() > 0
    assert found.states.shape == (0, 2, 0)


def test_progress_ends_with_all_images(engine: MedMoe) -> None:
    told: list[tuple[int, int]] = []
    observe(engine, records(), progress=lambda done, total: told.append((done, total)))
    assert told == [(3, 3)]
