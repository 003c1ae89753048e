"""One domain expert more in a trained Med-MoE: its FFNs and its rows of the routers train alone.

First the rows, by the pictures' hidden states, beside the old rows, which stay: a token of an old
picture keeps the expert that the model chooses for it, one of a new picture goes to the new one.
Then their bias is lowered until old pictures keep their decisions. Last the FFNs, on the answers.

Shapes: B batch, S sequence, T tokens, L MoE layers, D hidden, E experts, K chosen, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.model.moe import Router
from medmoe.routing.hooks import hooked
from medmoe.training.load_balance import MoeWrapper, is_token

#: The bias of a row that no token chooses.
NEVER = -1e9
_ROUNDS = 12


class RowTraining(nn.Module):
    """The new rows of the routers with their loss; the old rows are read and stay.

    Args:
        gates: Of each MoE layer, without the new row.
    """

    def __init__(self, gates: Sequence[Router]) -> None:
        super().__init__()
        self.gates, self._experts = nn.ModuleList(copy.deepcopy(list(gates))), gates[0].num_experts
        width = gates[0].get_parameter("fc1.weight").shape[1]
        zeros = {"weight": torch.zeros(len(gates), width), "bias": torch.zeros(len(gates))}
        self.router = nn.ParameterDict({name: nn.Parameter(t) for name, t in zeros.items()})

    def forward(self, states: Tensor, new: Tensor) -> dict[str, Tensor]:
        """Return the mean loss of states (B, L, T, D) float32, of new pictures or not (B,) bool."""
        gates: list[Any] = list(self.gates)
        read = [
            (gate.hidden(x), gate.logits(x))
            for gate, x in zip(gates, states.unbind(1), strict=True)
        ]
        hidden_BLTD, old_BLTE = (
            torch.stack(part, dim=1).detach() for part in zip(*read, strict=True)
        )
        old_BLTE = old_BLTE[..., : self._experts]
        own_BLT = torch.einsum("bltd,ld->blt", hidden_BLTD, self.router["weight"])
        own_BLT = own_BLT + self.router["bias"][:, None]
        logits = torch.cat([old_BLTE, own_BLT[..., None]], dim=-1)
        target = torch.where(new[:, None, None], self._experts, old_BLTE.argmax(dim=-1))
        return {"loss": functional.cross_entropy(logits.flatten(0, 2), target.flatten())}


class NewExpert(MoeWrapper):
    """A trained model with one expert more, which stands apart: nothing of the model trains.

    The model itself changes: its routers get a row, and it runs with the expert from now on.

    Args:
        name: Its domain.
        ffns: What it starts as, by MoE layer.
    """

    def __init__(
        self, model: MedMoeForConditionalGeneration, name: str, ffns: Mapping[int, nn.Module]
    ) -> None:
        super().__init__(model)
        config, self.index = model.config, model.config.num_experts
        domains = [*(config.domains or []), name]
        config.expert_rows = {n: config.rows_of(n) for n in domains[:-1]} | {name: domains}
        config.domains = domains
        self.new_experts = nn.ModuleDict({str(layer): ffn for layer, ffn in ffns.items()})
        self._given: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        for layer, block in model.moe_blocks.items():
            old, block.gate = block.gate, Router(config).to(model.device)
            block.gate.picture, block.gate.decides = old.picture, old.decides
            state = old.state_dict()
            for kind, fill in (("weight", 0.0), ("bias", NEVER)):
                last = state[f"fc{old.depth}.{kind}"]
                parts = [last[: self.index], torch.full_like(last[:1], fill), last[self.index :]]
                state[f"fc{old.depth}.{kind}"] = torch.cat(parts)
            block.gate.load_state_dict(state)
            block.experts.register_forward_pre_hook(self._without(str(layer)))
            block.experts.register_forward_hook(self._with(str(layer)))

    def forward(self, *, answers_only: bool = False, **inputs: Any) -> Any:
        """Return the model's output, with the head on answers only where asked for."""
        return self.model(answers_only=answers_only, **inputs)

    def rows(self) -> list[dict[str, Tensor]]:
        """Return the new row of each MoE layer, ``weight`` (D,) and ``bias`` (), to be changed."""
        gates = [block.gate for block in self.model.moe_blocks.values()]
        return [
            {
                k: g.get_parameter(f"fc{g.depth}.{k}").detach()[self.index]
                for k in ("weight", "bias")
            }
            for g in gates
        ]

    def _without(self, layer: str) -> Any:
        def before(_: nn.Module, args: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
            x_TD, index_TK, weights_TK = args
            own_TK = index_TK == self.index
            self._given[layer] = x_TD, own_TK, weights_TK
            return x_TD, index_TK.masked_fill(own_TK, 0), weights_TK.masked_fill(own_TK, 0)

        return before

    def _with(self, layer: str) -> Any:
        def after(_: nn.Module, args: Any, output_TD: Tensor) -> Tensor:
            x_TD, own_TK, weights_TK = self._given.pop(layer)
            tokens = own_TK.any(dim=1).nonzero()[:, 0]
            # Where no token chose it the sum over none still belongs to the graph.
            weights_T = weights_TK.masked_fill(~own_TK, 0).sum(dim=1)[tokens]
            y = self.new_experts[layer](x_TD[tokens]) * weights_T[:, None]
            return output_TD.index_add(0, tokens, y.to(output_TD.dtype))

        return after


@torch.no_grad()
def calibrate(
    trained: NewExpert, batches: Sequence[Mapping[str, Any]], keep: float
) -> dict[str, Any]:
    """Lower the bias of a new expert's rows until old pictures keep their decisions.

    Args:
        batches: Of old pictures that taught the rows nothing.
        keep: Share of the decisions, of a token in a layer, that must be what they were.

    Returns:
        ``decisions`` and how many of them are ``kept``; ``rows`` of packed questions, how many have
        ``all_kept``, and the largest ``difference`` of their answers' probabilities.
    """
    rows, share = trained.rows(), 1 - keep
    # One picture's decision holds in all layers.
    groups = [rows] if trained.config.routing == "image" else [[row] for row in rows]
    for _ in range(_ROUNDS):
        told, margins = kept(trained, batches)
        if told["kept"] >= keep * told["decisions"]:
            return told
        share *= 0.7
        for group, margin in zip(groups, margins, strict=False):
            # By how much all but this share of the tokens are nearer to another row.
            spare = margin.sort().values[int(share * len(margin))] - 1e-4
            for row in group:
                row["bias"] += spare.clamp(max=0)
    for row in rows:  # nothing less kept them
        row["bias"].fill_(NEVER)
    return kept(trained, batches)[0]


@torch.no_grad()
def kept(
    trained: NewExpert, batches: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], list[Tensor]]:
    """Return what `calibrate` does, and by layer how far the new row is from each token."""
    told: dict[str, Any] = dict.fromkeys(("decisions", "kept", "rows", "all_kept", "difference"), 0)
    margins: list[list[Tensor]] = [[] for _ in trained.model.moe_blocks]
    rows = trained.rows()
    for batch in batches:
        inputs = {k: v.to(trained.model.device) for k, v in batch.items() if isinstance(v, Tensor)}
        real_BS, biases = is_token(inputs["attention_mask"]), [row["bias"].clone() for row in rows]
        for row in rows:
            row["bias"].fill_(NEVER)
        before, old = _routed(trained, inputs)
        for row, bias in zip(rows, biases, strict=True):
            row["bias"].copy_(bias)
        after, new = _routed(trained, inputs)
        pairs = zip(before, after, strict=True)
        same_LBS = torch.stack([(a[1].sort()[0] == b[1].sort()[0]).all(-1) for a, b in pairs])
        rows_B = (same_LBS | ~real_BS).all(0).all(1)
        told["decisions"] += int(real_BS.sum()) * len(before)
        told["kept"] += int((same_LBS & real_BS).sum())
        told["rows"] += len(rows_B)
        told["all_kept"] += int(rows_B.sum())
        difference = (old - new)[rows_B].abs().max().item() if rows_B.any() else 0.0
        told["difference"] = max(told["difference"], difference)
        for margin, (logits_BSE, _) in zip(margins, after, strict=True):
            others = logits_BSE.clone()
            others[..., trained.index] = -torch.inf
            least_BS = others.topk(trained.config.num_experts_per_tok).values[..., -1]
            margin.append((least_BS - logits_BSE[..., trained.index])[real_BS])
    return told, [torch.cat(parts) for parts in margins]


def _routed(
    trained: NewExpert, inputs: Mapping[str, Tensor]
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Return by layer the router's logits and choice, and the next tokens' probabilities (B, V)."""
    seen: list[tuple[Tensor, Tensor]] = []
    with hooked(
        block.gate.register_forward_hook(lambda _, __, out: seen.append((out[0], out[2])))
        for block in trained.model.moe_blocks.values()
    ):
        logits = trained(**inputs).logits
    places = (inputs["labels"] >= 0).int().argmax(dim=1) - 1  # what the first answer is read from
    return seen, logits[torch.arange(len(places)), places.clamp(min=0)].float().softmax(-1)
