"""The learned router's auxiliary loss: its formula, padding, and that the router trains by it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.model.tiny import MOE_LAYERS
from tests.training import toy

from medmoe.data.collate import Packed, pack_batch
from medmoe.data.tokenize import Segment
from medmoe.training.context import RunSettings
from medmoe.training.load_balance import BalancedMoe, is_token, load_balance_loss
from medmoe.training.packed import train_packed


def naive(logits: torch.Tensor) -> float:
    """Return the formula, token by token and expert by expert."""
    tokens, experts = logits.shape
    total = 0.0
    for e in range(experts):
        chosen, probability = 0, 0.0
        for t in range(tokens):
            row = [math.exp(x) for x in logits[t].tolist()]
            chosen += row.index(max(row)) == e
            probability += row[e] / sum(row)
        total += chosen / tokens * probability / tokens
    return experts * total


@pytest.mark.parametrize("seed", range(3))
def test_loss_equals_the_naive_formula(seed: int) -> None:
    logits = torch.randn(17, 4, generator=torch.Generator().manual_seed(seed))
    # float32 against float64
    assert float(load_balance_loss(logits)) == pytest.approx(naive(logits), rel=1e-6)


def test_even_routing_costs_one_and_one_expert_for_all_costs_the_number_of_experts() -> None:
    even = 50.0 * torch.eye(4).repeat(3, 1)
    assert float(load_balance_loss(even)) == pytest.approx(1.0, abs=1e-6)
    collapsed = torch.tensor([[50.0, 0, 0, 0]]).repeat(8, 1)
    assert float(load_balance_loss(collapsed)) == pytest.approx(4.0, abs=1e-6)


@pytest.mark.parametrize("top", [1, 2])
def test_loss_is_the_references(top: int, shared: Path) -> None:
    arrays = np.load(shared / "reference" / "stablelm" / f"forward_single_top{top}_neutral.npz")
    for layer in MOE_LAYERS:
        logits = torch.from_numpy(arrays[f"layer{layer}_gate_logits"])
        wanted = float(arrays[f"layer{layer}_l_aux"])
        # Sums of 33 float32 probabilities in another order.
        assert float(load_balance_loss(logits)) == pytest.approx(wanted, rel=1e-5)


def test_packed_padding_is_told_from_tokens() -> None:
    def packed(*lengths: int) -> Packed:
        return Packed(0, (5, 5), tuple(Segment((6,) * n, 1) for n in lengths))

    mask = pack_batch([packed(3), packed(1, 1), packed(2, 4)], pad_token_id=0)["attention_mask"]
    assert is_token(mask).sum(dim=1).tolist() == [5, 4, 8]
    flat = torch.tensor([[1, 1, 0]])
    assert is_token(flat).tolist() == [[True, True, False]]


def test_padding_changes_nothing() -> None:
    model = BalancedMoe(toy.moe(), weight=1.0).eval()
    context = toy.context(toy.dense())
    segment = context.tokenizer.segment("is there a mass?", "yes")
    short = Packed(0, context.tokenizer.prefix(), (segment,))
    long = replace(short, image=1, segments=(segment,) * 3)

    def balance(samples: list[Packed], rows: slice) -> torch.Tensor:
        batch = pack_batch(samples, context.processor.tokenizer.pad_token_id)
        found = {name: tensor[rows] for name, tensor in batch.items()}
        features = context.features[[s.image for s in samples]][rows]
        with torch.no_grad():
            return model(**found, vision_features=features)["balance_loss"]

    alone = balance([short], slice(0, 1))
    padded = balance([short, long], slice(0, 1))
    # Attention over masked positions is summed in another order.
    torch.testing.assert_close(alone, padded, rtol=1e-5, atol=1e-6)


def test_router_trains_in_phase_3_and_experts_share_the_tokens() -> None:
    model = toy.moe()
    before = toy.weights(model)
    context = toy.context(model, steps=30)
    spec = context.spec.model_copy(update={"trains": "learned_router"})
    wrapped = BalancedMoe(model, weight=1.0)
    context = replace(context, spec=spec)
    train_packed(context, trained=wrapped)
    changed = toy.changed(before, toy.weights(model))
    assert {n for n in before if ".mlp.gate." in n} <= changed
    assert all(".mlp." in name for name in changed)


def test_parts_of_an_accumulated_batch_add_up_to_the_whole_weight() -> None:
    model = BalancedMoe(toy.moe(), weight=2.0).eval()
    context = toy.context(toy.dense())
    segment = context.tokenizer.segment("is there a mass?", "yes")
    sample = Packed(0, context.tokenizer.prefix(), (segment,))
    batch = pack_batch([sample], 0) | {"vision_features": context.features[:1]}
    answer = int((batch["labels"] != -100).sum())
    with torch.no_grad():
        whole = model(**batch)
        part = model(**batch, num_items_in_batch=torch.tensor(4 * answer))
    extra = [out["loss"] - out["answer_loss"] for out in (whole, part)]
    torch.testing.assert_close(extra[1], extra[0] / 4)


def test_it_saves_memory_as_other_models_do_and_learns_the_same() -> None:
    """With the head on the answers' positions only, and with layers computed anew."""
    learned = []
    for saving in (False, True):
        model = toy.moe()
        seen: list[tuple[int, bool]] = []
        model.lm_head.register_forward_hook(
            lambda _, inputs, __, seen=seen, model=model: seen.append(  # type: ignore[misc]
                (inputs[0].shape[-2], model.is_gradient_checkpointing)
            )
        )
        context = toy.context(model, steps=3)
        spec = context.spec.model_copy(update={"trains": "learned_router"})
        settings = RunSettings(answers_only=saving, gradient_checkpointing=saving)
        context = replace(context, spec=spec, settings=settings)
        train_packed(context, trained=BalancedMoe(model, weight=1.0))
        learned.append((toy.weights(model), seen))
    (plain, everywhere), (weights, few) = learned
    assert not any(checkpointed for _, checkpointed in everywhere)
    assert all(checkpointed for _, checkpointed in few)
    assert max(count for count, _ in few) < min(count for count, _ in everywhere)
    # Fewer rows in the head's product are summed in another order; three AdamW steps of about 1e-3.
    for name, weight in weights.items():
        torch.testing.assert_close(weight, plain[name], rtol=1e-3, atol=1e-4)
