"""Runs our model and gathers what it went through under the names of the goldens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Absolute, float32. The reference's own scores move by up to 7e-6 between cache and no cache, and
#: our kernels add up in another order (2.8e-5 seen); a wrong constant or step shows above 1e-3.
TOLERANCE = 1e-4
PATCHES = 16


def assert_close(ours: Tensor, theirs: Any, what: str, tolerance: float = TOLERANCE) -> None:
    wanted = torch.as_tensor(np.asarray(theirs)) if not isinstance(theirs, Tensor) else theirs
    assert ours.shape == wanted.shape, what
    off = float((ours.detach().float() - wanted.float()).abs().max())
    assert off <= tolerance, f"{what} is off by {off:.2e}"


def expand(ids: Tensor, image_token_id: int, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return one row's ids with a placeholder for each patch of an image, and its labels."""
    labels = torch.full_like(ids, -100) if labels is None else labels
    counts = torch.where(ids == -200, PATCHES, 1)
    image = (ids == -200).repeat_interleave(counts)
    return (
        ids.repeat_interleave(counts).masked_fill(image, image_token_id),
        labels.repeat_interleave(counts).masked_fill(image, -100),
    )


def batched(
    rows: list[tuple[Tensor, Tensor]], pad_id: int, side: str = "right"
) -> dict[str, Tensor]:
    """Return rows of ids and labels as a padded batch with its mask."""
    length = max(len(ids) for ids, _ in rows)
    out = {
        "input_ids": torch.full((len(rows), length), pad_id),
        "labels": torch.full((len(rows), length), -100),
        "attention_mask": torch.zeros(len(rows), length, dtype=torch.long),
    }
    for row, (ids, labels) in enumerate(rows):
        place = slice(0, len(ids)) if side == "right" else slice(length - len(ids), length)
        for name, value in (("input_ids", ids), ("labels", labels), ("attention_mask", 1)):
            out[name][row, place] = value
    return out


@contextmanager
def hooks(model: Any, seen: dict[str, Tensor]) -> Iterator[None]:
    """Fill ``seen`` with what the decoder's layers, FFNs and routers give."""
    handles = []

    def keep(name: str) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            seen[name] = output[0] if isinstance(output, tuple) else output

        return hook

    def routed(label: str) -> Any:
        def hook(block: Any, args: tuple[Tensor], output: Tensor) -> None:
            (x,) = args
            logits, weights, index = (part.flatten(0, 1) for part in block.gate(x))
            flat = x.flatten(0, 1)
            experts = [block.experts.expert(one, flat) for one in block.experts.unbind()]
            seen[f"{label}_moe_in"], seen[f"{label}_moe_out"] = x, output
            seen[f"{label}_gate_logits"] = logits
            seen[f"{label}_combine_weights"] = torch.zeros_like(logits).scatter(1, index, weights)
            for name, chosen in zip(("first", "second"), index.unbind(1), strict=False):
                seen[f"{label}_expert_{name}"] = chosen
            seen[f"{label}_expert_out_all_tokens"] = torch.stack(experts).view(-1, *x.shape)
            seen[f"{label}_meta_out"] = block.meta_expert(x)

        return hook

    for i, layer in enumerate(model.model.language_model.layers):
        handles.append(layer.register_forward_hook(keep(f"layer{i}_out")))
        moe = i in model.config.moe_layers
        hook = routed(f"layer{i}") if moe else keep(f"layer{i}_dense_ffn_out")
        handles.append(layer.mlp.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def record(model: Any, **inputs: Any) -> dict[str, Tensor]:
    """Run a forward pass; return its values by the goldens' names, the loss too where labelled."""
    seen: dict[str, Tensor] = {}
    with hooks(model, seen):
        out = model(**inputs, output_hidden_states=True)
    for i, state in enumerate(out.hidden_states):
        seen[f"hidden_states_{i}"] = state
    seen["logits"] = out.logits
    if out.loss is not None:
        seen["loss"] = out.loss
    return seen


def at(values: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    """Return the values at the real positions (B, S) only, flattened to one row each."""
    flat = mask.flatten().bool()
    found = {}
    for name, value in values.items():
        if name.endswith("all_tokens"):
            found[name] = value.flatten(1, 2)[:, flat]
        elif value.dim() == 3:
            found[name] = value.flatten(0, 1)[flat]
        elif value.dim() == 0:
            found[name] = value
        else:
            found[name] = value[flat]
    return found


def our_gradient(model: Any, name: str) -> Tensor:
    """Return the gradient of one tensor, by the reference's name of it."""
    if ".deepspeed_experts." in name:
        place, _, rest = name.partition(".mlp.deepspeed_moe.experts.deepspeed_experts.")
        expert, part, kind = rest.split(".")
        experts = model.get_submodule(f"{language(place)}.mlp").experts
        if part in ("gate_proj", "up_proj"):
            half = experts.gate_up_proj.grad[int(expert)].chunk(2)
            return half[0] if part == "gate_proj" else half[1]
        stack = "down_proj" if part == "down_proj" else f"{part}_{kind}"
        return getattr(experts, stack).grad[int(expert)]
    name = name.replace(".mlp.meta_moe.", ".mlp.meta_expert.")
    for place, ours in (("0", "linear_1"), ("2", "linear_2")):
        name = name.replace(
            f"model.mm_projector.image_spatial_proj.{place}", f"model.multi_modal_projector.{ours}"
        )
    return model.get_parameter(language(name)).grad


def language(name: str) -> str:
    return name.replace("model.layers.", "model.language_model.layers.")
