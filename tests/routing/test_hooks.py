"""Hooks record what passes a block and change just what they say; the model stays as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.model.tiny import (
    FAMILIES,
    MOE_LAYERS,
    WIDTH,
    Family,
    dense_model,
    moe_model,
    prompt_ids,
)

from medmoe.errors import MedMoeError
from medmoe.routing.hooks import (
    ffn_inputs,
    forced_expert,
    meta_expert_off,
)

IDS = torch.tensor([prompt_ids("Is there a mass?")] * 2)


def features() -> torch.Tensor:
    return torch.randn(2, 16, WIDTH, generator=torch.Generator().manual_seed(1))


def run(model: Any) -> torch.Tensor:
    return model(input_ids=IDS, vision_features=features()).logits


def test_hooks_are_gone_afterwards_and_a_dense_model_is_refused() -> None:
    model: Any = moe_model("stablelm")
    with ffn_inputs(model, MOE_LAYERS):
        pass
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(MedMoeError, match="0 MoE layers"), forced_expert(dense_model("phi"), 0):
        pass


def states() -> torch.Tensor:
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))


def block_of(model: Any) -> Any:
    return next(iter(model.moe_blocks.values()))


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_forced_expert_answers_for_all_with_the_weight_of_those_chosen(
    family: Family, top_k: int
) -> None:
    model = moe_model(family, top_k=top_k)
    block, x = block_of(model), states()
    weights = block.gate(x)[1].sum(-1, keepdim=True)
    for expert in range(4):
        with forced_expert(model, expert):
            found = block(x)
        alone = block.experts.expert(block.experts.unbind()[expert], x.flatten(0, 1)).view_as(x)
        # One sum more or less in float32.
        torch.testing.assert_close(
            found, weights * alone + block.meta_expert(x), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_without_the_meta_expert_only_the_routed_part_is_left(family: Family) -> None:
    model = moe_model(family)
    block, x = block_of(model), states()
    with meta_expert_off(model):
        found = block(x)
    torch.testing.assert_close(found, block(x) - block.meta_expert(x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rows_of_one_batch_are_changed_each_in_its_own_way() -> None:
    model = moe_model("stablelm")
    block, x = block_of(model), states()[:1].expand(3, -1, -1)
    with forced_expert(model, [None, 2, None]), meta_expert_off(model, [False, False, True]):
        plain, forced, off = block(x)
    expected = [block(x)[0]]
    for change in (forced_expert(model, 2), meta_expert_off(model)):
        with change:
            expected.append(block(x)[0])
    torch.testing.assert_close(torch.stack([plain, forced, off]), torch.stack(expected))


def fail_inside(change: Any, block: Any, x: torch.Tensor, changed: list[torch.Tensor]) -> None:
    with change:
        changed.append(block(x))
        block(x[..., 1:])  # of a wrong width


@torch.no_grad()
def test_the_model_is_exactly_what_it_was_also_after_an_error() -> None:
    model = moe_model("stablelm")
    block, x = block_of(model), states()
    before, weights = block(x), {n: p.clone() for n, p in model.named_parameters()}
    for change in (forced_expert(model, 2), meta_expert_off(model)):
        changed: list[torch.Tensor] = []
        with pytest.raises(RuntimeError, match="shapes"):
            fail_inside(change, block, x, changed)
        assert not torch.equal(changed[0], before)
    assert torch.equal(block(x), before)
    assert all(torch.equal(weights[n], p) for n, p in model.named_parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_what_cannot_be_changed_is_refused() -> None:
    with pytest.raises(MedMoeError, match="0 MoE layers"), meta_expert_off(dense_model("phi")):
        pass
