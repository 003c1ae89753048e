"""The evidence card's parts: each number is what the model gives when asked by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.model.tiny import DOMAINS, bare_model, dense_model, moe_model, processor

from medmoe.errors import ConfigError, ImageError, MedMoeError
from medmoe.inference.attribution import (
    DeletionTest,
    attribute,
    log_probability,
    region_masks,
)
from medmoe.inference.engine import MedMoe
from medmoe.inference.evidence import Evidence, candidates, explain
from medmoe.routing.hooks import forced_expert, meta_expert_off

QUESTION = "Is there a mass?"


def picture(seed: int = 0) -> np.ndarray:
    shape = (40, 30, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def engine() -> MedMoe:
    return MedMoe(moe_model("stablelm"), processor(), max_new_tokens=4)


@pytest.fixture(scope="module")
def evidence(engine: MedMoe) -> Evidence:
    return explain(engine, picture(), QUESTION)


def test_answer_and_routing_are_those_of_asking(engine: MedMoe, evidence: Evidence) -> None:
    answer = engine.answer(picture(), QUESTION, evidence=True)
    assert evidence.answer == answer.text
    assert evidence.confidence is not None
    assert evidence.confidence == pytest.approx(answer.confidence, rel=1e-3)
    assert evidence.routing is not None
    assert answer.routing is not None
    assert evidence.routing.probabilities == pytest.approx(answer.routing.probabilities, rel=1e-3)


def test_about_a_flat_picture_no_probability_is_told(engine: MedMoe) -> None:
    white = np.full((40, 40), 255, np.uint8)
    for options in ((), ("yes", "no")):
        found = explain(engine, white, QUESTION, options)
        assert (found.confidence, found.alternatives) == (None, ())


def test_alternatives_hold_the_answer_in_order_of_probability(evidence: Evidence) -> None:
    probabilities = [found.probability for found in evidence.alternatives]
    assert probabilities == sorted(probabilities, reverse=True)
    assert evidence.answer in [found.text for found in evidence.alternatives]
    assert len({found.text for found in evidence.alternatives}) == len(probabilities)
    assert 0 < sum(probabilities) <= 1 + 1e-6


@torch.no_grad()
def test_a_candidates_probability_is_that_of_its_tokens(engine: MedMoe) -> None:
    """With one new token the beam's scores are the softmax of the prompt's last logits."""
    short = MedMoe(engine.model, processor(), max_new_tokens=1)
    features = short.encode([picture()])
    ids = torch.tensor([short.tokenizer.prompt(QUESTION)])
    logits = short.model(input_ids=ids, vision_features=features).logits[0, -1]
    top = logits.softmax(-1).topk(5)
    found = candidates(short, features, QUESTION, 5)
    texts = [
        processor().tokenizer.decode([i], skip_special_tokens=True).strip() for i in top.indices
    ]
    expected: dict[str, float] = {}
    for text, probability in zip(texts, top.values.tolist(), strict=True):
        expected[text] = expected.get(text, 0) + probability
    assert dict(found) == pytest.approx(expected, rel=1e-3)


def test_counterfactuals_name_each_change_and_give_the_first_answers_probability(
    engine: MedMoe, evidence: Evidence
) -> None:
    assert [row.change for row in evidence.counterfactuals] == [
        "image blanked",
        *(f"expert {domain} forced" for domain in DOMAINS),
        "meta expert off",
    ]
    blank = engine.answer(np.full((32, 32, 3), (128, 102, 76), dtype=np.uint8), QUESTION)
    first = evidence.counterfactuals[0]
    assert first.answer == blank.text
    assert first.differs == (blank.text != evidence.answer)
    zeros = torch.zeros_like(engine.pixel_values([picture()]))
    kept = log_probability(engine, engine.encode_pixels(zeros), QUESTION, evidence.answer)
    assert first.original_probability == pytest.approx(math.exp(kept), rel=1e-3)
    assert len({row.confidence for row in evidence.counterfactuals}) > 3


@pytest.mark.parametrize("options", [(), ("yes", "no", "liver")])
def test_in_batches_the_evidence_is_that_of_asking_one_by_one(
    engine: MedMoe, options: tuple[str, ...]
) -> None:
    alone = MedMoe(engine.model, processor(), max_new_tokens=4, batch_size=1)
    expected = explain(alone, picture(), QUESTION, options)
    for size in (3, 64):
        some = MedMoe(engine.model, processor(), max_new_tokens=4, batch_size=size)
        found = explain(some, picture(), QUESTION, options)
        assert [(row.change, row.answer, row.differs) for row in found.counterfactuals] == [
            (row.change, row.answer, row.differs) for row in expected.counterfactuals
        ]
        for kind in ("confidence", "original_probability"):
            ours, theirs = (
                [getattr(row, kind) for row in of.counterfactuals] for of in (found, expected)
            )
            assert ours == pytest.approx(theirs, rel=1e-3)
        assert found.answer == expected.answer
        assert found.confidence == pytest.approx(expected.confidence, rel=1e-3)
        # Differences of log-probabilities, sums of float32 in batches of another size.
        cells = np.array(found.attribution.cells)
        assert cells == pytest.approx(np.array(expected.attribution.cells), abs=2e-4)
        deletion, other = found.attribution.deletion, expected.attribution.deletion
        assert deletion.random == pytest.approx(other.random, abs=2e-4)


def test_each_change_alone_gives_what_it_gives_among_the_others(
    engine: MedMoe, evidence: Evidence
) -> None:
    features = engine.encode([picture()])
    changes = [forced_expert(engine.model, i) for i in range(len(DOMAINS))]
    for changed, row in zip(
        [*changes, meta_expert_off(engine.model)], evidence.counterfactuals[1:], strict=True
    ):
        with changed:
            answer = engine.answer_features(features, [0], [QUESTION])[0]
            scores, _ = engine.scored_options(features, [0], [QUESTION], [(evidence.answer,)])[0]
        assert (row.answer, row.differs) == (answer.text, answer.text != evidence.answer)
        assert row.confidence == pytest.approx(answer.confidence, rel=1e-3)
        assert row.original_probability == pytest.approx(math.exp(scores[0]), rel=1e-3)


def test_explaining_leaves_the_model_as_it_was(engine: MedMoe) -> None:
    before = {name: p.clone() for name, p in engine.model.named_parameters()}
    first = explain(engine, picture(1), QUESTION)
    assert all(torch.equal(before[name], p) for name, p in engine.model.named_parameters())
    for block in engine.model.moe_blocks.values():
        assert not any(module._forward_hooks for module in block.modules())
    assert explain(engine, picture(1), QUESTION) == first


def test_options_share_a_probability_of_one(engine: MedMoe) -> None:
    options = ("yes", "no", "liver")
    found = explain(engine, picture(), QUESTION, options)
    assert {alternative.text for alternative in found.alternatives} == set(options)
    assert sum(alternative.probability for alternative in found.alternatives) == pytest.approx(1)
    assert (found.answer, found.confidence) == (
        found.alternatives[0].text,
        found.alternatives[0].probability,
    )
    assert all(row.answer in options for row in found.counterfactuals)
    scores, _ = engine.scored_options(engine.encode([picture()]), [0], [QUESTION], [options])[0]
    assert found.answer == options[int(np.argmax(scores))]


def test_a_dense_model_has_no_routing_and_says_so() -> None:
    found = explain(MedMoe(dense_model("phi"), processor(), max_new_tokens=2), picture(), QUESTION)
    assert found.routing is None
    assert [row.change for row in found.counterfactuals] == ["image blanked"]


def test_a_model_without_meta_expert_has_none_to_switch_off() -> None:
    bare = bare_model()
    engine = MedMoe(bare, processor(), max_new_tokens=2)
    changes = [row.change for row in explain(engine, picture(), QUESTION).counterfactuals]
    assert changes == ["image blanked", *(f"expert {domain} forced" for domain in DOMAINS)]
    with pytest.raises(MedMoeError, match="no meta expert"), meta_expert_off(bare):
        pass


def test_it_can_be_written_as_json(evidence: Evidence) -> None:
    found = json.loads(json.dumps(evidence.to_dict(), allow_nan=False))
    assert found["note"] == "Research use only, not a medical device."
    assert np.shape(found["attribution"]["cells"]) == (4, 4)
    assert found["attribution"]["deletion"]["passed"] in (True, False)


@pytest.mark.parametrize(
    ("question", "options", "part"),
    [
        ("  ", (), "question is empty"),
        (QUESTION, ("yes",), "at least two"),
        (QUESTION, ("yes", " "), "none empty"),
        (QUESTION, ("yes", "yes"), "one answer twice"),
    ],
)
def test_what_is_no_question_is_refused(
    engine: MedMoe, question: str, options: tuple[str, ...], part: str
) -> None:
    with pytest.raises(ConfigError, match=part):
        explain(engine, picture(), question, options)


def test_a_picture_that_is_none_is_refused(engine: MedMoe) -> None:
    with pytest.raises(ImageError, match=r"gone\.png"):
        explain(engine, "gone.png", QUESTION)


@pytest.mark.parametrize(("side", "patch", "cells"), [(32, 8, 4), (64, 8, 8), (336, 14, 8)])
def test_regions_part_the_square_into_whole_patches(side: int, patch: int, cells: int) -> None:
    masks = region_masks(torch.zeros(1, 3, side, side), patch)
    assert masks.shape == (cells**2, side, side)
    assert bool((masks.sum(0) == 1).all())
    for mask in masks:
        assert int(mask.sum()) == (side // cells) ** 2
        rows = mask.any(1).nonzero()
        assert int(rows[0]) % patch == 0


def test_cells_are_the_mean_of_captums_ablation_of_the_picture_and_of_a_grey_one(
    engine: MedMoe,
) -> None:
    ablation = pytest.importorskip("captum.attr", reason="captum (extra `eval`) is not installed")
    pixels = engine.pixel_values([picture()])
    masks = region_masks(pixels, 8)

    def scored(values: torch.Tensor) -> torch.Tensor:
        return log_probability(engine, engine.encode_pixels(values), QUESTION, "yes")

    method = ablation.FeatureAblation(scored)
    regions = masks.int().argmax(0)[None, None]
    last = method.attribute(pixels, baselines=0.0, feature_mask=regions)
    # The other way round: on a grey picture each region is replaced by the picture's own.
    grey = torch.zeros_like(pixels)
    first = -method.attribute(grey, baselines=pixels, feature_mask=regions)
    theirs = (last + first) / 2
    ours = torch.tensor(attribute(engine, pixels, QUESTION, "yes").cells).flatten()
    for mask, value in zip(masks, ours, strict=True):
        # Sums of float32 in batches of another size.
        assert float(theirs[0, 0][mask].mean()) == pytest.approx(float(value), abs=2e-4)


@pytest.fixture
def one_region_counts(engine: MedMoe, monkeypatch: pytest.MonkeyPatch) -> MedMoe:
    """An engine whose answer rests on region 5 alone, and is spoken against by region 0."""

    def scored(features: torch.Tensor, *rest: Any) -> list[tuple[tuple[float, ...], None]]:
        return [((float(f[5] - 0.5 * f[0]),), None) for f in features]

    def seen(pixels: torch.Tensor) -> torch.Tensor:
        masks = region_masks(pixels, 8).float()
        return (pixels[:, None, 0].abs() > 0).float().mul(masks).amax((2, 3))

    monkeypatch.setattr(engine, "scored_options", scored)
    monkeypatch.setattr(engine, "encode_pixels", seen)
    return engine


def test_the_map_finds_the_region_and_the_deletion_test_passes(one_region_counts: MedMoe) -> None:
    found = attribute(one_region_counts, torch.ones(1, 3, 32, 32), QUESTION, "yes")
    cells = np.array(found.cells).flatten()
    assert cells.argmax() == 5
    assert cells[5] == 1
    assert cells[0] == -0.5
    assert (cells[1:5] == 0).all()
    assert found.deletion.most_important == 1
    assert found.deletion.random < 0.6
    assert found.deletion.passed


@pytest.mark.parametrize(
    ("most_important", "random", "passed"),
    [(1.0, 0.5, True), (0.5, 1.0, False), (-0.05, -0.06, False), (0.0, -1.0, False)],
)
def test_regions_whose_loss_costs_nothing_do_not_pass(
    most_important: float, random: float, passed: bool
) -> None:
    assert DeletionTest(most_important, random).passed is passed
