from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.model.tiny import (
    DOMAINS,
    FAMILIES,
    MOE_LAYERS,
    WIDTH,
    Family,
    dense_model,
    pixels,
    prompt_ids,
)

from medmoe.errors import ConfigError
from medmoe.model.upcycle import UpcycleInit, upcycle


def router(experts: int = 4, width: int = WIDTH) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    return {
        "fc1.weight": torch.randn(experts, width, generator=generator) * 0.3,
        "fc1.bias": torch.randn(experts, generator=generator) * 0.3,
    }


def upcycled(dense: Any, top_k: int = 1, init: UpcycleInit = "copy", **changes: Any) -> Any:
    arguments = {"moe_layers": MOE_LAYERS, "domains": DOMAINS, "router": router()} | changes
    return upcycle(dense, num_experts_per_tok=top_k, init=init, **arguments)


def logits(model: Any) -> torch.Tensor:
    ids = torch.tensor([prompt_ids("is there a mass in the left lung?")])
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, pixel_values=pixels(1)).logits
    return found


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_upcycled_top1_block_equals_one_plus_gate_times_ffn(family: Family) -> None:
    dense = dense_model(family)
    x_BSD = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    for index, block in upcycled(dense).moe_blocks.items():
        ffn = dense.model.language_model.layers[index].mlp
        _, p1_BS1, _ = block.gate(x_BSD)
        # One product and one sum are rounded differently: units of the last place.
        torch.testing.assert_close(block(x_BSD), (1 + p1_BS1) * ffn(x_BSD), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_upcycled_top2_block_equals_twice_the_ffn(family: Family) -> None:
    dense = dense_model(family)
    x_BSD = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    for index, block in upcycled(dense, top_k=2).moe_blocks.items():
        ffn = dense.model.language_model.layers[index].mlp
        torch.testing.assert_close(block(x_BSD), 2 * ffn(x_BSD), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_function_preserving_block_and_model_equal_the_dense_ones_exactly(
    family: Family, top_k: int
) -> None:
    dense = dense_model(family)
    model = upcycled(dense, top_k, "function_preserving")
    x_BSD = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    for index, block in model.moe_blocks.items():
        assert torch.equal(block(x_BSD), dense.model.language_model.layers[index].mlp(x_BSD))
    assert torch.equal(logits(model), logits(dense))
    # The paper's start is another function.
    assert not torch.allclose(logits(upcycled(dense, top_k)), logits(dense), atol=0.1)


def test_function_preserving_experts_still_learn() -> None:
    """A zero output projection has a gradient as long as what stands before it is not zero."""
    model = upcycled(dense_model("stablelm"), init="function_preserving")
    ids = torch.tensor([prompt_ids("is there a mass?")])
    model(input_ids=ids, pixel_values=pixels(1), labels=ids).loss.backward()
    assert model.moe_blocks[0].experts.down_proj.grad.abs().sum() > 0
    assert model.moe_blocks[0].experts.gate_up_proj.abs().sum() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_upcycling_leaves_the_dense_model_as_it_was(family: Family) -> None:
    dense = dense_model(family)
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    config = dense.config.to_dict()
    model = upcycled(dense)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    after = dense.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert dense.config.to_dict() == config
    assert not dense.moe_blocks


def test_upcycling_shares_no_tensor_between_experts_or_routers() -> None:
    model = upcycled(dense_model("phi"))
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    assert len(set(pointers)) == len(pointers)


def test_upcycling_draws_from_its_own_seed_only() -> None:
    torch.manual_seed(5)
    first = upcycled(dense_model("phi"), router=None, seed=1)
    state = torch.random.get_rng_state()
    torch.manual_seed(6)
    again = upcycled(dense_model("phi"), router=None, seed=1)
    other = upcycled(dense_model("phi"), router=None, seed=2)
    gates = [m.moe_blocks[0].gate.fc1.weight for m in (first, again, other)]
    assert torch.equal(gates[0], gates[1])
    assert not torch.equal(gates[0], gates[2])
    torch.manual_seed(5)
    dense_model("phi")
    assert torch.equal(torch.random.get_rng_state(), state)


def test_upcycling_a_bfloat16_model_keeps_its_type_and_a_float32_router() -> None:
    dense = dense_model("stablelm").to(torch.bfloat16)
    model = upcycled(dense)
    types = {name: p.dtype for name, p in model.named_parameters()}
    assert {dtype for name, dtype in types.items() if ".mlp.gate." in name} == {torch.float32}
    assert {dtype for name, dtype in types.items() if ".mlp.gate." not in name} == {torch.bfloat16}
    given = router()["fc1.weight"]
    assert torch.equal(model.moe_blocks[0].gate.fc1.weight, given)


def test_one_set_of_router_weights_serves_every_moe_layer() -> None:
    model = upcycled(dense_model("phi"))
    given = router()
    for block in model.moe_blocks.values():
        assert all(torch.equal(t, given[name]) for name, t in block.gate.state_dict().items())


def test_upcycling_keeps_the_head_bias_and_the_generation_settings() -> None:
    dense = dense_model("phi")
    dense.generation_config.max_new_tokens = 17
    model = upcycled(dense)
    assert torch.equal(model.lm_head.bias, dense.lm_head.bias)
    assert model.generation_config.max_new_tokens == 17


@pytest.mark.parametrize(
    "wrong",
    [
        router(experts=6),
        router(width=WIDTH + 1),
        {"fc1.weight": router()["fc1.weight"]},
        router() | {"fc2.weight": torch.zeros(4, 4)},
    ],
    ids=["experts", "width", "no bias", "deeper"],
)
def test_upcycling_refuses_a_router_of_another_shape(wrong: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ConfigError, match=r"the router has the tensors .* this model needs"):
        upcycled(dense_model("phi"), router=wrong)


def test_upcycling_refuses_a_layer_the_language_model_does_not_have() -> None:
    with pytest.raises(ConfigError, match=r"moe_layers \[0, 9\] must lie in 0\.\.2"):
        upcycled(dense_model("phi"), moe_layers=[0, 9])


def test_upcycling_follows_the_training_mode_of_the_dense_model() -> None:
    dense = copy.deepcopy(dense_model("phi"))
    assert not upcycled(dense.eval()).training
    assert upcycled(dense.train()).training
