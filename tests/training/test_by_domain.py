"""Phase 3a: each record passes its own domain's copy of the FFN, and trains no other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.model.tiny import DOMAINS, FAMILIES, MOE_LAYERS, Family
from tests.training import toy

from medmoe.data.collate import PackingCollator
from medmoe.domains import domain_index
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.model.upcycle import upcycle
from medmoe.training.by_domain import ByDomain
from medmoe.training.context import PhaseContext, RunSettings
from medmoe.training.packed import packed_once, train_packed


def alone(dense: MedMoeForConditionalGeneration) -> MedMoeForConditionalGeneration:
    """Return what phase 3a trains: domain experts without router's choice and meta expert."""
    return upcycle(dense, moe_layers=MOE_LAYERS, domains=DOMAINS, meta_expert=False)


def context_of(model: Any, *modalities: str) -> tuple[PhaseContext, torch.Tensor]:
    """Return a context of phase 3a on the records of some modalities, and each image's expert."""
    records = [r for r in toy.phantom_records() if r.image.modality in modalities]
    context = toy.context(model, 3, records, "phase3_experts")
    images = {record.image.id: record.image for record in records}
    experts = [domain_index(images[name].modality) for name in context.rows]
    return context, torch.tensor(experts)


def batch_of(context: PhaseContext, experts: torch.Tensor | None) -> dict[str, Any]:
    samples = packed_once(context.records, context.rows, context.tokenizer)
    pad = context.processor.tokenizer.pad_token_id
    return PackingCollator(context.features, pad, experts)(samples)


@pytest.mark.parametrize("family", FAMILIES)
def test_before_training_every_domain_has_the_dense_models_function(family: Family) -> None:
    dense = toy.dense(family)
    context, experts = context_of(dense, *DOMAINS)
    assert set(experts.tolist()) == {0, 1, 2, 3}
    wrapped = ByDomain(alone(dense))
    with torch.no_grad():
        wanted = dense(**batch_of(context, None)).logits
        found = wrapped(**batch_of(context, experts)).logits
    # The experts' product is taken over other groups of tokens.
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_an_expert_gets_the_gradient_of_its_own_domains_records_and_no_other() -> None:
    dense = toy.dense()
    moe = alone(dense)
    context, experts = context_of(moe, "mri")
    ByDomain(moe)(**batch_of(context, experts)).loss.backward()
    dense(**batch_of(context, None)).loss.backward()
    for index, block in moe.moe_blocks.items():
        gradient = block.experts.down_proj.grad
        own = dense.model.language_model.layers[index].mlp.down_proj.weight.grad
        torch.testing.assert_close(gradient[DOMAINS.index("mri")], own, rtol=1e-4, atol=1e-6)
        others = [i for i, name in enumerate(DOMAINS) if name != "mri"]
        assert gradient[others].abs().max() == 0


def test_only_the_experts_of_the_domains_in_the_data_change() -> None:
    moe = alone(toy.dense())
    before = toy.weights(moe)
    context, experts = context_of(moe, "ct", "xray")
    wrapped = ByDomain(moe)
    train_packed(context, wrapped, experts)
    after = toy.weights(moe)
    assert all(".mlp.experts." in name for name in toy.changed(before, after))
    for index in MOE_LAYERS:
        name = f"model.language_model.layers.{index}.mlp.experts.down_proj"
        moved = [not torch.equal(*pair) for pair in zip(before[name], after[name], strict=True)]
        assert moved == [True, False, False, True]


def test_layers_computed_anew_learn_the_same() -> None:
    learned = []
    for checkpointing in (False, True):
        moe = alone(toy.dense())
        context, experts = context_of(moe, *DOMAINS)
        settings = RunSettings(gradient_checkpointing=checkpointing)
        train_packed(replace(context, settings=settings), ByDomain(moe), experts)
        learned.append(toy.weights(moe))
    assert not toy.changed(*learned)


def test_released_the_models_own_router_chooses() -> None:
    moe = alone(toy.dense())
    context, experts = context_of(moe, "mri")
    with torch.no_grad():
        own = moe(**batch_of(context, None)).logits
        wrapped = ByDomain(moe)
        forced = wrapped(**batch_of(context, experts)).logits
        wrapped.release()
        again = moe(**batch_of(context, None)).logits
    assert torch.equal(own, again)
    assert not torch.equal(own, forced)
