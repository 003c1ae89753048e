"""Record what every router decides: a context manager around any use of a Med-MoE model.

The raw material of the paper's figures 4 and 5. Forward hooks, because transformers' own recording
(`_can_record_outputs`) returns nothing on Llava subclasses. It changes no output and works under
``forward`` and ``generate``, one batch after another. It computes no statistics beyond sums: see
`medmoe.routing.statistics`.

Taking part in a step costs next to nothing: what the routers gave is set aside, and sorted out when
new rows begin or the trace is read.

Shapes: B batch, S sequence, T recorded tokens, E experts, K chosen per token, R rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import Cache

from medmoe.errors import DataError, MedMoeError
from medmoe.model.moe import MoeBlock
from medmoe.routing.hooks import blocks_of, hooked

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: What a token is, by the index that `RoutingTrace.kinds` gives; -1 where nothing tells.
KINDS = ("image", "question", "answer")
IMAGE, QUESTION, ANSWER, UNKNOWN = 0, 1, 2, -1


class RoutingTrace:
    """The routers' decisions on all tokens that are not padding, layer by layer.

    A row is one sequence of a batch. Rows are numbered on from batch to batch, so with one image
    per row the row is the image; the steps of one ``generate`` belong to the rows of its prompt
    (with ``use_cache=False`` each step is a forward pass of its own and starts new rows). Under
    beam search each beam is a row, and counts all tokens that were tried in its place. Tokens that
    ``generate`` feeds to a row whose answer has ended (by the ids of the model's generation config)
    do not count.

    Attributes:
        token_mask: Set it before a forward pass, (B, S) boolean, to say yourself which tokens
            count, e.g. with a 4-D attention mask (where all tokens count otherwise) or for image
            tokens only. It stays until changed; None goes back to the attention mask. Tokens that
            ``generate`` makes are not counted while it is set.
    """

    def __init__(
        self,
        blocks: Mapping[int, MoeBlock],
        stop_ids: Sequence[int],
        image_id: int | None = None,
    ) -> None:
        self.token_mask: Tensor | None = None
        self._image_id = image_id
        none = torch.zeros(0, dtype=torch.long)
        self._tokens = [[none], [none]]  # row and kind, the same for all layers
        self._layers: dict[int, list[list[Tensor]]] = {}  # logits, weights and chosen experts
        for layer, block in blocks.items():
            logits, chosen = torch.zeros(0, block.experts.num_experts), (0, block.gate.top_k)
            self._layers[layer] = [[logits], [torch.zeros(chosen)], [none.view(chosen)]]
        self._stop_ids = torch.tensor(stop_ids, dtype=torch.long)
        self._call: _Call | None = None
        self._pending: list[_Call] = []  # whose tokens are not sorted out yet
        self._num_rows = 0
        self._live_B = torch.zeros(0, dtype=torch.bool)  # rows of the last batch not ended yet
        self._cache: Any = None  # that the rows of the last batch live in

    @property
    def layers(self) -> list[int]:
        """Decoder layer indices of the MoE layers, in order."""
        return list(self._layers)

    @property
    def rows(self) -> Ints:
        """Row of each recorded token (T,); the same for all layers."""
        return self._sorted(self._tokens, 0).numpy()

    @property
    def kinds(self) -> Ints:
        """Kind of each recorded token (T,), an index of `KINDS`; the same for all layers.

        An answer is what follows one token at a time after a prompt with a cache, or what the
        ``labels`` of a training pass hold; without a cache, steps of ``generate`` are new prompts
        and all words are taken for the question. -1: embeddings were given, not ids.
        """
        return self._sorted(self._tokens, 1).numpy()

    def logits(self, layer: int) -> Floats:
        """Return the router logits (T, E) of a layer."""
        return self._given(layer, 0).double().numpy()

    def probabilities(self, layer: int) -> Floats:
        """Return the router probabilities (T, E) of a layer: the float32 softmax of its logits."""
        return self._given(layer, 0).softmax(-1).double().numpy()

    def experts(self, layer: int) -> Ints:
        """Return the chosen experts (T, K) of a layer, most probable first."""
        return self._given(layer, 2).numpy()

    def weights(self, layer: int) -> Floats:
        """Return the weights g (T, K) of the chosen experts of a layer, as the block used them."""
        return self._given(layer, 1).double().numpy()

    def _given(self, layer: int, place: int) -> Tensor:
        """Return what a layer's router gave to all tokens: logits, weights or chosen experts."""
        if layer not in self._layers:
            raise DataError(f"layer {layer} is no MoE layer of this model; choose of {self.layers}")
        return self._sorted(self._layers[layer], place)

    def _sorted(self, kept: list[list[Tensor]], place: int) -> Tensor:
        """Return one of the columns (T, …) that are kept, after taking in what was set aside."""
        calls, self._pending = self._pending, []
        if calls:
            # Call by call: a prompt's tokens row by row, then those of each step.
            counted_T = _joined([call.counted_BS for call in calls])
            new: dict[int, list[tuple[Tensor, ...]]]
            new = {-1: [(call.rows_BS, call.kinds_BS) for call in calls]}
            new |= {layer: [call.given[layer] for call in calls] for layer in self._layers}
            for layer, parts in new.items():
                of_layer = self._layers.get(layer, self._tokens)
                for values, column in zip(of_layer, zip(*parts, strict=True), strict=True):
                    values.append(_joined(column).to(values[0].dtype).cpu()[counted_T])
        return torch.cat(kept[place])

    def _begin(self, inputs: Mapping[str, Any]) -> None:
        """Note a call of the outer model, before it runs and the cache grows."""
        # By what it is: releases of transformers name this input differently.
        cache = next((value for value in inputs.values() if isinstance(value, Cache)), None)
        cached = 0 if cache is None else cache.get_seq_length()
        known = self._cache is None or cache is self._cache
        self._call = _Call(inputs, cache, goes_on=known and cached > 0)

    def _record(self, layer: int, given: tuple[Tensor, Tensor, Tensor]) -> None:
        """Set aside the decisions of one layer's router."""
        call = self._call
        if call is None:
            raise MedMoeError(
                f"the router of layer {layer} ran outside the recorded model; "
                "give record_routing the very model object that you call"
            )
        if layer in call.given:  # gradient checkpointing runs a layer again in the backward pass
            return
        batch, length = given[0].shape[:2]
        if not call.given:
            call.counted_BS = self._settle(call, batch, length)
            call.kinds_BS = self._kinds(call, batch, length)
            rows_B = torch.arange(self._num_rows - batch, self._num_rows)
            call.rows_BS = rows_B[:, None].expand(batch, length)
        call.given[layer] = tuple(t.detach() if t.requires_grad else t for t in given)
        if len(call.given) == len(self._layers):
            self._pending.append(call)
            call.inputs, call.cache = {}, None  # only what the routers gave waits

    def _kinds(self, call: _Call, batch: int, length: int) -> Tensor:
        """Return what each token of a call is (B, S): an index of `KINDS`, or -1."""
        if call.goes_on and length == 1:
            return torch.full((batch, 1), ANSWER)
        ids, labels = call.inputs.get("input_ids"), call.inputs.get("labels")
        if not isinstance(ids, Tensor) or ids.shape != (batch, length) or self._image_id is None:
            return torch.full((batch, length), UNKNOWN)
        kinds_BS = torch.where(ids.detach().cpu() == self._image_id, IMAGE, QUESTION)
        if isinstance(labels, Tensor) and labels.shape == kinds_BS.shape:
            kinds_BS[labels.detach().cpu() >= 0] = ANSWER
        return kinds_BS

    def _settle(self, call: _Call, batch: int, length: int) -> Tensor:
        """Number the rows of a call and return which of its tokens count (B, S)."""
        goes_on = call.goes_on and batch == len(self._live_B)
        if not goes_on:
            self._sorted(self._tokens, 0)
            self._num_rows += batch
            self._live_B = torch.ones(batch, dtype=torch.bool)
        self._cache = call.cache
        if self.token_mask is not None:
            return self._own_mask(batch, length, goes_on)
        mask, ids = call.inputs.get("attention_mask"), call.inputs.get("input_ids")
        counted_BS = torch.ones(batch, length, dtype=torch.bool)
        if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] >= length:
            counted_BS = mask[:, mask.shape[1] - length :].detach().bool().cpu()
        if goes_on and length == 1 and isinstance(ids, Tensor):
            # `generate` keeps feeding rows that have ended; alone, such a row would have stopped.
            self._live_B = self._live_B & ~torch.isin(ids[:, -1].cpu(), self._stop_ids)
            counted_BS = counted_BS & self._live_B[:, None]
        return counted_BS

    def _own_mask(self, batch: int, length: int, goes_on: bool) -> Tensor:
        """Return the caller's token mask, or nothing for tokens made after the prompt."""
        assert self.token_mask is not None
        if goes_on:
            return torch.zeros(batch, length, dtype=torch.bool)
        if self.token_mask.shape != (batch, length):
            raise DataError(
                f"token_mask has shape {tuple(self.token_mask.shape)} but the model runs on "
                f"{(batch, length)} tokens; set trace.token_mask anew before each forward pass"
            )
        return self.token_mask.detach().bool().cpu()


@dataclass
class _Call:
    """One call of the outer model: its inputs, and by token what is known once a router has run."""

    inputs: Mapping[str, Any]
    cache: Any
    goes_on: bool  # with the rows of the call before
    rows_BS: Tensor = field(init=False)
    kinds_BS: Tensor = field(init=False)
    counted_BS: Tensor = field(init=False)
    given: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)  # by layer


@contextmanager
def record_routing(model: nn.Module) -> Iterator[RoutingTrace]:
    """Record the routing of everything the model does inside the ``with`` block.

    Args:
        model: The model object that is called (or whose ``generate`` is called).

    Yields:
        The trace; it can be read after the block too. The hooks are gone then, also on an error.

    Raises:
        MedMoeError: The model has no MoE layer.
    """
    blocks = blocks_of(model)
    trace = RoutingTrace(blocks, _stop_ids(model), _image_id(model))

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Binding costs more than all the rest here, and `generate` gives names only.
        if args:
            kwargs = {**inspect.signature(model.forward).bind_partial(*args).arguments, **kwargs}
        trace._begin(kwargs)

    gates = (
        block.gate.register_forward_hook(lambda _, __, out, layer=layer: trace._record(layer, out))
        for layer, block in blocks.items()
    )
    try:
        with hooked([model.register_forward_pre_hook(begin, with_kwargs=True), *gates]):
            yield trace
    finally:
        trace._call = trace._cache = None  # they hold the last inputs and the key-value cache


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Return tensors (B, S, …) as one (T, …), the tokens of each together."""
    return torch.cat([part.flatten(0, 1) for part in parts])


def _image_id(model: nn.Module) -> int | None:
    """Id of the image placeholder, None where the model has none."""
    token_id = getattr(getattr(model, "config", None), "image_token_id", None)
    return None if token_id is None else int(token_id)


def _stop_ids(model: nn.Module) -> list[int]:
    """Ids that end an answer or fill up an ended one, as the model's generation config has them."""
    config = getattr(model, "generation_config", None)
    ids: set[int] = set()
    for name in ("eos_token_id", "pad_token_id"):
        value = getattr(config, name, None)
        ids.update(value if isinstance(value, (list, tuple)) else [] if value is None else [value])
    return sorted(ids)
