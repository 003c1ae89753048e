"""The norms are those of the block's two parts computed by hand; the outputs stay as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.model.tiny import (
    FAMILIES,
    MOE_LAYERS,
    WIDTH,
    Family,
    bare_model,
    dense_model,
    moe_model,
    prompt_ids,
)

from medmoe.errors import MedMoeError
from medmoe.routing.contributions import Norms, record_norms
from medmoe.routing.states import ffn_inputs

IDS = torch.tensor([prompt_ids("Is there a mass?")] * 2)


def features() -> torch.Tensor:
    return torch.randn(2, 16, WIDTH, generator=torch.Generator().manual_seed(1))


def run(model: Any) -> torch.Tensor:
    return model(input_ids=IDS, vision_features=features()).logits


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_norms_are_those_of_each_part(family: Family, top_k: int) -> None:
    model: Any = moe_model(family, top_k=top_k)
    plain = run(model)
    with record_norms(model) as norms, ffn_inputs(model, MOE_LAYERS) as states:
        assert torch.equal(run(model), plain)
    assert set(norms.routed) == set(norms.meta) == set(MOE_LAYERS)
    for layer, x in zip(MOE_LAYERS, states, strict=True):
        block = model.moe_blocks[layer]
        _, weights, index = block.gate(x)
        experts = block.experts
        routed = torch.zeros_like(x)
        for row, token, k in torch.cartesian_prod(*map(torch.arange, weights.shape)).tolist():
            stack = experts.unbind()[index[row, token, k]]
            one = experts.expert(stack, x[row, token][None])[0]
            routed[row, token] += weights[row, token, k] * one
        meta = block.meta_expert(x)
        share = (meta.norm(dim=-1) / (meta.norm(dim=-1) + routed.norm(dim=-1))).flatten()
        # Sums of float32 in another order.
        torch.testing.assert_close(norms.meta_share(layer), share, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            norms.routed[layer], routed.norm(dim=-1).flatten(), atol=1e-4, rtol=1e-4
        )


def test_the_share_is_that_of_the_two_norms() -> None:
    norms = Norms({0: torch.tensor([3.0, 0.0, 0.0])}, {0: torch.tensor([1.0, 2.0, 0.0])})
    share = norms.meta_share(0)
    assert share[:2].tolist() == [0.25, 1]
    assert torch.isnan(share[2])


@torch.no_grad()
def test_without_a_meta_expert_there_is_no_norm_of_it() -> None:
    bare = bare_model()
    with record_norms(bare) as norms:
        run(bare)
    assert set(norms.routed) == set(MOE_LAYERS)
    assert norms.meta == {}


def test_hooks_are_gone_afterwards_and_a_dense_model_is_refused() -> None:
    model: Any = moe_model("stablelm")
    with record_norms(model), ffn_inputs(model, MOE_LAYERS):
        pass
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(MedMoeError, match="0 MoE layers"), record_norms(dense_model("phi")):
        pass
