"""MoE layers without the meta expert (paper, Table 5), and routers of their own per layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.test_upcycle import logits, router
from tests.model.tiny import (
    DOMAINS,
    FAMILIES,
    MOE_LAYERS,
    WIDTH,
    Family,
    dense_model,
    pixels,
    processor,
    prompt_ids,
    randomise,
)

from medmoe.errors import ConfigError
from medmoe.inference.engine import MedMoe
from medmoe.model.checkpoint import load_model, save_model
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.cost.parameters import activated_parameters
from medmoe.model.upcycle import upcycle


def without(family: Family, **changes: Any) -> Any:
    """Return a freshly upcycled model whose layers have no meta expert."""
    arguments = {"moe_layers": MOE_LAYERS, "domains": DOMAINS, "router": router()}
    return upcycle(dense_model(family), **(arguments | {"meta_expert": False} | changes))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_upcycled_top1_block_equals_gate_times_ffn(family: Family) -> None:
    dense = dense_model(family)
    x_BSD = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    for index, block in without(family).moe_blocks.items():
        ffn = dense.model.language_model.layers[index].mlp
        _, p1_BS1, _ = block.gate(x_BSD)
        # One product is rounded differently: units of the last place.
        torch.testing.assert_close(block(x_BSD), p1_BS1 * ffn(x_BSD), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_tensor_of_a_meta_expert_is_left(family: Family) -> None:
    model = without(family)
    assert not [name for name in model.state_dict() if "meta_expert" in name]
    whole = without(family, meta_expert=True)
    ffn = sum(
        p.numel() for block in whole.moe_blocks.values() for p in block.meta_expert.parameters()
    )
    assert activated_parameters(whole) - activated_parameters(model) == ffn


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded_it_is_the_same_model(family: Family, tmp_path: Path) -> None:
    model = randomise(without(family), seed=3)
    save_model(model, processor(), tmp_path / "model", {})
    loaded, _ = load_model(tmp_path / "model")
    assert loaded.config.meta_expert is False
    assert torch.equal(logits(loaded), logits(model))


def test_it_trains_and_answers() -> None:
    model = without("stablelm")
    ids = torch.tensor([prompt_ids("which organ is seen?")])
    model(input_ids=ids, pixel_values=pixels(1), labels=ids).loss.backward()
    assert all(p.grad is not None for p in model.moe_blocks[0].experts.parameters())
    answer = MedMoe(model, processor()).answer(torch.zeros(32, 32, dtype=torch.uint8).numpy(), "?")
    assert answer.routing is not None


def test_a_config_says_true_unless_told_otherwise() -> None:
    assert MedMoeConfig().meta_expert is True
    with pytest.raises(ConfigError, match=r"meta_expert \('no'\) must be true or false; use --set"):
        MedMoeConfig(meta_expert="no")


@torch.no_grad()
def test_each_layer_may_have_its_own_router() -> None:
    routers = [router(), {name: -tensor for name, tensor in router().items()}]
    model = without("stablelm", router=routers, meta_expert=True)
    for block, state in zip(model.moe_blocks.values(), routers, strict=True):
        assert all(torch.equal(block.gate.state_dict()[name], state[name]) for name in state)


def test_a_router_for_each_layer_means_for_each() -> None:
    with pytest.raises(ConfigError, match="there are 3 routers for 2 MoE layers; give one for all"):
        without("stablelm", router=[router()] * 3)
