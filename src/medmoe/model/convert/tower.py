"""Where the vision tower of a reference checkpoint comes from: config, weights, normalisation.

The reference writes the tower into its checkpoints but reads it again from ``mm_image_tower``,
which may be a hub id, or a path of the machine it was trained on. Nothing is fetched here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from transformers import CLIPVisionConfig

from medmoe.backbones.registry import VISION_BACKBONES
from medmoe.backbones.spec import VisionBackbone
from medmoe.backbones.vision import CLIP_LARGE_336
from medmoe.errors import CheckpointError
from medmoe.model.convert.conversion import config_of
from medmoe.model.convert.reference_config import Depth, ReferenceConfig, Small, Stated, stated
from medmoe.model.convert.reference_keys import TOWER, is_by_product
from medmoe.model.convert.source import read_weights, shown
from medmoe.model.locate import read_json

_INSIDE = "vision_model."
_Size = Annotated[int, Field(ge=1, le=10**5)]
Channels = tuple[float, float, float]
#: Parts of a whole CLIP that the vision tower is not made of.
_TEXT_SIDE = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")


class _Clip(Stated):
    """What a CLIP vision tower states; the rest is transformers' to judge."""

    hidden_size: _Size = CLIPVisionConfig.hidden_size
    intermediate_size: _Size = CLIPVisionConfig.intermediate_size
    num_hidden_layers: Depth = CLIPVisionConfig.num_hidden_layers
    num_attention_heads: _Size = CLIPVisionConfig.num_attention_heads
    image_size: _Size = CLIPVisionConfig.image_size
    patch_size: _Size = CLIPVisionConfig.patch_size
    layer_norm_eps: Small = 1e-5


class _Pictures(Stated):
    """How pictures are normalised."""

    image_mean: Channels
    image_std: Channels


@dataclass(frozen=True, slots=True)
class Tower:
    """A vision tower: its shape, how its pictures are normalised, and where both were found.

    Attributes:
        vision: The same as a backbone, with the reference's choice of states.
        weights: By the reference's names, where they come from a folder; None where the
            checkpoint holds them itself.
        origin: One line on where weights and config come from.
        dropped: What that folder holds besides a vision tower, with the reason.
    """

    config: CLIPVisionConfig
    vision: VisionBackbone
    weights: dict[str, Tensor] | None
    origin: str
    dropped: tuple[str, ...] = ()


def find_tower(
    source: Path, config: ReferenceConfig, tensors: dict[str, Tensor], given: Path | None
) -> Tower:
    """Return the vision tower of a checkpoint.

    Weights: the checkpoint's own, else those of the folder ``given``, else of ``mm_image_tower`` in
    or beside the checkpoint's folder. Config: of that folder, else of the encoder that
    ``mm_image_tower`` names.

    Args:
        tensors: All of its tensors by the reference's names.
        given: A folder named by the user.

    Raises:
        CheckpointError: There is no config or there are no weights; what to give is said.
    """
    folder = _folder(source, config.mm_image_tower, given)
    if folder is not None:
        vision_config, vision = _read_folder(folder, config)
        what = f"config from {folder}"
    else:
        vision_config, vision = _known(config)
        what = f"config of {vision.name} ({config.mm_image_tower})"
    inside = any(name.startswith(TOWER) for name in tensors)
    if inside:
        differing = _differing(folder, tensors)
        note = f"; {differing}" if differing else ""
        return Tower(vision_config, vision, None, f"weights from the checkpoint, {what}{note}")
    if folder is None:
        raise CheckpointError(
            f"{source}: holds no vision tower, and mm_image_tower {config.mm_image_tower!r} is no "
            "folder in it or beside it; give the tower's folder by --vision-tower DIR"
        )
    weights, dropped = _tower_weights(folder)
    return Tower(vision_config, vision, weights, f"weights and {what}", dropped)


def _folder(source: Path, named: str, given: Path | None) -> Path | None:
    if given is not None:
        if not given.is_dir():
            raise CheckpointError(
                f"{given}: no such folder; give the folder of a CLIP vision tower"
            )
        return given
    # The path was relative to where training ran: to the checkpoint's folder or the one above it.
    for folder in (source / named, source.resolve().parent / named):
        if folder.is_dir():
            return folder
    return None


def _read_folder(folder: Path, config: ReferenceConfig) -> tuple[CLIPVisionConfig, VisionBackbone]:
    path = folder / "config.json"
    raw = read_json(path)
    kind = raw.get("model_type")
    if kind == "clip":
        raw = raw.get("vision_config") or {}
    elif kind != "clip_vision_model":
        raise CheckpointError(
            f"{path}: model_type {kind!r} is no CLIP; the reference code's vision tower is one"
        )
    depth, layer = stated(_Clip, raw, path).num_hidden_layers, config.mm_vision_select_layer
    if not -depth - 1 <= layer <= depth:
        raise CheckpointError(
            f"{path}: mm_vision_select_layer {layer} is no layer of an encoder with {depth}; give "
            "the tower that the checkpoint was trained with"
        )
    with config_of(folder):
        made = CLIPVisionConfig(**{k: v for k, v in raw.items() if k != "model_type"})
    mean, std = CLIP_LARGE_336.mean, CLIP_LARGE_336.std
    file = folder / "preprocessor_config.json"
    if file.is_file():
        pictures = stated(_Pictures, read_json(file), file)
        mean, std = pictures.image_mean, pictures.image_std
    return made, _backbone(folder.name, made, mean, std, config)


def _known(config: ReferenceConfig) -> tuple[CLIPVisionConfig, VisionBackbone]:
    """Return the registered encoder that a hub id, or the end of a path, names."""
    name = config.mm_image_tower.rstrip("/").rpartition("/")[2]
    known = {
        vision.hub_id: vision
        for vision in VISION_BACKBONES.values()
        if vision.hub_id and vision.model_type == CLIPVisionConfig.model_type
    }
    for hub_id, vision in known.items():
        if hub_id.rpartition("/")[2] == name:
            made = CLIPVisionConfig(**vision.config)
            return made, _backbone(vision.name, made, vision.mean, vision.std, config)
    raise CheckpointError(
        f"mm_image_tower {config.mm_image_tower!r} is no folder in or beside the checkpoint, and "
        f"no known encoder ({', '.join(known)}); give the tower's folder by --vision-tower DIR"
    )


def _backbone(
    name: str, made: CLIPVisionConfig, mean: Channels, std: Channels, config: ReferenceConfig
) -> VisionBackbone:
    return replace(
        CLIP_LARGE_336,
        name=name,
        hub_id=None,
        config={},
        image_size=made.image_size,
        patch_size=made.patch_size,
        select_layer=config.mm_vision_select_layer,
        select_strategy="default",  # the class token is dropped
        mean=mean,
        std=std,
    )


def _tower_weights(folder: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return a folder's vision weights by the reference's names, and what else it holds."""
    tensors = read_weights(folder).tensors
    kinds = (
        ("of a CLIP's text side", [name for name in tensors if name.startswith(_TEXT_SIDE)]),
        ("computed, no weights", [name for name in tensors if is_by_product(name)]),
    )
    left_out = {name for _, names in kinds for name in names}
    weights = {
        TOWER + name.removeprefix(_INSIDE): tensor
        for name, tensor in tensors.items()
        if name not in left_out
    }
    return weights, tuple(f"{shown(names)} in {folder} ({why})" for why, names in kinds if names)


def _differing(folder: Path | None, tensors: dict[str, Tensor]) -> str:
    """Say where the checkpoint's tower is not the folder's, which the reference would read."""
    try:
        other = {} if folder is None else _tower_weights(folder)[0]
    except CheckpointError:
        return ""  # only the config of this folder is needed
    names = [
        name
        for name, tensor in tensors.items()
        # In the checkpoint's own precision, which may be lower.
        if name in other and not torch.equal(tensor, other[name].to(tensor.dtype))
    ]
    return f"{len(names)} of them differ from {folder}: {shown(names)}" if names else ""
