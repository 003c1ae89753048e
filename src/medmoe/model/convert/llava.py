"""`medmoe convert llava`: a stock Llava becomes the dense model that phase 2 or 3 starts from.

Any language model whose FFN an expert can copy (see `medmoe.backbones.ffn`). Weights are read as
the stock class reads them, older key names included, and the forward pass is the stock one.
Pictures are then padded to a square, our one policy, which the stock processor need not do.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from medmoe.backbones.ffn import ffn_family
from medmoe.backbones.spec import VisionBackbone
from medmoe.backbones.templates import ASSISTANT_SYSTEM, chat_template
from medmoe.errors import CheckpointError, first_line
from medmoe.model.build import IMAGE_TOKEN, build_processor
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.convert.conversion import (
    NO_PROCESSOR,
    Conversion,
    Converted,
    config_of,
    empty_model,
    written,
)
from medmoe.model.convert.reference_keys import is_by_product
from medmoe.model.convert.source import (
    check_finite,
    read_weights,
    refuse_misfits,
)
from medmoe.model.convert.tokens import read_chat_template, read_tokenizer, with_first_token
from medmoe.model.locate import read_json
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.model.processing_medmoe import MedMoeProcessor
from medmoe.model.strange_template import check_template

_HEAD_BIAS = "lm_head.bias"
_EMBEDDING = "embed_tokens.weight"
_PICTURES = ("preprocessor_config.json", "processor_config.json")


def load_llava(source: Path) -> Converted:
    """Return a stock Llava checkpoint as a dense model in memory, in evaluation mode.

    Args:
        source: Folder of a `LlavaForConditionalGeneration`, as `save_pretrained` writes it.

    Raises:
        CheckpointError: The source is not a whole Llava checkpoint.
        ConfigError: An expert could not copy the language model's FFN.
    """
    raw = read_json(source / "config.json")
    stock_config = _stock_config(raw, source / "config.json")
    weights = read_weights(source)
    check_finite(source, weights.tensors)
    with config_of(source):
        stock, bias, dropped = _stock_model(source, stock_config, weights.tensors)
        for layer in stock.model.language_model.layers:
            ffn_family(layer.mlp)
        config = _our_config(stock_config, bias is not None)
        model = empty_model(config)
    state = stock.state_dict() | ({} if bias is None else {_HEAD_BIAS: bias.to(stock.dtype)})
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()
    processor, origin = _processor(source, config)
    account = Conversion(
        source=str(source),
        kind=f"llava with {config.text_config.model_type}",
        files=weights.files,
        tensors=len(weights.tensors),
        vision_tower=f"from the checkpoint ({config.vision_config.model_type})",
        processor=origin,
        dropped=dropped,
        notes=()
        if bias is None
        else (f"{_HEAD_BIAS} is kept; the stock class of this transformers has no place for it",),
    )
    return Converted(model.eval(), processor, account)


def convert_llava(source: Path, destination: Path) -> Conversion:
    """Write what `load_llava` makes of a source as a model directory."""
    return written(destination, lambda: load_llava(source))


def _stock_config(raw: Mapping[str, Any], path: Path) -> LlavaConfig:
    if raw.get("model_type") != "llava":
        raise CheckpointError(
            f"{path}: model_type {raw.get('model_type')!r} is no stock Llava ('llava'); "
            "for the paper's code use `medmoe convert reference`"
        )
    try:
        return LlavaConfig.from_dict(dict(raw))
    except Exception as error:  # unknown parts raise KeyError, ValueError or a validation error
        raise CheckpointError(
            f"{path}: not a Llava of this transformers ({first_line(error)}); "
            "its vision and language models must be stock ones"
        ) from None


def _stock_model(
    source: Path, config: LlavaConfig, tensors: dict[str, Tensor]
) -> tuple[Any, Tensor | None, tuple[str, ...]]:
    """Return the stock model, a head's bias that it has no place for, and what was dropped.

    Raises:
        CheckpointError: A tensor is missing, left over or of another shape.
    """
    table = next((t for name, t in tensors.items() if name.endswith(_EMBEDDING)), None)
    dtype = torch.float32 if table is None else table.dtype
    model, info = LlavaForConditionalGeneration.from_pretrained(
        None,
        config=config,
        state_dict=tensors,
        dtype=dtype,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    dropped = sorted(name for name in info["unexpected_keys"] if is_by_product(name))
    unexpected = set(info["unexpected_keys"]) - set(dropped) - {_HEAD_BIAS}
    misshapen = [
        f"{name} is {tuple(there)}, its config needs {tuple(wanted)}"
        for name, there, wanted in info["mismatched_keys"]
    ]
    refuse_misfits(source, "its config", info["missing_keys"], unexpected, misshapen)
    bias = next((t for name, t in tensors.items() if name.endswith(_HEAD_BIAS)), None)
    return model, bias, tuple(f"{name} (computed, no weight)" for name in dropped)


def _our_config(stock: LlavaConfig, lm_head_bias: bool) -> MedMoeConfig:
    own = ("model_type", "architectures", "transformers_version")
    values = {name: value for name, value in stock.to_dict().items() if name not in own}
    config = MedMoeConfig(**values | {"lm_head_bias": lm_head_bias})
    with torch.device("meta"):
        model: Any = MedMoeForConditionalGeneration(config)
        size = config.vision_config.image_size
        # Counted, not guessed: encoders differ in patches and class tokens.
        config.image_seq_length = model.model.encode_images(torch.empty(1, 3, size, size)).shape[1]
    return config


def _processor(source: Path, config: MedMoeConfig) -> tuple[MedMoeProcessor | None, str]:
    """Return the processor of a folder, if it has what one is made of, and where that was found.

    Raises:
        CheckpointError: The tokenizer's image token is not the one in the config.
    """
    tokenizer = read_tokenizer(source, config.text_config.vocab_size)
    if tokenizer is None:
        return None, NO_PROCESSOR
    pictures = _picture_settings(source)
    if pictures is None:
        return None, f"none: no {_PICTURES[0]} says how pictures are normalised"
    own = read_chat_template(source, tokenizer)
    check_template(own)
    vision = VisionBackbone(
        name=config.vision_config.model_type,
        hub_id=None,
        revision=None,
        model_type=config.vision_config.model_type,
        config={},
        image_size=config.vision_config.image_size,
        patch_size=config.vision_config.patch_size,
        select_layer=config.vision_feature_layer,
        select_strategy=config.vision_feature_select_strategy,
        mean=tuple(pictures["image_mean"]),
        std=tuple(pictures["image_std"]),
    )
    template = own or chat_template(str(tokenizer.eos_token), ASSISTANT_SYSTEM)
    template = with_first_token(template, tokenizer)
    processor = build_processor(tokenizer, vision, template)
    patches = (vision.image_size // vision.patch_size) ** 2
    # The processor counts a class token in before the strategy takes one off.
    processor.num_additional_image_tokens = (
        config.image_seq_length - patches + int(vision.select_strategy == "default")
    )
    if processor.image_token_id != config.image_token_id:
        raise CheckpointError(
            f"{source}: its tokenizer has {IMAGE_TOKEN} at id {processor.image_token_id}, its "
            f"config says {config.image_token_id}; give the tokenizer that it was trained with"
        )
    whose = "the folder" if own else "this package"
    return (
        processor,
        f"tokenizer of the folder, chat template of {whose}, pictures padded to square",
    )


def _picture_settings(source: Path) -> dict[str, Any] | None:
    """Return the image processor's settings: a file of their own, or part of the processor's."""
    for name in _PICTURES:
        if (source / name).is_file():
            settings = read_json(source / name)
            settings = settings.get("image_processor", settings)
            if "image_mean" in settings and "image_std" in settings:
                return dict(settings)
    return None
