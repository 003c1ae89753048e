"""The head on answers only: the same loss and the same gradients as on every position."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.model.tiny import FAMILIES, Family
from tests.training import toy
from torch import Tensor

from medmoe.data.collate import PackingCollator
from medmoe.training.packed import packed_schedule


def batch(context: Any) -> dict[str, Tensor]:
    """Return a batch of packed questions, some answered in one token and some in several."""
    schedule = packed_schedule(replace(context, steps=1, seed=7))
    collate = PackingCollator(context.features, context.processor.tokenizer.pad_token_id)
    return collate([schedule[i] for i in range(4)])


def loss_and_gradients(model: Any, **inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("count", [None, 37])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_every_gradient_are_those_of_the_whole_head(
    family: Family, count: int | None
) -> None:
    model = toy.moe(family).train()
    inputs = batch(toy.context(model)) | ({} if count is None else {"num_items_in_batch": count})
    loss, gradients = loss_and_gradients(model, **inputs)
    mine, others = loss_and_gradients(model, **inputs, answers_only=True)
    # float32 sums over other shapes: rounding only
    assert mine.item() == pytest.approx(loss.item(), abs=1e-6)
    assert gradients.keys() == others.keys()
    assert len(gradients) > 20
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


@contextmanager
def rows_of_the_head(model: Any) -> Iterator[list[int]]:
    """Count the positions that the head is run on."""
    rows: list[int] = []
    handle = model.lm_head.register_forward_pre_hook(
        lambda _, inputs: rows.append(inputs[0].flatten(0, -2).shape[0])
    )
    yield rows
    handle.remove()


def test_head_is_run_on_answers_alone() -> None:
    model = toy.moe()
    inputs = batch(toy.context(model))
    answers = int((inputs["labels"] != -100).sum())
    with rows_of_the_head(model) as rows:
        assert model(**inputs, answers_only=True).logits is None
        assert model(**inputs).logits is not None
    assert rows == [answers, inputs["input_ids"].numel()]
    assert answers < inputs["input_ids"].numel() / 4


def test_without_labels_nothing_changes() -> None:
    model = toy.moe()
    inputs = batch(toy.context(model))
    del inputs["labels"]
    with torch.no_grad():
        assert torch.equal(model(**inputs, answers_only=True).logits, model(**inputs).logits)
