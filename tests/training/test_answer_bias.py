"""What is added to the logits of "yes", "no" and an answer's end is what validation answers say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tests.model.tiny import dense_model, moe_model, processor

from medmoe.data.collate import PackingCollator
from medmoe.data.schema import ImageRecord, Record
from medmoe.data.tokenize import ConversationTokenizer
from medmoe.inference.chat import token_biases
from medmoe.training.answer_bias import LEAST, MOST, _of_answers, _shift, fit_answer_bias
from medmoe.training.packed import packed_once

END = processor().tokenizer.eos_token_id


def batches(model: Any, answers: Sequence[str]) -> list[dict[str, Any]]:
    """Return one packed batch: a picture and a question for each answer."""
    images = [ImageRecord(f"set/{number}", b"", "ct") for number in range(len(answers))]
    records = [
        Record(image.id, image, "Is there a mass?", answer, "closed", "is", "vqa", "s", "t", "")
        for image, answer in zip(images, answers, strict=True)
    ]
    rows = {image.id: row for row, image in enumerate(images)}
    tokenizer = ConversationTokenizer(processor(), model.config.image_seq_length)
    tower = model.config.vision_config
    patches = (tower.image_size // tower.patch_size) ** 2
    features = torch.randn(len(images), patches, tower.hidden_size, generator=torch.manual_seed(1))
    collate = PackingCollator(features, processor().tokenizer.pad_token_id)
    return [collate(packed_once(records, rows, tokenizer))]


def fit(model: Any, given: list[dict[str, Any]]) -> dict[str, float]:
    tokenizer = ConversationTokenizer(processor(), model.config.image_seq_length)
    return fit_answer_bias(model, tokenizer, END, given)


@pytest.mark.parametrize("build", [dense_model, moe_model])
def test_the_mean_probabilities_become_the_shares_of_the_answers(build: Any) -> None:
    model = build("stablelm")
    given = batches(model, ["yes"] * 2 * LEAST + ["no"] * LEAST)
    bias = fit(model, given)
    added = token_biases(model.generation_config)
    assert 0 < abs(bias["end"]) < MOST
    assert added[END] == bias["end"]
    yes, no = ([t for t, b in added.items() if b == s * bias["yes"] / 2] for s in (1, -1))
    with torch.no_grad():
        logits, true = _of_answers(model, given[0])
    for token, value in added.items():
        logits[:, token] += value
    # Of a fit with one free number: predicted and observed shares are equal.
    first = logits[torch.isin(true, torch.tensor([*yes, *no]))]
    assert len(first) == 3 * LEAST
    either = first[:, [*yes, *no]].softmax(1)[:, : len(yes)].sum(1)
    assert float(either.mean()) == pytest.approx(2 / 3, abs=1e-3)


def test_the_end_is_as_likely_as_it_is_frequent_and_one_kind_of_answer_says_nothing() -> None:
    model = dense_model("stablelm")
    given = batches(model, ["yes"] * 3 * LEAST)
    bias = fit(model, given)
    assert bias["yes"] == 0
    assert abs(bias["end"]) < MOST
    assert list(token_biases(model.generation_config)) == [END]
    with torch.no_grad():
        logits, true = _of_answers(model, given[0])
    logits[:, END] += bias["end"]
    share = float((true == END).float().mean())
    assert float(logits.softmax(1)[:, END].mean()) == pytest.approx(share, abs=1e-3)


def test_a_known_shift_is_found_and_few_outcomes_say_nothing() -> None:
    draws = np.random.default_rng(0)
    odds = torch.from_numpy(draws.normal(size=20_000))
    outcomes = torch.from_numpy(draws.random(20_000)) < (odds + 1.5).sigmoid()
    assert _shift([(odds, outcomes)]) == pytest.approx(1.5, abs=0.05)
    assert _shift([(odds[:99], torch.ones(99, dtype=torch.bool))]) == 0
    assert _shift([(odds[:99], torch.arange(99) < LEAST - 1)]) == 0
