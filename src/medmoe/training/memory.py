"""Memory of training a phase: weights, gradients, AdamW's states, activations (paper, Table 8).

    weights      all parameters · bytes of the dtype
    gradients    trained parameters · bytes of the dtype
    AdamW        trained parameters · 12 bytes in mixed precision (float32 copy and two moments),
                 8 bytes in float32 (two moments)
    activations  what autograd keeps for the backward pass

Activations are not a formula: the forward pass runs on fake tensors of the real shapes, and what
autograd saves is summed. With gradient checkpointing each decoder layer keeps its input only, and
the largest layer's tensors exist once, while it is computed anew. Not in it: the runtime's own
memory, fragmentation, and the short-lived tensors of a pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from medmoe.config.schema import PhaseName
from medmoe.model.blueprint import dense_twin, first_layers, meta_model
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.cost.memory import load_bytes
from medmoe.model.cost.parameters import count_by_part
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.training.trainable import set_trainable

#: Float32 copy and two float32 moments per trained weight; in float32 the weight is its own copy.
_ADAMW_BYTES = {torch.bfloat16: 12, torch.float16: 12, torch.float32: 8}
#: Embeddings and head are looked up and shared: adapters leave them alone.
_NO_ADAPTER = ("embed_tokens", "lm_head")


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Bytes of training one phase on one device.

    Attributes:
        lora_rank: Rank of the adapters that train in place of the phase's matrices; None = full.
        trained: How many weights train.
        activations: Without gradient checkpointing.
        checkpointed: Activations with gradient checkpointing.
    """

    phase: PhaseName
    lora_rank: int | None
    trained: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    checkpointed: int

    @property
    def total(self) -> int:
        """All of it, without gradient checkpointing."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def sharded(self, devices: int = 1) -> int:
        """Return the bytes on each of several devices under ZeRO-2, with checkpointing.

        Gradients and AdamW's states are divided; weights and activations are not.
        """
        divided = (self.gradients + self.optimizer) // devices
        return self.weights + divided + self.checkpointed


def training_memory(
    config: MedMoeConfig,
    phase: PhaseName,
    dtype: torch.dtype,
    batch: int,
    context: int,
    lora_ranks: tuple[int, ...] = (),
) -> list[TrainingMemory]:
    """Estimate the memory of a phase: full tuning first, then LoRA at each rank.

    With LoRA the activations are those of full tuning, which are an upper bound but for the
    adapters' own narrow ones.

    Args:
        config: Of the model that the phase trains: MoE for ``phase3_moe``, else dense.
        phase: A phase of the whole model (not ``phase0_*`` and not ``phase2_router``).
        dtype: Of weights, gradients and activations.
        batch: Conversations per device and step.
        context: Tokens of a conversation, image tokens included.
        lora_ranks: Ranks to estimate besides full tuning.
    """
    model = meta_model(config)
    trained, weights = set_trainable(model, phase).trainable, load_bytes(model, dtype)
    counts: list[tuple[int | None, int, int]] = [(None, trained, weights)]
    for rank in lora_ranks:
        adapters = adapter_parameters(model, rank)
        counts.append((rank, adapters, weights + adapters * dtype.itemsize))
    kept, checkpointed = kept_for_backward(config, phase, dtype, batch, context)
    return [
        TrainingMemory(
            phase=phase,
            lora_rank=rank,
            trained=count,
            weights=held,
            gradients=count * dtype.itemsize,
            optimizer=count * _ADAMW_BYTES[dtype],
            activations=kept,
            checkpointed=checkpointed,
        )
        for rank, count, held in counts
    ]


def router_memory(config: MedMoeConfig, dtype: torch.dtype) -> TrainingMemory:
    """Estimate the memory of ``phase2_router``: one router in float32 beside the dense model.

    The hidden states it reads are computed without gradient, so no activations are kept.
    """
    counts = count_by_part(meta_model(config))
    trained = counts["routers"] // len(config.moe_layers or [])
    return TrainingMemory(
        phase="phase2_router",
        lora_rank=None,
        trained=trained,
        weights=load_bytes(meta_model(dense_twin(config)), dtype) + trained * 4,
        gradients=trained * 4,
        optimizer=trained * _ADAMW_BYTES[torch.float32],
        activations=0,
        checkpointed=0,
    )


def adapter_parameters(model: MedMoeForConditionalGeneration, rank: int) -> int:
    """Return how many weights LoRA adds to a model whose trainable parts are marked.

    Each trained matrix (out, in) gets ``rank · (out + in)``, each of a stack of experts too.
    """
    total = 0
    for name, parameter in model.named_parameters():
        adapted = parameter.requires_grad and not any(part in name for part in _NO_ADAPTER)
        if adapted and (parameter.dim() == 3 or (parameter.dim() == 2 and "bias" not in name)):
            stacked = parameter.shape[0] if parameter.dim() == 3 else 1
            total += stacked * rank * (parameter.shape[-1] + parameter.shape[-2])
    return total


def kept_for_backward(
    config: MedMoeConfig, phase: PhaseName, dtype: torch.dtype, batch: int, context: int
) -> tuple[int, int]:
    """Return the bytes that autograd keeps for a step, without and with gradient checkpointing."""
    cut, alike = first_layers(config)
    text, patches = config.text_config, config.image_seq_length
    layers: list[int] = []
    with FakeTensorMode():
        # In bfloat16 whatever the dtype: the grouped product of experts has no other fake form.
        model: Any = MedMoeForConditionalGeneration._from_config(cut, dtype=torch.bfloat16)
        model.set_experts_implementation({"": "grouped_mm"})
        set_trainable(model.train(), phase)
        inner = model.model
        with _saved_bytes(model, dtype) as saved:
            for layer in inner.language_model.layers:
                layer.register_forward_pre_hook(lambda *_: layers.append(-saved[0]))
                layer.register_forward_hook(lambda *_: layers.append(layers.pop() + saved[0]))
            projector = inner.multi_modal_projector
            vision = torch.empty(batch, patches, projector.linear_1.in_features)
            image = projector(vision.to(model.dtype))
            ids = torch.zeros(batch, context - patches, dtype=torch.int64)
            embeds = torch.cat([image, inner.get_input_embeddings()(ids)], dim=1)
            mask = torch.ones(batch, 1, context, context, dtype=torch.bool)  # packed questions
            out = inner.language_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
            logits = model.lm_head(out.last_hidden_state)
            labels = torch.zeros(batch, context, dtype=torch.int64)
            model.loss_function(logits, labels, vocab_size=text.vocab_size)
    outside, inside = saved[0] - sum(layers), sum(layers[index] for index in alike)
    inputs = len(alike) * batch * context * text.hidden_size * dtype.itemsize
    return outside + inside, outside + inputs + max(layers)


@contextmanager
def _saved_bytes(model: Any, dtype: torch.dtype) -> Iterator[list[int]]:
    """Sum, in the list's one element, the bytes of tensors that autograd saves, each once."""
    known = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    total, alive = [0], []

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            known.add(storage._cdata)
            alive.append(storage)  # a freed address could be given out again
            wider = dtype.itemsize // 2 if tensor.dtype == torch.bfloat16 else 1
            total[0] += storage.nbytes() * wider
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        yield total
