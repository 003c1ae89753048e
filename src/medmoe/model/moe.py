"""Router, experts and MoE block: y = Σ_{i in top-k} g_i E_i(x) + E_meta(x) (paper, equation 4).

Nothing here loads, trains or counts; expert parallelism and kernels are transformers' own, reached
through its experts interface (eager, batched_mm, grouped_mm).

Shapes: B batch, S sequence, T = B·S tokens, D hidden, F FFN width, E domain experts, K top-k,
R rows of the router: E, and those of removed experts.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN
from transformers.integrations import use_experts_implementation
from transformers.utils.generic import maybe_autocast

from medmoe.backbones.ffn import FfnFamily
from medmoe.errors import ConfigError
from medmoe.model.configuration_medmoe import MedMoeConfig


class PictureChoice:
    """What each row's first picture decides for the whole row, in every layer (``routing: image``).

    The first MoE layer's router reads the mean of what its FFN reads at that picture's tokens.
    Nothing behind a picture changes it, so that what was read of a prompt may be kept. A row
    without a picture is routed token by token.

    Attributes:
        tokens_BS: Bool, the tokens of each row's first picture; None where the rows go on.
        logits_BR: Float32, the router's of each row, NaN without a picture; None: token by token.
    """

    tokens_BS: Tensor | None = None
    logits_BR: Tensor | None = None

    def __init__(self, config: MedMoeConfig) -> None:
        self._config = config

    def __deepcopy__(self, memo: Any) -> PictureChoice:
        return PictureChoice(self._config)

    def show(self, input_ids: Tensor | None, shown_BS: Tensor | None, cache: Any) -> None:
        """Take where pictures are from ids or the tokens shown, or what was decided from a cache.

        Raises:
            ConfigError: None of them tells.
        """
        self.tokens_BS = self.logits_BR = None
        if shown_BS is None and input_ids is not None:
            shown_BS = input_ids == self._config.image_token_id
        if cache is not None and cache.get_seq_length() > 0:
            self.logits_BR = getattr(cache, "pictured", None)
        elif shown_BS is not None:
            self.tokens_BS = shown_BS & (shown_BS.cumsum(1) <= self._config.image_seq_length)
        if self.tokens_BS is None and self.logits_BR is None:
            raise ConfigError(
                "routing: image needs to know where pictures are, which embeddings do not tell; "
                "give input_ids, or picture_tokens with the embeddings"
            )

    def keep(self, cache: Any) -> None:
        """Leave the decision with a cache, if there is one."""
        if cache is not None and self.logits_BR is not None:
            cache.pictured = self.logits_BR.detach()

    def logits(self, router: Router, x_BSD: Tensor) -> Tensor:
        """Return the logits (B, S, R) of a layer's tokens: the picture's where there is one."""
        own_BSR = router.logits(x_BSD)
        if router.decides and self.tokens_BS is not None:
            count_B1 = self.tokens_BS.sum(1, keepdim=True)
            sum_BD = x_BSD.float().masked_fill(~self.tokens_BS[..., None], 0).sum(1)
            decided_BR = router.logits(sum_BD / count_B1.clamp(min=1))
            self.logits_BR = decided_BR.masked_fill(count_B1 == 0, torch.nan)
        if self.logits_BR is None:
            return own_BSR
        chosen_BSR = self.logits_BR[:, None].expand_as(own_BSR)
        return torch.where(chosen_BSR.isnan(), own_BSR, chosen_BSR)


class Router(nn.Module):
    """Maps a token to its experts: an MLP of 1 to 3 layers, D → E, computed in float32.

    Args:
        config: Gives D, E, K and the depth.
    """

    def __init__(self, config: MedMoeConfig) -> None:
        super().__init__()
        width = config.text_config.hidden_size
        self.top_k, self.num_experts = config.num_experts_per_tok, config.num_experts
        self.depth = config.router_layers
        self.picture: PictureChoice | None = None
        self.decides = False  # for all layers, where the picture does
        for i in range(1, self.depth):
            self.add_module(f"fc{i}", nn.Linear(width, width))
        rows, spans = config.router_rows, config.expert_rows
        self.add_module(f"fc{self.depth}", nn.Linear(width, len(rows)))
        #: Of each expert the rows that it was trained with; None: with all.
        self.spans: list[list[int]] | None = None
        if spans is not None:
            self.spans = [[*map(rows.index, spans[name])] for name in config.domains or []]
        to_meta = list((config.removed_experts or {}).values()).count("meta")
        self.standing = config.num_experts + to_meta  # rows that may be chosen, the first ones

    def logits(self, x_BSD: Tensor) -> Tensor:
        """Return the logits (B, S, R), float32, of normed hidden states of any float dtype."""
        return self._linear(self.hidden(x_BSD), self.depth)

    def hidden(self, x_BSD: Tensor) -> Tensor:
        """Return what the last layer reads (B, S, D), float32."""
        h = x_BSD.float()
        for i in range(1, self.depth):
            h = functional.gelu(self._linear(h, i))
        return h

    def _linear(self, h: Tensor, number: int) -> Tensor:
        layer: Any = getattr(self, f"fc{number}")
        # Under autocast the casts alone would not do: `linear` itself goes down to its dtype.
        with maybe_autocast(h.device.type, enabled=False):
            return functional.linear(h, layer.weight.float(), layer.bias.float())

    def forward(self, x_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Choose the experts of each token.

        Returns:
            Logits (B, S, E) float32; weights g (B, S, K) float32: for K = 1 the raw softmax
            probability, for K > 1 renormalised over the chosen ones; expert indices (B, S, K)
            int64.
        """
        logits_BSE = self.picture.logits(self, x_BSD) if self.picture else self.logits(x_BSD)
        if self.spans is not None:
            return logits_BSE[..., : self.num_experts], *self._choose(logits_BSE, self.spans)
        probs_BSE = logits_BSE.softmax(dim=-1)
        weights_BSK, index_BSK = probs_BSE.topk(self.top_k, dim=-1)
        if self.top_k > 1:
            weights_BSK = weights_BSK / weights_BSK.sum(dim=-1, keepdim=True)
        return logits_BSE, weights_BSK, index_BSK

    def _choose(self, logits_BSR: Tensor, spans: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Return weights and indices (B, S, K) where rows came or went after training.

        A token that chose a removed expert's row has the next best one's index, and weight 0.
        """
        chosen_BSK, index_BSK = logits_BSR[..., : self.standing].topk(self.top_k, dim=-1)
        gone_BSK, last = index_BSK >= self.num_experts, self.num_experts - 1
        if self.top_k > 1:
            weights_BSK = chosen_BSK.softmax(dim=-1)
        else:
            own = [
                logits_BSR[..., span].softmax(-1)[..., span.index(e)]
                for e, span in enumerate(spans)
            ]
            weights_BSK = torch.stack(own, dim=-1).gather(-1, index_BSK.clamp(max=last))
        if self.standing > self.num_experts:
            best_BS1 = logits_BSR[..., : self.num_experts].argmax(dim=-1, keepdim=True)
            weights_BSK = weights_BSK.masked_fill(gone_BSK, 0)
            index_BSK = torch.where(gone_BSK, best_BS1, index_BSK)
        return weights_BSK, index_BSK


def activation_of(text: Any) -> str:
    """Return the name of the FFNs' activation, which Gemma's configs call otherwise."""
    return str(getattr(text, "hidden_activation", None) or text.hidden_act)


def _draw(experts: nn.Module, std: float) -> None:
    """Draw fresh weights: transformers leaves it to the language model, which knows no experts."""
    for name, stack in experts.named_parameters():
        if name.endswith("_bias"):
            nn.init.zeros_(stack)
        else:
            nn.init.normal_(stack, std=std)


def _loop_over_experts(experts: Any, x_TD: Tensor, index_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """The eager path of the experts interface: one matrix product per expert that has tokens."""
    out_TD = torch.zeros_like(x_TD, dtype=weights_TK.dtype)
    # unbind once: `weight[e]` inside the loop would build a full-size zero gradient per expert.
    weights = experts.unbind()
    for e in range(experts.num_experts):
        token, slot = torch.where(index_TK == e)
        if token.numel() == 0:
            continue
        y = experts.expert(weights[e], x_TD[token]) * weights_TK[token, slot, None]
        out_TD = out_TD.index_add(0, token, y.to(out_TD.dtype))
    return out_TD.to(x_TD.dtype)


class _Cast:
    """Experts as an implementation sees them, their stacks in another dtype."""

    def __init__(self, experts: nn.Module, dtype: torch.dtype) -> None:
        self._experts, self._dtype = experts, dtype

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._experts, name)
        return value.to(self._dtype) if isinstance(value, Tensor) else value


def _under_autocast(experts_class: type[nn.Module]) -> type[nn.Module]:
    """Let experts compute in autocast's dtype, which grouped products ignore, and give it.

    Of widths that 8 does not divide, which torch's grouped product refuses there, in float32.
    """
    implementations: Any = experts_class.forward

    @wraps(implementations)
    def forward(self: Any, x_TD: Tensor, index_TK: Tensor, weights_TK: Tensor) -> Tensor:
        device = x_TD.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            text, dtype = self.config.text_config, torch.get_autocast_dtype(device)
            if text.hidden_size % 8 or text.intermediate_size % 8:
                dtype = torch.float32
            self, x_TD = _Cast(self, dtype), x_TD.to(dtype)
        out_TD: Tensor = implementations(self, x_TD, index_TK, weights_TK)
        return out_TD

    experts_class.forward = forward
    return experts_class


@_under_autocast
@use_experts_implementation
class GatedExperts(nn.Module):
    """E stacked SwiGLU experts without bias (StableLM, Llama, Qwen …)."""

    def __init__(self, config: MedMoeConfig) -> None:
        super().__init__()
        text = config.text_config
        self.num_experts = config.num_experts
        shape = (config.num_experts, 2 * text.intermediate_size, text.hidden_size)
        self.gate_up_proj = nn.Parameter(torch.empty(shape))
        self.down_proj = nn.Parameter(torch.empty(shape[0], shape[2], shape[1] // 2))
        self.act_fn = ACT2FN[activation_of(text)]
        _draw(self, text.initializer_range)

    def unbind(self) -> list[tuple[Tensor, ...]]:
        """Return each expert's weights: gate-and-up (2F, D) and down (D, F)."""
        return list(zip(self.gate_up_proj.unbind(0), self.down_proj.unbind(0), strict=True))

    def expert(self, weights: tuple[Tensor, ...], x_ND: Tensor) -> Tensor:
        """Return one expert's output (N, D)."""
        gate, up = functional.linear(x_ND, weights[0]).chunk(2, dim=-1)
        return functional.linear(self.act_fn(gate) * up, weights[1])

    def forward(self, x_TD: Tensor, index_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """Return Σ_k weights[t, k] · E_{index[t, k]}(x[t]), (T, D), dtype of x or autocast's."""
        return _loop_over_experts(self, x_TD, index_TK, weights_TK)


@_under_autocast
@use_experts_implementation(has_gate=False, has_bias=True)
class PlainExperts(nn.Module):
    """E stacked two-layer experts with biases (Phi).

    Biases stay 2-D: parameters of 3-D only would be taken for SwiGLU experts by vLLM. The experts
    interface asks for ``up_proj`` and ``down_proj``: these are views of the paper's fc1 and fc2.
    """

    def __init__(self, config: MedMoeConfig) -> None:
        super().__init__()
        text = config.text_config
        self.num_experts = config.num_experts
        e, f, d = config.num_experts, text.intermediate_size, text.hidden_size
        self.fc1_weight = nn.Parameter(torch.empty(e, f, d))
        self.fc1_bias = nn.Parameter(torch.empty(e, f))
        self.fc2_weight = nn.Parameter(torch.empty(e, d, f))
        self.fc2_bias = nn.Parameter(torch.empty(e, d))
        self.act_fn = ACT2FN[activation_of(text)]
        _draw(self, text.initializer_range)

    up_proj = property(lambda self: self.fc1_weight, doc="Weights (E, F, D) of the first layer.")
    up_proj_bias = property(lambda self: self.fc1_bias, doc="Biases (E, F) of the first layer.")
    down_proj = property(lambda self: self.fc2_weight, doc="Weights (E, D, F) of the second layer.")
    down_proj_bias = property(lambda self: self.fc2_bias, doc="Biases (E, D) of the second layer.")

    def unbind(self) -> list[tuple[Tensor, ...]]:
        """Return each expert's weights: fc1 (F, D), its bias (F), fc2 (D, F), its bias (D)."""
        stacks = (self.fc1_weight, self.fc1_bias, self.fc2_weight, self.fc2_bias)
        return list(zip(*(stack.unbind(0) for stack in stacks), strict=True))

    def expert(self, weights: tuple[Tensor, ...], x_ND: Tensor) -> Tensor:
        """Return one expert's output (N, D)."""
        h = self.act_fn(functional.linear(x_ND, weights[0], weights[1]))
        return functional.linear(h, weights[2], weights[3])

    def forward(self, x_TD: Tensor, index_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """Return Σ_k weights[t, k] · E_{index[t, k]}(x[t]), (T, D), dtype of x or autocast's."""
        return _loop_over_experts(self, x_TD, index_TK, weights_TK)


class MoeBlock(nn.Module):
    """The FFN of a MoE layer: domain experts chosen by the router, plus the always-on meta expert.

    Args:
        config: Gives the experts' shapes and K, and whether there is a meta expert.
        meta_expert: The layer's own stock FFN module; becomes the meta expert as it is, or is
            dropped where the config has no meta expert (paper, Table 5).
    """

    def __init__(self, config: MedMoeConfig, meta_expert: nn.Module, family: FfnFamily) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = GatedExperts(config) if family.gated else PlainExperts(config)
        self.meta_expert = meta_expert if config.meta_expert else None

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Return y (B, S, D) of normed hidden states (paper, equation 4)."""
        _, weights_BSK, index_BSK = self.gate(x_BSD)
        routed_TD = self.experts(
            x_BSD.flatten(0, 1), index_BSK.flatten(0, 1), weights_BSK.flatten(0, 1)
        )
        y_BSD: Tensor = routed_TD.view_as(x_BSD)
        if self.meta_expert is not None:
            y_BSD = y_BSD + self.meta_expert(x_BSD)
        return y_BSD
