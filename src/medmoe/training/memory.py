"""Memory of training a phase: weights, gradients, AdamW's states, activations (paper, Table 8).

    weights      all parameters · bytes of the dtype
    gradients    trained parameters · bytes of the dtype
    AdamW        trained parameters · 12 bytes beside weights of 16 bits (float32 copy and two
                 moments), 8 bytes beside float32 (two moments)
    activations  what autograd keeps for the backward pass

Activations are not a formula: the forward pass runs on fake tensors of the real shapes, and what
autograd saves is summed. With gradient checkpointing each decoder layer keeps its input only, and
the largest layer's tensors exist once, while it is computed anew. Weights may be float32 and
computed with in bfloat16 (autocast): its copies of them are kept too. Not in it: the runtime's own
memory, fragmentation, and the short-lived tensors of a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.initialization import no_init_weights

from medmoe.config.schema import PhaseName, Trains
from medmoe.model.blueprint import by_layer, dense_twin, first_layers, meta_model
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.cost.parameters import count_by_part, load_bytes
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.training.lora import NF4_BYTES, frozen_matrices
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

    @classmethod
    def of(
        cls,
        phase: PhaseName,
        trained: int,
        weights: int,
        dtype: torch.dtype,
        kept: tuple[int, int] = (0, 0),
        lora_rank: int | None = None,
    ) -> TrainingMemory:
        """Return the memory of ``trained`` weights of a dtype, of ``weights`` bytes in all.

        Args:
            kept: Activations without and with gradient checkpointing.
        """
        gradients, optimizer = trained * dtype.itemsize, trained * _ADAMW_BYTES[dtype]
        return cls(phase, lora_rank, trained, weights, gradients, optimizer, *kept)

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
    *,
    trains: Trains = "paper",
    answers: int | None = None,
    autocast: bool = False,
    bits: int | None = None,
) -> list[TrainingMemory]:
    """Estimate the memory of a phase: full tuning first, then LoRA at each rank.

    With LoRA the activations are those of full tuning and a copy of each adapted stack of experts,
    which PEFT makes in every pass to add the adapter to it (under autocast one layer's at a time:
    kept is then only its cast); the adapters' own narrow ones are not counted.

    Args:
        config: Of the model that the phase trains: MoE for ``phase3_*``, else dense.
        phase: A phase of the whole model (not ``phase0_*`` and not ``phase2_router``).
        dtype: Of weights and gradients, and of activations without ``autocast``.
        batch: Conversations per device that are computed at once.
        context: Tokens of a conversation, image tokens included.
        lora_ranks: Ranks to estimate besides full tuning.
        answers: Positions of the whole batch that the head is run on; None runs it on all.
        autocast: Compute in bfloat16 with weights of ``dtype``.
        bits: With LoRA the decoder's matrices are held in 4 bits; None for ``dtype``.
    """
    cut, alike = first_layers(config)
    with _fake(autocast):
        short: Any = MedMoeForConditionalGeneration._from_config(cut, dtype=dtype)
        short.set_experts_implementation({"": "grouped_mm"})
        set_trainable(short.train(), phase, trains)
        layers = short.model.language_model.layers
        with _saved_by_layer(short, layers) as saved:
            _loss(short, _hidden_states(short, batch, context), answers)
    kept, checkpointed = saved.activations(layers, alike, autocast)
    model = meta_model(config)
    trained, weights = set_trainable(model, phase, trains).trainable, load_bytes(model, dtype)
    stacks = sum(p.numel() * dtype.itemsize for p in model.parameters() if _is_adapted_stack(p))
    rows = [TrainingMemory.of(phase, trained, weights, dtype, (kept, checkpointed))]
    if bits:
        held_small = sum(m.weight.numel() for m in frozen_matrices(model).values())
        weights -= round(held_small * (dtype.itemsize - NF4_BYTES))
    for rank in lora_ranks:
        adapters = adapter_parameters(model, rank)
        held = weights + adapters * dtype.itemsize
        of_layer = stacks // max(1, len(model.moe_blocks))
        copied = (kept + (of_layer if autocast else stacks), checkpointed + of_layer)
        rows.append(TrainingMemory.of(phase, adapters or trained, held, dtype, copied, rank))
    return rows


def router_memory(
    config: MedMoeConfig, dtype: torch.dtype, *, per_layer: bool = False
) -> TrainingMemory:
    """Estimate the memory of ``phase2_router``: routers in float32 beside the dense model.

    The hidden states they read are computed without gradient, so no activations are kept.

    Args:
        dtype: Of the dense model's weights.
        per_layer: One router for each MoE layer instead of one for all.
    """
    routers = count_by_part(meta_model(config))["routers"]
    trained = routers if per_layer else routers // len(config.moe_layers or [])
    weights = load_bytes(meta_model(dense_twin(config)), dtype) + trained * 4
    return TrainingMemory.of("phase2_router", trained, weights, torch.float32)


def adapter_parameters(model: MedMoeForConditionalGeneration, rank: int) -> int:
    """Return how many weights LoRA adds to a model whose trainable parts are marked.

    Each trained matrix (out, in) gets ``rank · (out + in)``, each of a stack of experts too.
    """
    total = 0
    for name, parameter in model.named_parameters():
        adapted = parameter.requires_grad and not any(part in name for part in _NO_ADAPTER)
        stack = _is_adapted_stack(parameter)
        if adapted and (stack or (parameter.dim() == 2 and "bias" not in name)):
            stacked = parameter.shape[0] if stack else 1
            total += stacked * rank * (parameter.shape[-1] + parameter.shape[-2])
    return total


def _is_adapted_stack(parameter: Tensor) -> bool:
    """Return whether a parameter is the weights of all experts of a layer, and trains."""
    return parameter.requires_grad and parameter.dim() == 3


def backbone_memory(
    phase: PhaseName,
    build: Callable[[], Any],
    inputs: Callable[[], dict[str, Tensor]],
    autocast: bool,
) -> TrainingMemory:
    """Estimate the memory of ``phase0_*``: all of a backbone in float32.

    Args:
        build: Makes the backbone, an encoder or a causal language model.
        inputs: Makes a batch; with ``labels`` where the backbone computes a loss itself.
        autocast: Compute in bfloat16.
    """
    with _fake(autocast):
        model = build().train()
        base = getattr(model, "base_model", model)
        inner = getattr(base, "encoder", base)
        layers = inner.layers if hasattr(inner, "layers") else inner.blocks
        with _saved_by_layer(model, layers) as saved:
            model(**inputs())
    count = sum(parameter.numel() for parameter in model.parameters())
    kept = saved.activations(layers, range(len(layers)), autocast)
    return TrainingMemory.of(phase, count, 4 * count, torch.float32, kept)


def _hidden_states(model: Any, batch: int, context: int) -> Tensor:
    """Return the states (B, S, D) of images that are encoded, and packed questions behind them."""
    inner, patches = model.model, model.config.image_seq_length
    projector = inner.multi_modal_projector
    image = projector.project(
        torch.empty(batch, patches, projector.linear_1.in_features, dtype=model.dtype)
    )
    embeds = inner.get_input_embeddings()(torch.zeros(batch, context, dtype=torch.int64))
    place = (torch.arange(context) < patches)[None, :, None].expand_as(embeds)
    embeds = embeds.masked_scatter(place, image.to(embeds.dtype))
    mask = torch.ones(batch, 1, context, context, dtype=torch.bool)
    out = inner.language_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
    states: Tensor = out.last_hidden_state
    return states


def _loss(model: Any, hidden: Tensor, answers: int | None) -> None:
    """Compute the loss on all positions, or on so many of them."""
    vocabulary = model.config.text_config.vocab_size
    if answers is None:
        labels = torch.zeros(hidden.shape[:2], dtype=torch.int64)
        model.loss_function(model.lm_head(hidden), labels, vocab_size=vocabulary)
        return
    # Chosen by number: where labels are is data, which fake tensors have none of.
    chosen = hidden.flatten(0, 1)[torch.zeros(answers, dtype=torch.int64)]
    shifted = torch.zeros(answers, dtype=torch.int64)
    model.loss_function(
        logits=model.lm_head(chosen), labels=None, shift_labels=shifted, vocab_size=vocabulary
    )


class _GroupedProducts(TorchDispatchMode):
    """The shape of the experts' grouped product in every dtype: PyTorch knows that of bfloat16."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten._grouped_mm.default:
            rows, weights = args[:2]
            return rows.new_empty(rows.shape[0], weights.shape[-1])
        return func(*args, **(kwargs or {}))


@contextmanager
def _fake(autocast: bool) -> Iterator[None]:
    """Compute with shapes instead of numbers; SigLIP's way of drawing weights asks for numbers."""
    # Autocast keeps its copies of weights until it ends: it begins and ends with a forward pass.
    precision = torch.autocast("cpu", torch.bfloat16, enabled=autocast)
    grouped: Any = _GroupedProducts  # whose base class is not typed
    with FakeTensorMode(), grouped(), no_init_weights(), precision:
        yield


@dataclass(slots=True)
class _Saved:
    """Bytes that autograd saves: in all, within each layer, and one layer's input."""

    total: int = 0
    input_bytes: int = 0
    layers: list[int] = field(default_factory=list)

    def activations(
        self, layers: Sequence[nn.Module], alike: Sequence[int], autocast: bool
    ) -> tuple[int, int]:
        """Return the bytes without and with gradient checkpointing, a layer for each of alike."""
        outside = self.total - sum(self.layers)
        # Until a forward pass ends autocast holds its copies of all trained matrices.
        copied = sum(_copied(layers[index]) for index in alike) * autocast
        again = max(*self.layers, copied)
        kept = outside + sum(self.layers[index] for index in alike)
        return kept, outside + len(alike) * self.input_bytes + again


@contextmanager
def _saved_by_layer(model: nn.Module, layers: Sequence[nn.Module]) -> Iterator[_Saved]:
    """Sum the bytes of tensors that autograd saves, each once; weights are not counted."""
    known = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    saved, alive = _Saved(), []

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            known.add(storage._cdata)
            alive.append(storage)  # a freed address could be given out again
            saved.total += storage.nbytes()
        return tensor

    def enter(layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        saved.input_bytes = (args[0] if args else kwargs["hidden_states"]).nbytes

    with (
        torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
        by_layer(layers, lambda: saved.total) as saved.layers,
        layers[0].register_forward_pre_hook(enter, with_kwargs=True),
    ):
        yield saved


def _copied(layer: nn.Module) -> int:
    """Return the bytes of the copies in bfloat16 that autocast keeps of a layer's weights."""
    linear = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    trained = [p for module in linear for p in module.parameters() if p.requires_grad]
    return sum(p.numel() for p in trained) * torch.bfloat16.itemsize
