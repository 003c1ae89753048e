"""One domain expert more in a trained Med-MoE: its FFNs and its rows of the routers train alone.

First the rows, by the pictures' hidden states, beside the old rows, which stay: a token of an old
picture keeps the expert that the model chooses for it, one of a new picture goes to the new one.
Then their bias is lowered until old pictures keep their decisions. Last the FFNs, on the answers.

Shapes: B batch, S sequence, T tokens, L MoE layers, D hidden, E experts, K chosen, N pictures.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medmoe.backbones.ffn import ffn_family
from medmoe.errors import ConfigError
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.model.moe import MoeBlock, Router
from medmoe.routing.hooks import hooked
from medmoe.training.load_balance import MoeWrapper, is_token

#: The bias of a row that no token chooses.
_NEVER = -1e9
_ROUNDS = 12


def grow(model: MedMoeForConditionalGeneration, name: str) -> MedMoeForConditionalGeneration:
    """Return a model with one expert more, of zeros, whose rows no token chooses yet."""
    config, domains = model.config, list(model.config.domains or [])
    spans = {n: config.rows_of(n) for n in domains} | {name: [*domains, name]}
    values = config.to_dict() | {"domains": [*domains, name], "expert_rows": spans}
    with torch.random.fork_rng():  # every weight is overwritten
        grown = MedMoeForConditionalGeneration(MedMoeConfig.from_dict(values))
    state, place = dict(model.state_dict()), len(domains)
    for key, like in grown.state_dict().items():
        old = state[key]
        if old.shape != like.shape:
            fill = _NEVER if key.endswith(".bias") else 0.0
            fill = 0.0 if ".experts." in key else fill
            new = torch.full_like(old[:1], fill)
            state[key] = torch.cat([old[:place], new, old[place:]])
    grown.load_state_dict(state, strict=True)
    grown.generation_config = copy.deepcopy(model.generation_config)
    grown.eval()
    return grown


def first_ffns(
    model: MedMoeForConditionalGeneration, dense: MedMoeForConditionalGeneration | None
) -> dict[int, nn.Module]:
    """Return by layer the FFN that a new expert starts as: a copy of the meta expert, or phase 2's.

    Raises:
        ConfigError: There is no meta expert, or the dense model's FFNs are others.
    """
    if dense is None and not model.config.meta_expert:
        raise ConfigError("the model has no meta expert to start from; give --from-ffn PHASE2")
    found: dict[int, nn.Module] = {}
    for layer, block in model.moe_blocks.items():
        layers = () if dense is None else dense.model.language_model.layers
        source: Any = block.meta_expert if dense is None else layers[layer : layer + 1][0].mlp
        like = [tuple(t.shape[1:]) for t in block.experts.parameters()]
        stacks = ffn_family(source).stacks.values()
        given = [
            tuple(torch.cat([source.get_parameter(n) for n in names]).shape) for names in stacks
        ]
        if sorted(given) != sorted(like):
            raise ConfigError(f"--from-ffn: its FFNs have the shapes {given}, the experts {like}")
        found[layer] = copy.deepcopy(source).to(model.device)
    return found


class RowTraining(nn.Module):
    """The new rows of the routers with their loss; the old rows are read and stay.

    Args:
        gates: Of each MoE layer.
        experts: How many there are without the new one.
    """

    def __init__(self, gates: Sequence[Router], experts: int) -> None:
        super().__init__()
        self._gates, self._experts = nn.ModuleList(copy.deepcopy(list(gates))), experts
        width = gates[0].get_parameter(f"fc{gates[0].depth}.weight").shape[1]
        zeros = {"weight": torch.zeros(len(gates), width), "bias": torch.zeros(len(gates))}
        self.router = nn.ParameterDict({name: nn.Parameter(t) for name, t in zeros.items()})

    def forward(self, states: Tensor, new: Tensor) -> dict[str, Tensor]:
        """Return the mean loss of states (B, L, T, D) float32, of new pictures or not (B,) bool."""
        logits, target = [], []
        for number, gate in enumerate(self._gates):
            assert isinstance(gate, Router)
            with torch.no_grad():
                old_BTE = gate.logits(states[:, number])[..., : self._experts]
                hidden_BTD = gate.hidden(states[:, number])
            row, bias = self.router["weight"][number], self.router["bias"][number]
            own_BT1 = (hidden_BTD @ row + bias)[..., None]
            logits.append(torch.cat([old_BTE, own_BT1], dim=-1))
            kept_BT = old_BTE.argmax(dim=-1)
            target.append(torch.where(new[:, None], self._experts, kept_BT))
        every = torch.stack(logits, dim=1)
        wanted = torch.stack(target, dim=1)
        return {"loss": functional.cross_entropy(every.flatten(0, 2), wanted.flatten())}


class NewExpert(MoeWrapper):
    """A grown model whose new expert stands apart, so that nothing of the stacks trains.

    Args:
        ffns: What it starts as, by layer.
    """

    def __init__(
        self, model: MedMoeForConditionalGeneration, ffns: Mapping[int, nn.Module], index: int
    ) -> None:
        super().__init__(model)
        self.new_experts = nn.ModuleDict({str(layer): ffn for layer, ffn in ffns.items()})
        self._index = index
        self._given: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._handles = []
        for layer, block in model.moe_blocks.items():
            before = block.experts.register_forward_pre_hook(self._without(layer))
            after = block.experts.register_forward_hook(self._with(layer))
            self._handles += [before, after]

    def forward(self, *, answers_only: bool = False, **inputs: Any) -> Any:
        """Return the model's output, with the head on answers only where asked for."""
        return self.model(answers_only=answers_only, **inputs)

    def settle(self) -> None:
        """Put the expert into the stacks, in their dtype, and take the hooks off."""
        for handle in self._handles:
            handle.remove()
        for layer, block in self.model.moe_blocks.items():
            ffn: Any = self.new_experts[str(layer)]
            for stack, names in ffn_family(ffn).stacks.items():
                parts = torch.cat([ffn.get_parameter(name) for name in names])
                block.experts.get_parameter(stack).data[self._index] = parts.detach()

    def _without(self, layer: int) -> Any:
        def before(_: nn.Module, args: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
            x_TD, index_TK, weights_TK = args
            own_TK = index_TK == self._index
            self._given[layer] = x_TD, own_TK, weights_TK
            return x_TD, index_TK.masked_fill(own_TK, 0), weights_TK.masked_fill(own_TK, 0)

        return before

    def _with(self, layer: int) -> Any:
        def after(_: nn.Module, args: Any, output_TD: Tensor) -> Tensor:
            x_TD, own_TK, weights_TK = self._given.pop(layer)
            tokens = own_TK.any(dim=1).nonzero()[:, 0]
            # No token may be chosen: the sum over none still belongs to the graph.
            y = self.new_experts[str(layer)](x_TD[tokens])
            y = y * weights_TK.masked_fill(~own_TK, 0).sum(dim=1)[tokens, None]
            return output_TD.index_add(0, tokens, y.to(output_TD.dtype))

        return after


@torch.no_grad()
def set_row(gate: Router, index: int, weight: Tensor | None, bias: float | Tensor) -> None:
    """Set a row of a router (D,) and its bias; without a weight the bias alone."""
    last: Any = gate.get_submodule(f"fc{gate.depth}")
    if weight is not None:
        last.weight[index] = weight.to(last.weight)
    last.bias[index] = bias


@contextmanager
def without(model: MedMoeForConditionalGeneration, index: int) -> Iterator[None]:
    """Let no token choose an expert; its bias is put back at the end."""
    gates = [block.gate for block in model.moe_blocks.values()]
    kept = [_bias(gate, index) for gate in gates]
    try:
        for gate in gates:
            set_row(gate, index, None, _NEVER)
        yield
    finally:
        for gate, bias in zip(gates, kept, strict=True):
            set_row(gate, index, None, bias)


def _bias(gate: Router, index: int) -> float:
    return float(gate.get_parameter(f"fc{gate.depth}.bias").detach()[index])


@torch.no_grad()
def calibrate(
    model: MedMoeForConditionalGeneration,
    index: int,
    batches: Sequence[Mapping[str, Any]],
    keep: float,
) -> dict[str, Any]:
    """Lower the bias of a new expert's rows until old pictures keep their decisions.

    Args:
        index: Of the new expert.
        batches: Of old pictures that taught the row nothing.
        keep: Share of the decisions, of a token in a layer, that must be what they were.

    Returns:
        ``decisions`` and how many of them are ``kept``; ``rows`` of packed questions, how many have
        ``all_kept``, and the largest ``difference`` of their answers' probabilities.
    """
    blocks = list(model.moe_blocks.values())
    # One picture's decision holds in all layers; the rows of all are the first one's.
    groups = [blocks] if model.config.routing == "image" else [[block] for block in blocks]
    share = 1 - keep
    for _ in range(_ROUNDS):
        told, margins = _kept(model, index, batches)
        if told["kept"] >= keep * told["decisions"]:
            return told
        share /= 2
        for group, margin in zip(groups, margins, strict=False):
            bias = _bias(group[0].gate, index)
            # What the bias may be at most for all but this share of the tokens.
            most = margin.sort().values[int(share * len(margin))].item() - 1e-4
            for block in group:
                set_row(block.gate, index, None, min(bias, bias + most))
    for block in blocks:  # nothing less kept them
        set_row(block.gate, index, None, _NEVER)
    return _kept(model, index, batches)[0]


def _kept(
    model: MedMoeForConditionalGeneration, index: int, batches: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], list[Tensor]]:
    """Return what `calibrate` does, and by layer how far the new row is from each token."""
    counts = dict.fromkeys(("decisions", "kept", "rows", "all_kept"), 0)
    difference = 0.0
    margins: list[list[Tensor]] = [[] for _ in model.moe_blocks]
    for batch in batches:
        inputs = {k: v.to(model.device) for k, v in batch.items() if isinstance(v, Tensor)}
        real_BS = is_token(inputs["attention_mask"])
        with without(model, index):
            before, old = _routed(model, inputs)
        after, new = _routed(model, inputs)
        same_LBS = torch.stack(
            [
                (a[1].sort().values == b[1].sort().values).all(-1)
                for a, b in zip(before, after, strict=True)
            ]
        )
        rows_B = (same_LBS | ~real_BS).all(0).all(1)
        counts["decisions"] += int(real_BS.sum()) * len(before)
        counts["kept"] += int((same_LBS & real_BS).sum())
        counts["rows"] += len(rows_B)
        counts["all_kept"] += int(rows_B.sum())
        if rows_B.any():
            difference = max(difference, float((old - new)[rows_B].abs().max()))
        for margin, (logits_BSE, _) in zip(margins, after, strict=True):
            others = logits_BSE.clone()
            others[..., index] = -torch.inf
            least = others.topk(model.config.num_experts_per_tok, dim=-1).values[..., -1]
            margin.append((least - logits_BSE[..., index])[real_BS])
    return {**counts, "difference": difference}, [torch.cat(parts) for parts in margins]


def _routed(
    model: MedMoeForConditionalGeneration, inputs: Mapping[str, Tensor]
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Return by layer the router's logits and choice, and the next tokens' probabilities (B, V)."""
    seen: list[tuple[Tensor, Tensor]] = []
    blocks: list[MoeBlock] = list(model.moe_blocks.values())
    with hooked(
        block.gate.register_forward_hook(lambda _, __, out: seen.append((out[0], out[2])))
        for block in blocks
    ):
        logits = model(**inputs).logits
    places = (inputs["labels"] >= 0).int().argmax(dim=1) - 1  # what the first answer is read from
    return seen, logits[torch.arange(len(places)), places.clamp(min=0)].float().softmax(-1)
