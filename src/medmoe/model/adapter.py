"""A LoRA adapter, as PEFT saves one, on a model of ours: found, checked and merged into its base.

PEFT only warns of what it does not find, and merging into stacked experts has lost adapters
without a word: what was loaded and what was merged are both compared here.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from medmoe.errors import CheckpointError, ConfigError, first_line
from medmoe.model.locate import ADAPTER, find_model, name_of, read_json
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration

WEIGHTS = "adapter_model.safetensors"


def base_of(folder: Path) -> Path:
    """Return the folder of the model that an adapter was trained on.

    Raises:
        CheckpointError: The adapter does not say, or it cannot be found.
    """
    named = read_json(folder / ADAPTER).get("base_model_name_or_path")
    fix = f"give it by `medmoe adopt {folder} --base MODEL --out DIR`"
    if not named:
        raise CheckpointError(f"{folder / ADAPTER}: does not name the adapter's base model; {fix}")
    try:
        # A path is meant from where the adapter lies, as training leaves it, or from here.
        near = folder / str(named)
        return find_model(near if near.is_dir() else str(named))
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder / ADAPTER}: the adapter's base model cannot be used ({error}); {fix}"
        ) from None


def merged_note(folder: Path) -> str:
    """Return what a model says of an adapter that was merged into it."""
    return f"The LoRA adapter {name_of(folder)} is merged in."


def check_adapter(folder: Path) -> None:
    """Check the files of an adapter; nothing is loaded.

    Raises:
        CheckpointError: It is no LoRA adapter, or its weights are no safetensors.
    """
    kind = read_json(folder / ADAPTER).get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{folder / ADAPTER}: an adapter of type {kind!r}; only LORA is read")
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder / WEIGHTS}: missing; save the adapter by PEFT's save_pretrained, "
            "which writes safetensors (pickles are refused)"
        )


def with_adapter(
    model: MedMoeForConditionalGeneration, folder: Path
) -> MedMoeForConditionalGeneration:
    """Return the model with an adapter added to its weights (in place, eval mode).

    Raises:
        ConfigError: PEFT is not installed.
        CheckpointError: The adapter does not fit the model, or merging loses a part of it.
    """
    try:
        import peft
    except ImportError:
        raise ConfigError(
            "an adapter needs the package peft, which is not installed; "
            "run: pip install 'medmoe[train]'"
        ) from None
    check_adapter(folder)
    stored = load_file(folder / WEIGHTS)
    without = _logits(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what PEFT may lack is compared below, by name
            adapted: Any = peft.PeftModel.from_pretrained(model, str(folder)).eval()
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{folder}: the adapter does not fit its base ({first_line(error)})"
        ) from None
    held = peft.get_peft_model_state_dict(adapted)
    lost = [name for name in stored if name not in held or stored[name].shape != held[name].shape]
    new = held.keys() - stored.keys()
    if differing := sorted({*lost, *new}):
        raise CheckpointError(
            f"{folder}: the adapter does not fit its base: {len(differing)} tensors are of one "
            f"alone, first: {differing[0]}; give the base that it was trained on"
        )
    wanted = _logits(adapted)
    merged: MedMoeForConditionalGeneration = adapted.merge_and_unload()
    loss = float((_logits(merged) - wanted).abs().max())
    # Of a lower precision the merged weights are rounded once more.
    rounding = 4 * torch.finfo(model.dtype).eps * float(wanted.abs().max())
    if loss > 0.1 * float((wanted - without).abs().max()) + rounding:
        raise CheckpointError(
            f"{folder}: merged, the model answers unlike with its adapter (logits differ by "
            f"{loss:.3g}); this release of peft loses a part of it: use another"
        )
    return merged


@torch.no_grad()
def _logits(model: Any) -> Tensor:
    """Return the logits (1, S, V), float32, of one random picture and a few words."""
    config = model.config
    side = config.vision_config.image_size
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, side, side, generator=generator)
    words = [token for token in range(9) if token != config.image_token_id]
    ids = torch.tensor([[config.image_token_id] * config.image_seq_length + words])
    weight = next(model.parameters())
    logits: Tensor = model(
        input_ids=ids.to(weight.device), pixel_values=pixels.to(weight.device, model.dtype)
    ).logits
    return logits.float()
