"""LoRA on the experts: what trains, what a fresh adapter changes, and what merging keeps."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from tests.model.test_upcycle import logits
from tests.model.tiny import FAMILIES, Family
from tests.training import toy

from medmoe.config.train_schema import LoraSpec
from medmoe.errors import ConfigError
from medmoe.training.lora import attach_lora, merge_lora
from medmoe.training.packed import train_packed
from medmoe.training.trainable import set_trainable

pytest.importorskip("peft", reason="peft is not installed: pip install 'medmoe[train]'")
SPEC = LoraSpec(rank=2, alpha=4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_adapter_changes_no_answer_and_only_adapters_train(family: Family) -> None:
    plain, model = toy.moe(family), toy.moe(family)
    adapted = attach_lora(model, SPEC, seed=1)
    assert torch.equal(logits(model), logits(plain))
    counts = set_trainable(model, "phase3_moe", "lora")
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names
    assert all(".lora_" in name for name in names)
    assert any(".mlp.experts." in name for name in names)
    assert any(".mlp.meta_expert." in name for name in names)
    assert counts.frozen == sum(p.numel() for p in plain.parameters())
    merge_lora(adapted)


@pytest.mark.parametrize("family", FAMILIES)
def test_trained_and_merged_it_is_an_ordinary_model_with_the_same_answers(family: Family) -> None:
    model = toy.moe(family)
    before = toy.weights(model)
    adapted = attach_lora(model, SPEC, seed=1)
    context = toy.context(model, steps=8)
    spec = context.spec.model_copy(update={"trains": "lora", "learning_rate": 2e-2})
    context = replace(context, spec=spec)
    result = train_packed(context, trained=adapted.get_base_model())
    assert result.counts.trains == "lora"
    unmerged = logits(adapted)
    merged = merge_lora(adapted)
    assert toy.weights(merged).keys() == before.keys()
    changed = toy.changed(before, toy.weights(merged))
    assert changed
    assert all(".mlp.experts." in n or ".mlp.meta_expert." in n for n in changed)
    assert any(".mlp.experts." in n for n in changed)
    # One sum of weights first, or two products: relative to the largest logit.
    assert (logits(merged) - unmerged).abs().max() / unmerged.abs().max() < 1e-5


def test_same_seed_gives_the_same_adapters() -> None:
    states = []
    for seed in (1, 1, 2):
        model = toy.moe()
        attach_lora(model, SPEC, seed)
        states.append({n: p for n, p in model.named_parameters() if "lora_A" in n})
    same, other = (
        all(torch.equal(states[0][name], states[i][name]) for name in states[0]) for i in (1, 2)
    )
    assert same
    assert not other


def test_without_peft_the_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"the package peft.* pip install 'medmoe\[train\]'"):
        attach_lora(toy.moe(), SPEC, seed=1)
