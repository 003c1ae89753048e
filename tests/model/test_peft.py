"""LoRA by PEFT attaches to the MoE model, trains, and merges without losing anything."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.model.tiny import FAMILIES, MOE_LAYERS, Family, moe_model, pixels, prompt_ids
from torch import Tensor

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'medmoe[dev]'")

ATTENTION = r".*language_model\.layers\.\d+\.self_attn\.[qkv]_proj"
PROJECTOR = r".*multi_modal_projector\.linear_[12]"
EXPERTS = {
    "stablelm": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    "phi": ["mlp.experts.fc1_weight", "mlp.experts.fc2_weight"],
}
TARGETS = ("attention_and_projector", "experts")


def adapted(family: Family, targets: str) -> Any:
    """Return a tiny MoE model with LoRA on some of its parts."""
    torch.manual_seed(0)
    chosen = (
        {"target_modules": [], "target_parameters": EXPERTS[family]}
        if targets == "experts"
        else {"target_modules": f"{ATTENTION}|{PROJECTOR}"}
    )
    return peft.get_peft_model(moe_model(family, 2), peft.LoraConfig(r=2, lora_alpha=4, **chosen))


def trained(model: Any) -> Any:
    """Take steps until both factors of every adapter have moved: the second starts at zero."""
    chosen = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(chosen, lr=0.01)
    ids = torch.tensor([prompt_ids("is there a mass in the left lung?")])
    model.train()
    for _ in range(2):
        optimiser.zero_grad()
        model(input_ids=ids, pixel_values=pixels(1), labels=ids).loss.backward()
        optimiser.step()
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    ids = torch.tensor([prompt_ids("which organ is seen?")])
    found: Tensor = model(input_ids=ids, pixel_values=pixels(1, seed=1)).logits
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_attaches_to_attention_and_projector_only(family: Family) -> None:
    model = adapted(family, "attention_and_projector")
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(".lora_" in name for name in names)
    # Two factors for three projections in each of three layers, and for the projector's two.
    assert len(names) == 2 * (3 * 3 + 2)
    assert not [name for name in names if "vision_tower" in name or ".mlp." in name]


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_attaches_to_every_expert_and_to_nothing_else(family: Family) -> None:
    model = adapted(family, "experts")
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(".mlp.experts." in name and ".lora_" in name for name in names)
    assert len(names) == 2 * 2 * len(MOE_LAYERS)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_misses_the_stacked_experts_as_the_docs_say(family: Family) -> None:
    model = peft.get_peft_model(moe_model(family), peft.LoraConfig(target_modules="all-linear"))
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert not [name for name in names if ".mlp.experts." in name]
    for part in ("vision_tower", "multi_modal_projector", ".mlp.meta_expert.", ".mlp.gate."):
        assert any(part in name for name in names), part


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_adapter_changes_nothing(family: Family, targets: str) -> None:
    assert torch.equal(logits(adapted(family, targets)), logits(moe_model(family, 2)))


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_training_moves_every_adapter_and_nothing_else(family: Family, targets: str) -> None:
    model = adapted(family, targets)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != (".lora_" in name), name


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_merged_equals_unmerged(family: Family, targets: str, implementation: str) -> None:
    """Merging into packed experts has dropped the adapters without a word in the past."""
    model = adapted(family, targets)
    model.get_base_model().set_experts_implementation({"": implementation})
    trained(model)
    adapter = logits(model)
    moved = (adapter - logits(moe_model(family, 2))).abs().max()
    merged = model.merge_and_unload()
    assert type(merged) is type(moe_model(family, 2))
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]
    # Relative to logits near 10: one sum of weights first, or two products.
    error = (logits(merged) - adapter).abs().max() / adapter.abs().max()
    assert error < 1e-5
    assert moved / adapter.abs().max() > 1e-3, "the adapter did something to lose"
