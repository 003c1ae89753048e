"""LoRA on the experts: what trains, what a fresh adapter changes, and what merging keeps."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.model.test_upcycle import logits
from tests.model.tiny import FAMILIES, LAYERS, Family, dense_model
from tests.training import toy
from torch import nn

from medmoe.config.schema import PhaseName
from medmoe.config.train_schema import LoraSpec
from medmoe.errors import ConfigError
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.training.lora import (
    NF4_BYTES,
    attach_lora,
    hold_in_4_bits,
    merge_lora,
    release_from_4_bits,
)
from medmoe.training.packed import train_packed
from medmoe.training.saving.state import frozen_hash
from medmoe.training.trainable import set_trainable

pytest.importorskip("peft", reason="peft is not installed: pip install 'medmoe[train]'")
NO_BITSANDBYTES = "bitsandbytes is not installed: pip install 'medmoe[qlora]'"
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


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dense_model_has_adapters_on_its_projector_and_its_decoder_alone(family: Family) -> None:
    plain, model = toy.dense(family), toy.dense(family)
    attach_lora(model, SPEC, seed=1)
    assert torch.equal(logits(model), logits(plain))
    set_trainable(model, "phase2_instruction", "lora")
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    linear = [n for n, m in plain.named_modules() if isinstance(m, nn.Linear)]
    adapted = [n for n in linear if "projector" in n or ".language_model.layers." in n]
    assert names == {f"{n}.lora_{factor}.default.weight" for n in adapted for factor in "AB"}
    assert len(adapted) == 2 + LAYERS * (7 if family == "stablelm" else 6)


def trained_in_4_bits(model: MedMoeForConditionalGeneration) -> Any:
    """Return the PEFT model around a model that was held in 4 bits while its adapters trained."""
    phase: PhaseName = "phase3_moe" if model.config.moe_layers else "phase2_instruction"
    held = hold_in_4_bits(model)
    layers = model.model.language_model.layers
    small = [p for p in layers.parameters() if p.dtype == torch.uint8]
    assert 2 * sum(p.numel() for p in small) == held > 0
    adapted = attach_lora(model, SPEC, seed=1)
    context = toy.context(model, steps=8, phase=phase)
    spec = context.spec.model_copy(update={"trains": "lora", "learning_rate": 2e-2})
    result = train_packed(replace(context, spec=spec), trained=model)
    assert result.counts.trains == "lora"
    assert result.curve[-1][1] < result.curve[0][1]
    return adapted


@pytest.mark.parametrize("make", [toy.dense, toy.moe])
@pytest.mark.parametrize("family", FAMILIES)
def test_trained_on_4_bits_it_answers_alike_when_they_are_released_and_merged(
    family: Family, make: Callable[[Family], MedMoeForConditionalGeneration]
) -> None:
    pytest.importorskip("bitsandbytes", reason=NO_BITSANDBYTES)
    model = make(family)
    before = toy.weights(model)
    adapted = trained_in_4_bits(model)
    expected = logits(adapted)
    release_from_4_bits(adapted)
    # The same values: only the order of a product's sums may be another.
    assert (logits(adapted) - expected).abs().max() / expected.abs().max() < 1e-5
    merged = merge_lora(adapted)
    assert (logits(merged) - expected).abs().max() / expected.abs().max() < 1e-5
    after = toy.weights(merged)
    assert {name: w.dtype for name, w in after.items()} == {n: w.dtype for n, w in before.items()}
    changed = toy.changed(before, after)
    assert any(".self_attn." in name for name in changed)
    for part in ("vision_tower.", "lm_head.", "embed_tokens.", ".mlp.gate.", "norm"):
        assert not [name for name in changed if part in name], part


def test_a_matrix_of_4_bits_takes_as_many_bytes_as_the_plan_counts() -> None:
    pytest.importorskip("bitsandbytes", reason=NO_BITSANDBYTES)
    model = dense_model("phi", width=256)
    hold_in_4_bits(model)
    small: Any = model.model.language_model.layers[0].self_attn.q_proj.weight
    scales = small.quant_state
    held = sum(part.nbytes for part in (small.data, scales.absmax, scales.state2.absmax))
    assert held == 256 * 256 * NF4_BYTES


def test_routers_and_stacked_experts_are_not_held_in_4_bits() -> None:
    pytest.importorskip("bitsandbytes", reason=NO_BITSANDBYTES)
    model = toy.moe()
    hold_in_4_bits(model)
    small = {name for name, p in model.named_parameters() if p.dtype == torch.uint8}
    assert any(".meta_expert." in name for name in small)
    assert any(".self_attn." in name for name in small)
    assert not [name for name in small if ".mlp.gate." in name or ".experts." in name]


def test_measuring_on_the_way_leaves_the_matrices_of_4_bits_as_they_are() -> None:
    """bitsandbytes lays them out anew for some processors, in a pass without gradients."""
    pytest.importorskip("bitsandbytes", reason=NO_BITSANDBYTES)
    model = toy.dense()
    hold_in_4_bits(model)
    for module in model.modules():
        assert not getattr(module, "support_avx512bf16_for_cpu", False)
    before = frozen_hash(model)
    logits(model)
    assert frozen_hash(model) == before


def test_without_bitsandbytes_the_line_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    with pytest.raises(ConfigError, match=r"package bitsandbytes.* pip install 'medmoe\[qlora\]'"):
        hold_in_4_bits(toy.dense())


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
