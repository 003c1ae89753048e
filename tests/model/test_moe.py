from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from tests.model.tiny import (
    FAMILIES,
    MOE_LAYERS,
    WIDTH,
    Family,
    moe_model,
    pixels,
    prompt_ids,
    randomise,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from medmoe.model import moe
from medmoe.model.moe import MoeBlock
from medmoe.training.trainable import set_trainable

IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")


def hidden_states(rows: int, tokens: int) -> Tensor:
    return torch.randn(rows, tokens, WIDTH, generator=torch.Generator().manual_seed(7))


def expert_module(block: MoeBlock, index: int) -> Any:
    """Return expert `index` as a stock FFN module of the decoder."""
    module: Any = copy.deepcopy(block.meta_expert)
    experts: Any = block.experts
    if hasattr(experts, "gate_up_proj"):
        gate, up = experts.gate_up_proj[index].chunk(2)
        state = {"gate_proj.weight": gate, "up_proj.weight": up}
        state["down_proj.weight"] = experts.down_proj[index]
    else:
        state = {
            f"{part}.{kind}": getattr(experts, f"{part}_{kind}")[index]
            for part in ("fc1", "fc2")
            for kind in ("weight", "bias")
        }
    module.load_state_dict(state)
    return module


def naive_probabilities(block: MoeBlock, x_D: Tensor) -> list[float]:
    h = x_D
    for depth in range(1, block.gate.depth + 1):
        layer: Any = getattr(block.gate, f"fc{depth}")
        h = torch.stack([row @ h for row in layer.weight]) + layer.bias
        if depth < block.gate.depth:
            h = torch.nn.functional.gelu(h)
    exponentials = [math.exp(float(logit) - float(h.max())) for logit in h]
    return [e / sum(exponentials) for e in exponentials]


def naive_block(block: MoeBlock, x_BSD: Tensor, top_k: int) -> Tensor:
    """Equation 4, token by token and expert by expert."""
    out = torch.zeros_like(x_BSD)
    experts = [expert_module(block, e) for e in range(block.experts.num_experts)]
    for row in range(x_BSD.shape[0]):
        for place in range(x_BSD.shape[1]):
            x_D = x_BSD[row, place]
            probabilities = naive_probabilities(block, x_D)
            order = sorted(range(len(experts)), key=lambda e: -probabilities[e])
            chosen = order[:top_k]
            total = 1.0 if top_k == 1 else sum(probabilities[e] for e in chosen)
            y_D = block.meta_expert(x_D)
            for e in chosen:
                y_D = y_D + probabilities[e] / total * experts[e](x_D)
            out[row, place] = y_D
    return out


# Sums of some fifty products in another order: a few units of the last place of values near 10.
TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}


# A batch of exactly three rows, and three tokens, are silently wrong in the reference code.
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 3), (3, 5)])
@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_block_equals_a_loop_over_tokens_and_experts(
    family: Family, top_k: int, shape: tuple[int, int]
) -> None:
    block = moe_model(family, top_k).moe_blocks[0]
    x_BSD = hidden_states(*shape)
    torch.testing.assert_close(block(x_BSD), naive_block(block, x_BSD, top_k), **TOLERANCE)


@pytest.mark.parametrize("depth", [1, 2, 3])
@torch.no_grad()
def test_routers_of_every_depth_are_the_mlp_they_say(depth: int) -> None:
    block = moe_model("phi", top_k=2, router_layers=depth).moe_blocks[2]
    assert len(list(block.gate.children())) == depth
    x_BSD = hidden_states(2, 4)
    torch.testing.assert_close(block(x_BSD), naive_block(block, x_BSD, 2), **TOLERANCE)


@torch.no_grad()
def test_top1_weight_is_the_raw_probability_and_top2_weights_sum_to_one() -> None:
    x_BSD = hidden_states(3, 5)
    logits, weights, index = moe_model("stablelm", 1).moe_blocks[0].gate(x_BSD)
    assert torch.equal(weights, logits.softmax(-1).max(-1, keepdim=True).values)
    assert weights.max() < 0.999
    assert index.shape == (3, 5, 1)
    logits, weights, index = moe_model("stablelm", 2).moe_blocks[0].gate(x_BSD)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 5))
    chosen = logits.softmax(-1).gather(-1, index)
    torch.testing.assert_close(weights[..., 0] / weights[..., 1], chosen[..., 0] / chosen[..., 1])


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_experts_implementation_is_selected_and_equal(
    family: Family, top_k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = moe_model(family, top_k)
    ids, images = torch.tensor([prompt_ids("left lung")]), pixels(1)
    eager_calls: list[int] = []
    loop = moe._loop_over_experts

    def counted(*args: Any) -> Tensor:
        eager_calls.append(1)
        return loop(*args)

    monkeypatch.setattr(moe, "_loop_over_experts", counted)
    logits = {}
    for name in IMPLEMENTATIONS:
        eager_calls.clear()
        model.set_experts_implementation({"": name})
        assert model.config._experts_implementation == name
        logits[name] = model(input_ids=ids, pixel_values=images).logits
        assert len(eager_calls) == (len(MOE_LAYERS) if name == "eager" else 0)
    # Three layers of sums in another order, logits near 10.
    for name in IMPLEMENTATIONS[1:]:
        torch.testing.assert_close(logits[name], logits["eager"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_eager_and_grouped_experts_are_equal(family: Family) -> None:
    model = moe_model(family, top_k=2)
    ids = torch.tensor([prompt_ids("is there a mass?")])
    found = []
    for name in ("eager", "grouped_mm"):
        model.set_experts_implementation({"": name})
        model.zero_grad()
        model(input_ids=ids, pixel_values=pixels(1), labels=ids).loss.backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    eager, grouped = found
    assert eager.keys() == grouped.keys()
    assert sum(".experts." in name for name in eager) == len(MOE_LAYERS) * (
        2 if family == "stablelm" else 4
    )
    for name, gradient in eager.items():
        scale = float(gradient.abs().max()) + 1e-6
        torch.testing.assert_close(grouped[name], gradient, rtol=1e-3, atol=1e-4 * scale, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_router_gets_no_gradient_while_experts_do(family: Family) -> None:
    model = moe_model(family, top_k=2)
    set_trainable(model, "phase3_moe")
    ids = torch.tensor([prompt_ids("is there a mass in the left lung?")])
    model(input_ids=ids, pixel_values=pixels(1), labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        trains = ".mlp.experts." in name or ".mlp.meta_expert." in name
        assert (parameter.grad is not None) == trains, name
        assert not trains or parameter.grad.abs().sum() > 0, name


@torch.no_grad()
def test_router_decides_in_float32_under_a_bfloat16_model() -> None:
    model = moe_model("stablelm", top_k=2).to(torch.bfloat16)
    block = model.moe_blocks[0]
    x_BSD = hidden_states(2, 3).bfloat16()
    logits, weights, _ = block.gate(x_BSD)
    layer: Any = block.gate.fc1
    expected = x_BSD.float() @ layer.weight.float().T + layer.bias.float()
    assert logits.dtype == weights.dtype == torch.float32
    torch.testing.assert_close(logits, expected)
    in_bfloat16 = torch.nn.functional.linear(x_BSD, layer.weight, layer.bias).float()
    assert not torch.equal(in_bfloat16, logits)
    assert block(x_BSD).dtype == torch.bfloat16


@pytest.mark.parametrize("depth", [1, 3])
@torch.no_grad()
def test_router_decides_in_float32_under_autocast(depth: int) -> None:
    block = moe_model("stablelm", top_k=2, router_layers=depth).moe_blocks[0]
    x_BSD = hidden_states(2, 3)
    expected = block.gate(x_BSD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = block.gate(x_BSD)
        assert block.meta_expert(x_BSD).dtype == torch.bfloat16, "autocast is on"
    for ours, plain in zip(found, expected, strict=True):
        assert ours.dtype == plain.dtype
        assert torch.equal(ours, plain)


class Products(TorchDispatchMode):
    """Notes the dtypes of what every matrix product takes."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[set[torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__.split(".")[0] in ("mm", "addmm", "bmm", "baddbmm", "_grouped_mm"):
            given = [a.dtype for a in args if isinstance(a, Tensor) and a.is_floating_point()]
            self.dtypes.append(set(given))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_experts_compute_in_bfloat16_under_autocast(
    family: Family, implementation: str, given: torch.dtype
) -> None:
    model = moe_model(family, top_k=2)
    model.set_experts_implementation({"": implementation})
    block = model.moe_blocks[0]
    experts: Any = block.experts
    x_BSD = hidden_states(2, 12).to(given).requires_grad_()
    _, weights, index = (t.detach().flatten(0, 1) for t in block.gate(x_BSD))
    noted: Any = Products()  # whose base class is not typed
    with noted:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found_TD = experts(x_BSD.flatten(0, 1), index, weights)
            assert found_TD.dtype == block.meta_expert(x_BSD).dtype == block(x_BSD).dtype
        forward = len(noted.dtypes)
        found_TD.float().square().sum().backward()
    assert found_TD.dtype == torch.bfloat16
    assert forward >= 8, "the experts' products twice, the router's and the meta expert's"
    assert len(noted.dtypes) - forward >= 4
    in_float32 = [dtypes for dtypes in noted.dtypes if dtypes != {torch.bfloat16}]
    assert in_float32 == [{torch.float32}], "the router's, and no other"
    # Weights and their gradients stay what the optimiser holds.
    assert {(p.dtype, p.grad.dtype) for p in experts.parameters()} == {(torch.float32,) * 2}
    plain_TD = experts(x_BSD.float().flatten(0, 1), index, weights)
    # Eight bits of mantissa, two products with an activation between them.
    error = (found_TD.float() - plain_TD).norm() / plain_TD.norm()
    assert error.item() < 0.02


@pytest.mark.parametrize("experts_class", [moe.GatedExperts, moe.PlainExperts])
def test_experts_of_widths_that_8_does_not_divide_train_under_autocast(experts_class: Any) -> None:
    config = moe_model("stablelm").config
    config._experts_implementation = "grouped_mm"
    config.text_config.hidden_size, config.text_config.intermediate_size = 20, 36
    experts, x_TD = experts_class(config), torch.randn(6, 20)
    chosen, weights = torch.arange(6)[:, None] % config.num_experts, torch.ones(6, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found_TD = experts(x_TD, chosen, weights)
    found_TD.sum().backward()
    assert torch.equal(found_TD, experts(x_TD, chosen, weights))
    assert all(stack.grad is not None for stack in experts.parameters())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_the_experts_of_a_token_are_summed_in_float32(implementation: str) -> None:
    experts: Any = moe_model("phi", top_k=2).to(torch.bfloat16).moe_blocks[0].experts
    experts.config._experts_implementation = implementation
    for name, stack in experts.named_parameters():
        stack.fill_(1 / 128 if name == "fc2_bias" else 0)
    experts.fc2_bias[0] = 1
    experts.fc2_bias[1] = -1
    # 1 + 1/256 rounds to 1 in bfloat16: what is left must be the third expert's.
    found = experts(
        torch.zeros(1, WIDTH, dtype=torch.bfloat16),
        torch.tensor([[0, 2, 1]]),
        torch.tensor([[1.0, 0.5, 1.0]]),
    )
    assert found.float().unique().tolist() == [1 / 256]


@torch.no_grad()
def test_router_works_on_the_meta_device_which_knows_no_autocast() -> None:
    block = moe_model("stablelm").moe_blocks[0]
    logits, _, _ = copy.deepcopy(block.gate).to("meta")(hidden_states(2, 3).to("meta"))
    assert (logits.device.type, logits.shape) == ("meta", (2, 3, 4))


def test_fresh_experts_are_drawn_with_the_language_models_own_spread() -> None:
    block = moe_model("phi").moe_blocks[0]
    model = type(moe_model("phi"))(moe_model("phi").config)
    fresh: Any = model.moe_blocks[0].experts
    assert 0.015 < fresh.fc1_weight.std() < 0.025
    assert fresh.fc1_bias.abs().max() == 0
    assert fresh.fc1_weight.shape == block.experts.fc1_weight.shape


def test_plain_experts_keep_their_biases_two_dimensional() -> None:
    """Parameters of three dimensions only would be fused as SwiGLU experts by vLLM."""
    experts = moe_model("phi").moe_blocks[0].experts
    assert {name: p.dim() for name, p in experts.named_parameters()} == {
        "fc1_weight": 3,
        "fc1_bias": 2,
        "fc2_weight": 3,
        "fc2_bias": 2,
    }


def test_an_expert_without_tokens_has_a_zero_gradient_not_a_missing_one() -> None:
    block = moe_model("stablelm").moe_blocks[0]
    block.experts.config._experts_implementation = "eager"
    randomise(block.gate, seed=3, std=0)
    with torch.no_grad():
        block.gate.fc1.bias.copy_(torch.tensor([0.0, 9.0, 0.0, 0.0]))
    block(hidden_states(1, 4)).square().sum().backward()
    by_expert = block.experts.gate_up_proj.grad.abs().sum((1, 2))
    assert by_expert[1] > 0
    assert by_expert[[0, 2, 3]].tolist() == [0, 0, 0]
