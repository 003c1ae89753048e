"""The reference's forward pass in plain torch, from tensors by the reference's own names.

It imports neither this package nor transformers, and computes each step as the paper and the
reference write it: CLIP, projector, decoder with partial rotary positions, equation 4. What Phi and
StableLM share is held against the StableLM goldens; what is left to Phi alone is its block and FFN.

Shapes: B batch, S positions, D hidden, H heads, E experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

State = dict[str, Tensor]
TOWER = "model.image_tower.image_tower.vision_model"


@dataclass
class Forward:
    """Everything a forward pass went through, by the names of the goldens."""

    values: dict[str, Tensor] = field(default_factory=dict)

    def keep(self, name: str, value: Tensor) -> Tensor:
        self.values[name] = value
        return value


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return functional.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def norm(state: State, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """Return softmax(q k / √d) v (B, S, H·d) of (B, H, S, d)."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def clip_states(state: State, pixels: Tensor, patch: int = 8, count: int = 4) -> list[Tensor]:
    """Return CLIP's hidden states, the first before any layer."""
    patches = functional.conv2d(
        pixels, state[f"{TOWER}.embeddings.patch_embedding.weight"], stride=patch
    )
    tokens = patches.flatten(2).transpose(1, 2)
    first = state[f"{TOWER}.embeddings.class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat([first, tokens], 1) + state[f"{TOWER}.embeddings.position_embedding.weight"]
    states = [norm(state, f"{TOWER}.pre_layrnorm", x)]
    for i in range(3):
        name, x = f"{TOWER}.encoder.layers.{i}", states[-1]
        normed = norm(state, f"{name}.layer_norm1", x)
        q, k, v = (heads(linear(state, f"{name}.self_attn.{p}_proj", normed), count) for p in "qkv")
        x = x + linear(state, f"{name}.self_attn.out_proj", attend(q, k, v, None))
        h = linear(state, f"{name}.mlp.fc1", norm(state, f"{name}.layer_norm2", x))
        states.append(x + linear(state, f"{name}.mlp.fc2", h * (1.702 * h).sigmoid()))
    return states


def project(state: State, features: Tensor) -> Tensor:
    """Return image tokens (N, P, D): Linear, GELU, Linear."""
    h = linear(state, "model.mm_projector.image_spatial_proj.0", features)
    h = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
    return linear(state, "model.mm_projector.image_spatial_proj.2", h)


def merge(state: State, ids: Tensor, images: Tensor) -> Tensor:
    """Return embeddings (1, S, D) of one row, each -200 replaced by the next image's tokens."""
    table, queue = state["model.embed_tokens.weight"], iter(images)
    return torch.cat([next(queue) if t == -200 else table[t, None] for t in ids.tolist()])[None]


def rotate(x: Tensor, rotary: int) -> Tensor:
    """Turn the first ``rotary`` of d channels by their position, pairing halves; leave the rest."""
    turned, rest = x[..., :rotary], x[..., rotary:]
    frequency = 10000.0 ** (-torch.arange(0, rotary, 2) / rotary)
    angle = torch.arange(x.shape[2])[:, None] * torch.cat([frequency, frequency])
    half = rotary // 2
    other = torch.cat([-turned[..., half:], turned[..., :half]], -1)
    return torch.cat([turned * angle.cos() + other * angle.sin(), rest], -1)


def ffn(state: State, name: str, x: Tensor, phi: bool) -> Tensor:
    if not phi:
        gate = linear(state, f"{name}.gate_proj", x)
        hidden = gate * gate.sigmoid() * linear(state, f"{name}.up_proj", x)
        return linear(state, f"{name}.down_proj", hidden)
    h = linear(state, f"{name}.fc1", x)
    h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    return linear(state, f"{name}.fc2", h)


def moe(state: State, layer: int, x: Tensor, phi: bool, top_k: int, seen: Forward) -> Tensor:
    """Return equation 4 over all experts, those not chosen with weight zero."""
    name, label = f"model.layers.{layer}.mlp", f"layer{layer}"
    logits = linear(state, f"{name}.deepspeed_moe.gate.wg", x).flatten(0, 1)
    probability = logits.softmax(-1)
    chosen = probability.topk(top_k, -1).indices
    weights = torch.zeros_like(probability).scatter(1, chosen, probability.gather(1, chosen))
    if top_k > 1:
        weights = weights / weights.sum(-1, keepdim=True)
    experts = f"{name}.deepspeed_moe.experts.deepspeed_experts"
    outputs = torch.stack([ffn(state, f"{experts}.{e}", x, phi) for e in range(4)])
    meta = ffn(state, f"{name}.meta_moe", x, phi)
    routed = (weights.T.view(4, *x.shape[:2], 1) * outputs).sum(0)
    seen.keep(f"{label}_moe_in", x)
    seen.keep(f"{label}_gate_logits", logits)
    seen.keep(f"{label}_expert_first", chosen[:, 0])
    if top_k > 1:
        seen.keep(f"{label}_expert_second", chosen[:, 1])
    seen.keep(f"{label}_combine_weights", weights)
    seen.keep(f"{label}_expert_out_all_tokens", outputs)
    seen.keep(f"{label}_meta_out", meta)
    return seen.keep(f"{label}_moe_out", routed + meta)


def decode(
    state: State, embeds: Tensor, *, phi: bool, top_k: int = 1, mask: Tensor | None = None
) -> dict[str, Tensor]:
    """Return all that the language model goes through, logits (B, S, V) included.

    Args:
        state: A checkpoint's tensors; layers with a router are MoE layers.
        embeds: (B, S, D).
        phi: Phi (parallel block, GELU), else StableLM (sequential block, SwiGLU).
        top_k: Experts per token.
        mask: (B, S) bool, false at padding.
    """
    seen, length = Forward(), embeds.shape[1]
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    if mask is not None:
        visible = visible & mask[:, None, None]
    x = seen.keep("hidden_states_0", embeds)
    for i in range(4):
        name = f"model.layers.{i}"
        normed = norm(state, f"{name}.input_layernorm", x)
        q, k, v = (heads(linear(state, f"{name}.self_attn.{p}_proj", normed), 4) for p in "qkv")
        rotary = int((0.4 if phi else 0.25) * q.shape[-1])
        attended = attend(rotate(q, rotary), rotate(k, rotary), v, visible)
        attended = linear(state, f"{name}.self_attn.{'dense' if phi else 'o_proj'}", attended)
        if not phi:
            x = x + attended
            normed = norm(state, f"{name}.post_attention_layernorm", x)
        if f"{name}.mlp.deepspeed_moe.gate.wg.weight" in state:
            out = moe(state, i, normed, phi, top_k, seen)
        else:
            out = seen.keep(f"layer{i}_dense_ffn_out", ffn(state, f"{name}.mlp", normed, phi))
        x = seen.keep(f"layer{i}_out", x + attended + out if phi else x + out)
        seen.keep(f"hidden_states_{i + 1}", x)
    x = norm(state, "model.final_layernorm" if phi else "model.norm", x)
    seen.keep("hidden_states_4", x)
    seen.keep("logits", linear(state, "lm_head", x))
    return seen.values


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of the next labelled token."""
    scores, target = logits[:, :-1].log_softmax(-1), labels[:, 1:]
    counted = target != -100
    return -scores.gather(-1, target.clamp(min=0)[..., None])[..., 0][counted].mean()
