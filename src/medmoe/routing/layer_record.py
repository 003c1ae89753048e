"""What one MoE layer's router has decided so far, for `medmoe.routing.trace`.

Steps are set aside as they come and added up together: sums of each row, and single tokens if kept.

Shapes: B batch, S sequence, E experts, K chosen per token, R rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medmoe.model.moe import MoeBlock

Keep = Literal["tokens", "counts"]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_Number = TypeVar("_Number", np.int64, np.float64)


class Step(NamedTuple):
    """What one layer's router gave in one call, on the device where it ran."""

    first_row: int
    counted_BS: Tensor
    kinds_BS: Tensor
    logits_BSE: Tensor
    weights_BSK: Tensor
    index_BSK: Tensor


@dataclass
class LayerRecord:
    """What one MoE layer has decided so far: sums of each row, and single tokens if kept."""

    holds_rows: bool  # whether rows and kinds are kept here; one layer is enough
    logits: list[Tensor]
    experts: list[Tensor]
    weights: list[Tensor]
    rows: list[Tensor]
    kinds: list[Tensor]
    counts_RE: Ints
    sums_RE: Floats  # of probabilities
    tokens_R: Ints
    pending: list[Step] = field(default_factory=list)  # all of the same rows

    @classmethod
    def of(cls, block: MoeBlock, *, holds_rows: bool) -> LayerRecord:
        """Return the empty record of a block; row and kind of tokens are the same for all."""
        e, k = block.experts.num_experts, block.gate.top_k
        return cls(
            holds_rows=holds_rows,
            logits=[torch.zeros(0, e)],
            experts=[torch.zeros(0, k, dtype=torch.long)],
            weights=[torch.zeros(0, k)],
            rows=[torch.zeros(0, dtype=torch.long)],
            kinds=[torch.zeros(0, dtype=torch.long)],
            counts_RE=np.zeros((0, e), dtype=np.int64),
            sums_RE=np.zeros((0, e)),
            tokens_R=np.zeros(0, dtype=np.int64),
        )

    def add_up(self, keep: Keep) -> None:
        """Take in what was set aside, in the order of the calls."""
        if not self.pending:
            return
        steps, self.pending = self.pending, []
        logits_BSE = torch.cat([step.logits_BSE for step in steps], 1).float().cpu()
        index_BSK = torch.cat([step.index_BSK for step in steps], 1).cpu()
        counted_BS = torch.cat([step.counted_BS for step in steps], 1)
        self._sum(steps[0].first_row, counted_BS, logits_BSE, index_BSK)
        if keep != "tokens":
            return
        # Call by call: a prompt's tokens row by row, then those of each step.
        lengths = [step.counted_BS.shape[1] for step in steps]
        places_BS = torch.arange(counted_BS.numel()).view_as(counted_BS)
        places_T = _in_order(places_BS, lengths)[_in_order(counted_BS, lengths)]
        weights_BSK = torch.cat([step.weights_BSK for step in steps], 1).float().cpu()
        kept = [(self.logits, logits_BSE), (self.experts, index_BSK), (self.weights, weights_BSK)]
        if self.holds_rows:
            kinds_BS = torch.cat([step.kinds_BS for step in steps], 1)
            rows_B = torch.arange(len(counted_BS)) + steps[0].first_row
            kept += [(self.rows, rows_B[:, None].expand_as(kinds_BS)), (self.kinds, kinds_BS)]
        for values, new in kept:
            values.append(new.flatten(0, 1)[places_T])

    def _sum(
        self, first_row: int, counted_BS: Tensor, logits_BSE: Tensor, index_BSK: Tensor
    ) -> None:
        """Add one call's decisions to the sums of its rows, growing the table for new rows."""
        end = first_row + len(logits_BSE)
        new = end - len(self.tokens_R)
        self.tokens_R = _grown(self.tokens_R, new)
        self.counts_RE, self.sums_RE = _grown(self.counts_RE, new), _grown(self.sums_RE, new)
        chosen_BSE = torch.zeros_like(logits_BSE, dtype=torch.long).scatter_(-1, index_BSK, 1)
        counted_BS1 = counted_BS[..., None]
        self.tokens_R[first_row:] += counted_BS.sum(1).numpy()
        self.counts_RE[first_row:] += (chosen_BSE * counted_BS1).sum(1).numpy()
        self.sums_RE[first_row:] += (logits_BSE.softmax(-1).double() * counted_BS1).sum(1).numpy()


def _grown(table: npt.NDArray[_Number], rows: int) -> npt.NDArray[_Number]:
    """Return a table with so many rows of zeros behind it."""
    if not rows:
        return table
    return np.concatenate([table, np.zeros((rows, *table.shape[1:]), dtype=table.dtype)])


def _in_order(values_BS: Tensor, lengths: list[int]) -> Tensor:
    """Flatten (B, S, …) to (B·S, …), the tokens of each call together."""
    if len(values_BS) == 1:
        return values_BS[0]
    return torch.cat([part.flatten(0, 1) for part in values_BS.split(lengths, 1)])
