"""Training estimates hold against a real step: what autograd keeps, what PEFT and AdamW hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.model.tiny import FAMILIES, IMAGE_TOKENS, Family, dense_model, moe_model, pixels
from torch import Tensor

from medmoe.config.schema import PhaseName
from medmoe.config.train_schema import LoraSpec
from medmoe.model.blueprint import dense_twin
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.training import memory
from medmoe.training.lora import attach_lora
from medmoe.training.memory import (
    adapter_parameters,
    router_memory,
    training_memory,
)
from medmoe.training.trainable import set_trainable

BATCH, CONTEXT = 3, 64
PHASES: tuple[PhaseName, ...] = ("phase1_alignment", "phase2_instruction", "phase3_moe")


def kept_by_a_real_step(model: Any) -> int:
    """Return the bytes that autograd keeps of a real forward pass with packed questions."""
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, Any] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage
        return tensor

    image = torch.full((BATCH, IMAGE_TOKENS), model.config.image_token_id)
    words = torch.full((BATCH, CONTEXT - IMAGE_TOKENS), 7)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        model(
            input_ids=torch.cat([image, words], 1),
            pixel_values=pixels(BATCH).to(model.dtype),
            attention_mask=torch.ones(BATCH, 1, CONTEXT, CONTEXT, dtype=torch.bool),
            labels=torch.cat([image, words], 1),
        )
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize("precision", ["bfloat16", "float32", "autocast"])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_what_a_real_step_keeps(
    family: Family, phase: PhaseName, precision: str
) -> None:
    autocast = precision == "autocast"
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    model = moe_model(family, 2) if phase == "phase3_moe" else dense_model(family)
    model.set_experts_implementation({"": "grouped_mm"}) if phase == "phase3_moe" else None
    set_trainable(model.to(dtype).train(), phase)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        real = kept_by_a_real_step(model)
    (row,) = training_memory(model.config, phase, dtype, BATCH, CONTEXT, autocast=autocast)
    # The mask that puts the image in its place is made in another way: some hundred bytes.
    assert row.activations == pytest.approx(real, rel=0.005)
    assert row.activations > 0


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_keep_copies_of_the_experts_and_no_more_than_is_counted(
    family: Family, autocast: bool
) -> None:
    pytest.importorskip("peft")
    model = moe_model(family, 2)
    model.set_experts_implementation({"": "grouped_mm"})
    full, lora = training_memory(
        model.config, "phase3_moe", torch.float32, BATCH, CONTEXT, (4,), autocast=autocast
    )
    attach_lora(model.train(), LoraSpec(rank=4, alpha=4), seed=0)
    set_trainable(model, "phase3_moe", "lora")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        real = kept_by_a_real_step(model)
    # Adapted matrices of a layer share their input: full tuning keeps at most a little more.
    assert full.activations < real < lora.activations
    assert real == pytest.approx(lora.activations, rel=0.05)


def test_the_head_is_counted_on_the_positions_it_is_run_on() -> None:
    config = dense_model("phi").config
    kept = [
        (row.activations, row.checkpointed)
        for answers in (8, 24)
        for row in training_memory(
            config, "phase2_instruction", torch.float32, BATCH, CONTEXT, answers=answers
        )
    ]
    # Of each position: the state that the head read, the loss's log-probabilities, label and row.
    each = 4 * 32 + 4 * config.text_config.vocab_size + 8 + 8
    assert [b - a for a, b in zip(*kept, strict=True)] == [16 * each, 16 * each]


def test_a_variant_that_trains_the_projector_keeps_all_layers() -> None:
    config = MedMoeConfig.from_dict(moe_model("phi", 1).config.to_dict() | {"moe_layers": [2]})
    paper, reference = (
        row.activations
        for trains in ("paper", "reference")
        for row in training_memory(
            config, "phase3_moe", torch.float32, BATCH, CONTEXT, trains=trains
        )
    )
    assert reference > 2 * paper


@pytest.mark.parametrize("moe_layers", [[0, 2, 4, 6], [3], [1, 2, 7]])
@pytest.mark.parametrize("phase", ["phase2_instruction", "phase3_moe"])
def test_layers_past_the_first_of_their_kind_need_not_be_run(
    moe_layers: list[int], phase: PhaseName, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = moe_model("stablelm", 1).config.to_dict()
    values["text_config"]["num_hidden_layers"] = 8
    config = MedMoeConfig.from_dict(values | {"moe_layers": moe_layers})
    short = training_memory(config, phase, torch.bfloat16, 1, 40)
    monkeypatch.setattr(memory, "first_layers", lambda config: (config, list(range(8))))
    assert training_memory(config, phase, torch.bfloat16, 1, 40) == short


def test_checkpointing_keeps_each_layers_input_and_one_layer() -> None:
    config = dense_model("phi").config
    (row,) = training_memory(config, "phase2_instruction", torch.bfloat16, 2, 64)
    inputs = 3 * 2 * 64 * 32 * 2  # layers, batch, tokens, width, bytes
    assert inputs < row.checkpointed < row.activations


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_have_as_many_weights_as_peft_gives_them(family: Family) -> None:
    peft = pytest.importorskip("peft")
    model = moe_model(family, 2)
    set_trainable(model, "phase3_moe")
    ours = adapter_parameters(model, rank=4)
    experts = {
        "stablelm": ["gate_up_proj", "down_proj"],
        "phi": ["fc1_weight", "fc2_weight"],
    }[family]
    meta = {"stablelm": "gate_proj|up_proj|down_proj", "phi": "fc1|fc2"}[family]
    adapted = peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=4,
            target_modules=rf".*mlp\.meta_expert\.({meta})",
            target_parameters=[f"mlp.experts.{name}" for name in experts],
        ),
    )
    theirs = sum(p.numel() for name, p in adapted.named_parameters() if ".lora_" in name)
    assert ours == theirs


def test_adamw_holds_two_moments_in_float32() -> None:
    model = dense_model("stablelm")
    set_trainable(model, "phase1_alignment")
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    states = [state[name] for state in optimizer.state.values() for name in state if name != "step"]
    held = sum(tensor.nbytes for tensor in states)
    (row,) = training_memory(model.config, "phase1_alignment", torch.float32, 1, 32)
    assert row.optimizer == held
    assert row.gradients == sum(p.grad.nbytes for p in trained if p.grad is not None)
    assert row.weights == sum(p.nbytes for p in model.parameters())


def test_sums_and_shards_are_of_their_parts() -> None:
    model = moe_model("phi", 1)  # of two MoE layers
    config = model.config
    full, lora = training_memory(config, "phase3_moe", torch.bfloat16, 1, 64, (2,))
    parts = full.weights + full.gradients + full.optimizer
    assert full.total == parts + full.activations
    assert full.sharded() == parts + full.checkpointed
    divided = (full.gradients + full.optimizer) // 8
    assert full.sharded(8) == full.weights + divided + full.checkpointed
    assert full.gradients == 2 * full.trained
    assert full.optimizer == 12 * full.trained
    assert (full.lora_rank, lora.lora_rank) == (None, 2)
    assert lora.weights == full.weights + 2 * lora.trained
    stacks = [p for p in model.parameters() if p.dim() == 3]
    assert lora.activations == full.activations + 2 * sum(p.numel() for p in stacks)
    assert lora.checkpointed == full.checkpointed + sum(p.numel() for p in stacks)


def test_the_router_phase_trains_one_router_beside_the_dense_model() -> None:
    model = moe_model("stablelm", 1, router_layers=2)
    row = router_memory(model.config, torch.float32)
    router = sum(p.numel() for p in model.moe_blocks[0].gate.parameters())
    dense = type(model)(dense_twin(model.config))
    assert row.trained == router
    assert row.weights == 4 * (sum(p.numel() for p in dense.parameters()) + router)
    assert row.activations == 0
    each = router_memory(model.config, torch.float32, per_layer=True)
    assert each.trained == 2 * router
