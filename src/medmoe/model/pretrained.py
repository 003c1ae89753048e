"""Pretrained backbones by hub id, folder or GGUF file: no pickles, no foreign code.

What a user's own folder says of itself (`vision_of`, `language_of`, `template_of`) goes before the
registry's entry: sizes, normalisation, chat template.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils import cached_file
from transformers.utils.chat_template_utils import render_jinja_template

from medmoe.backbones.published import PUBLISHED, kept_weights
from medmoe.backbones.registry import (
    LANGUAGE_BACKBONES,
    VISION_BACKBONES,
    language_backbone,
    vision_backbone,
)
from medmoe.backbones.spec import LanguageBackbone, VisionBackbone, shortened
from medmoe.backbones.templates import with_images
from medmoe.config.schema import ModelSpec
from medmoe.errors import CheckpointError, ConfigError, first_line
from medmoe.model.blind import BlindConfig, BlindModel, blinded
from medmoe.model.convert.source import file_of, read_tensors
from medmoe.model.efficientnet_lite import (
    EfficientNetLiteConfig,
    EfficientNetLiteModel,
    folded,
)
from medmoe.model.strange_template import check_template

logger = logging.getLogger(__name__)

#: Suffixes of files of weights, and what tells backbones of one architecture apart.
_WEIGHTS = (".safetensors", ".bin")
_SIZES = ("hidden_size", "num_hidden_layers")


def vision_of(spec: ModelSpec) -> VisionBackbone:
    """Return the vision encoder of a recipe: its entry, or what the user's own folder says.

    Which layer is read stays the entry's choice. States are counted, so that an encoder without a
    class token (SigLIP) keeps all of them.

    Raises:
        ConfigError: The folder cannot be read, is no vision encoder, or names no normalisation, or
            its map of cells cannot be parted into image tokens.
    """
    entry, where = vision_backbone(spec.vision_encoder), spec.vision_source
    if spec.blind:
        return blinded(vision_of(spec.model_copy(update={"blind": False})))
    if where is None:
        return replace(entry, pool=spec.image_pool)
    if file_of(where, ".pth") is not None:  # weights alone: their shape is the entry's
        return replace(entry, **_named(where), pool=spec.image_pool)
    _, extra = _origin(entry, where, "vision_source")
    whole = _config(where, extra, "vision_source")
    config = getattr(whole, "vision_config", whole)
    sizes: Any = (getattr(config, "image_size", None), getattr(config, "patch_size", None))
    if not all(isinstance(size, int) for size in sizes):
        raise ConfigError(
            f"{where} is a {config.model_type!r} model, no encoder of square pictures in patches; "
            "use --set model.vision_source=FOLDER with a CLIP or a SigLIP"
        )
    side, patch = sizes
    with torch.device("meta"):
        states = AutoModel.from_config(config)(torch.empty(1, 3, side, side)).last_hidden_state
    more = states.shape[1] - (side // patch) ** 2
    if more not in (0, 1):
        raise ConfigError(
            f"{where}: its encoder gives {more} states beside its patches, and one class token or "
            "none is read; choose another vision encoder"
        )
    try:
        pictures, _ = ImageProcessingMixin.get_image_processor_dict(where, **extra)
        mean, std = tuple(pictures["image_mean"]), tuple(pictures["image_std"])
    except (OSError, KeyError):
        if config.model_type != entry.model_type:
            raise ConfigError(
                f"{where}: no preprocessor_config.json says how pictures are normalised; "
                "put that of the encoder there"
            ) from None
        mean, std = entry.mean, entry.std
    return replace(
        entry,
        **_named(where),
        model_type=config.model_type,
        config=_values(config),
        image_size=side,
        patch_size=patch,
        select_strategy="default" if more else "full",
        mean=mean,
        std=std,
        pool=spec.image_pool,
    )


def language_of(spec: ModelSpec) -> LanguageBackbone:
    """Return the language model of a recipe: its entry, or what the user's own folder says.

    Raises:
        ConfigError: The folder cannot be read, is of another architecture than the entry, or has
            fewer layers than are to be kept.
    """
    entry, where = language_backbone(spec.language_model), spec.language_source
    if where is None:
        return entry.shortened(spec.language_layers)
    config = _config(*_origin(entry, where, "language_source"), "language_source")
    kind = config.model_type
    if kind != entry.model_type:  # prompt and head are the entry's
        entries = [name for name, one in LANGUAGE_BACKBONES.items() if one.model_type == kind]
        own = f"--set model.language_model={' or '.join(entries)}" if entries else "a new entry"
        raise ConfigError(
            f"{where} is a {kind!r} model, {entry.name} is {entry.model_type!r}; give the folder "
            f"of one, or use {own} (docs/add_a_backbone.md)"
        )
    return replace(entry, **_named(where), config=_values(config)).shortened(spec.language_layers)


def _values(config: Any) -> dict[str, Any]:
    """Return a config as an entry has it: its type stands beside it."""
    return {name: value for name, value in config.to_dict().items() if name != "model_type"}


def _named(source: str) -> dict[str, Any]:
    here = Path(source).exists()
    return {
        "name": Path(source).resolve().name if here else source,
        "hub_id": None if here else source,
        "revision": None,
    }


def check_sources(spec: ModelSpec, parts: Sequence[str]) -> list[str]:
    """Refuse backbones whose weights are not to be had, before anything is read or written.

    Args:
        parts: Those to look for: ``vision``, ``language``.

    Returns:
        Where a folder's model is not the one that the recipe names, a line on each.

    Raises:
        ConfigError: A source cannot be reached, or a folder has no weights, no tokenizer or no
            chat template that can be used; the line says what to do.
    """
    others = []
    for part in parts:
        entry: Any = language_backbone(spec.language_model)
        backbone: Any = language_of(spec)
        if part == "vision":
            entry, backbone = vision_backbone(spec.vision_encoder), vision_of(spec)
        if backbone.model_type == BlindConfig.model_type:
            continue
        key = f"{part}_source"
        source = getattr(spec, key)
        where, extra = _origin(backbone, source, key)
        if "gguf_file" in extra or file_of(where, ".pth") is not None:
            continue
        _config(where, extra, key)
        if source is None:
            continue
        if Path(where).is_dir() and not any(p.suffix in _WEIGHTS for p in Path(where).iterdir()):
            raise ConfigError(f"{where} holds no weights ({', '.join(_WEIGHTS)}); complete it")
        if part == "language":
            template_of(_tokenizer(where, extra), entry, where)
        own, named = (
            f"{one.model_type} ({', '.join(f'{size} {one.config.get(size)}' for size in _SIZES)})"
            for one in (backbone, entry)
        )
        if own != named:
            others.append(f"model.{key} {where} is a {own}, and {entry.name} is a {named}")
    return others


def template_of(tokenizer: PreTrainedTokenizerBase, entry: LanguageBackbone, where: str) -> str:
    """Return a folder's own chat template, made to take images; its entry's where it has none.

    A template is used if it renders an answered conversation as the open one, the answer and the
    end token: what a model is trained on must be what it is asked with.

    Args:
        tokenizer: Of the folder.
        entry: The registry's, of the folder's architecture.
        where: The folder, for the warning.
    """
    reason = "has no chat template"
    if tokenizer.chat_template:
        template = with_images(str(tokenizer.chat_template))
        check_template(template)
        end = str(tokenizer.eos_token)
        user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "why?"}]}
        turns = [user, {"role": "assistant", "content": "because"}]
        try:
            opened, answered = (
                render_jinja_template(
                    conversations=[turns[:count]],
                    chat_template=template,
                    add_generation_prompt=count == 1,
                    **tokenizer.special_tokens_map,
                )[0][0]
                for count in (1, 2)
            )
        except TemplateError as error:
            opened, answered = "", str(error)
        tail = answered.removeprefix(opened).strip()
        if opened.count("<image>") == 1 and "why?" in opened and tail == f"because{end}":
            return template
        reason = f"has a chat template that does not end an answer with {end!r}, or not at once"
    logger.warning("%s %s: that of %s is used", where, reason, entry.name)
    return entry.chat_template


def load_language_model(
    backbone: LanguageBackbone, source: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a causal language model with its head (float32), and its tokenizer.

    Args:
        backbone: As `language_of` gives it.
        source: Hub id or folder; the backbone's own hub id where None.

    Raises:
        ConfigError: There is no source, it cannot be reached, or is another architecture.
        CheckpointError: Weights are missing or damaged.
    """
    where, extra = _origin(backbone, source, "language_source")
    config = _config(where, extra, "language_source")
    if config.model_type != backbone.model_type:
        raise ConfigError(
            f"{where} is a {config.model_type!r} model, {backbone.name} is {backbone.model_type!r};"
            " use --set model.language_source=FOLDER or another model.language_model"
        )
    _refuse_changed_logits(where, config)
    model: Any = _load(AutoModelForCausalLM, where, extra, config, "language_source")
    if (depth := backbone.config["num_hidden_layers"]) < config.num_hidden_layers:
        model.base_model.layers = model.base_model.layers[:depth]
        model.config = type(config).from_dict(shortened(model.config.to_dict(), depth))
        model.base_model.config = model.config
    if "gguf_file" in extra:  # dequantised: as it says it is quantised, it could not be saved
        model.config.__dict__.pop("quantization_config", None)
        model.hf_quantizer, model.is_quantized = None, False
    return model, _tokenizer(where, extra)


def _tokenizer(where: str, extra: dict[str, Any]) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **extra)
        if not tokenizer.vocab_size:  # GPT-2's class makes an empty one of a folder without any
            raise ValueError("it holds no tokenizer")
    except (OSError, ValueError, TypeError) as error:
        raise _unreachable(where, "language_source", error) from None
    return tokenizer


def load_vision_encoder(backbone: VisionBackbone, source: str | None = None) -> PreTrainedModel:
    """Return a vision encoder (float32), also out of a whole CLIP or SigLIP model.

    Args:
        backbone: As `vision_of` gives it.
        source: Hub id or folder; the backbone's own hub id where None.

    Raises:
        ConfigError: There is no source, it cannot be reached, or has another shape.
        CheckpointError: Weights are missing or damaged.
    """
    if backbone.model_type == BlindConfig.model_type:
        return BlindModel(BlindConfig(**backbone.config))
    where, extra = _origin(backbone, source, "vision_source")
    file = file_of(where, ".pth")
    if file is not None:
        return _published(file, backbone)
    whole = _config(where, extra, "vision_source")
    config = getattr(whole, "vision_config", whole)
    given = (config.model_type, config.image_size, config.patch_size)
    wanted = (backbone.model_type, backbone.image_size, backbone.patch_size)
    if given != wanted:
        raise ConfigError(
            f"{where} is {_shape(given)}, {backbone.name} is {_shape(wanted)}; "
            "use --set model.vision_source=FOLDER or another model.vision_encoder"
        )
    return _load(AutoModel, where, extra, config, "vision_source")


def _origin(
    backbone: LanguageBackbone | VisionBackbone, source: str | None, key: str
) -> tuple[str, dict[str, Any]]:
    """Return where to load from, and the keywords that pin it."""
    if source is not None:
        file = file_of(source, ".gguf")
        if file is not None and find_spec("gguf") is None:
            raise ConfigError(
                f"{file}: reading it needs the package gguf; run `pip install 'medmoe[gguf]'`"
            )
        if file is not None:
            return str(file.parent), {"gguf_file": file.name, "local_files_only": True}
        return source, {"local_files_only": True} if Path(source).is_dir() else {}
    fetched = kept_weights(backbone.name)
    if fetched is not None:
        return _origin(backbone, str(fetched), key)
    if backbone.hub_id is not None:
        return backbone.hub_id, {"revision": backbone.revision}
    if backbone.name in PUBLISHED:
        raise ConfigError(
            f"the weights of {backbone.name} are not here; get them by `medmoe weights get "
            f"{backbone.name}`, or use --set model.{key}=FOLDER"
        )
    raise ConfigError(
        f"{backbone.name} has no pretrained weights; train it by phase 0, or use "
        f"--set model.{key}=FOLDER"
    )


def _published(file: Path, backbone: VisionBackbone) -> PreTrainedModel:
    """Return the encoder of a published file, its batch norms folded into the convolutions."""
    if backbone.model_type != EfficientNetLiteConfig.model_type:
        raise ConfigError(
            f"{file} holds an EfficientNet-Lite, {backbone.name} is {backbone.model_type!r}; "
            "use --set model.vision_encoder=efficientnet_lite2, or lite0 or lite1"
        )
    model = EfficientNetLiteModel(EfficientNetLiteConfig(**backbone.config))
    try:
        model.load_state_dict(folded(read_tensors(file), len(model.blocks)))
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{file}: not the published weights of {backbone.name} ({reason}); "
            "get them again by `medmoe weights get`"
        ) from None
    return model.eval().to(memory_format=torch.channels_last)


@lru_cache(maxsize=1)
def _gguf_config(file: Path, changed: int) -> Any:
    """Return the config of a GGUF file, whose header alone takes many seconds to read."""
    return AutoConfig.from_pretrained(file.parent, gguf_file=file.name)


def _refuse_changed_logits(where: str, config: Any) -> None:
    """Refuse a language model that changes its logits behind its head, which ours does not."""
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        value = getattr(config, name, None)
        if value not in (None, 1):
            raise ConfigError(
                f"{where} is a {config.model_type!r} model with {name} {value}, which is not kept "
                "behind its head; use --set model.language_source=FOLDER with another one"
            )


def _config(where: str, extra: dict[str, Any], key: str) -> Any:
    try:
        if "gguf_file" in extra:
            file = Path(where) / extra["gguf_file"]
            return copy.deepcopy(_gguf_config(file, file.stat().st_mtime_ns))
        return AutoConfig.from_pretrained(where, **extra)
    except (OSError, ValueError) as error:
        raise _unreachable(where, key, error) from None


def _load(auto: Any, where: str, extra: dict[str, Any], config: Any, key: str) -> PreTrainedModel:
    wanted = {"config": config, "output_loading_info": True, "dtype": "float32"}
    try:
        model, info = auto.from_pretrained(where, use_safetensors=True, **wanted, **extra)
    except (OSError, ValueError) as error:
        try:
            pickled = cached_file(where, "pytorch_model.bin", **extra)
        except OSError:
            pickled = None
        if pickled is None:
            raise _unreachable(where, key, error) from None
        # Older models are published as pickled tensors alone: read as tensors and no more.
        tensors = read_tensors(Path(pickled))
        with torch.device("meta"):
            kind = type(auto.from_config(config))
        model, info = kind.from_pretrained(None, state_dict=tensors, **wanted)
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{where}: {len(missing)} weights of the {config.model_type} model are missing, first: "
            f"{missing[0]}; give a complete folder by --set model.{key}=FOLDER"
        )
    loaded: PreTrainedModel = model.eval()
    return loaded


def _unreachable(where: str, key: str, error: Exception) -> ConfigError:
    every: list[Any] = [*LANGUAGE_BACKBONES.values(), *VISION_BACKBONES.values()]
    name = next((entry.name for entry in every if entry.hub_id == where), "NAME")
    return ConfigError(
        f"cannot load {where} ({first_line(error)}); get it by `medmoe weights get {name}` where "
        f"there is a network, or use --set model.{key}=FOLDER"
    )


def _shape(facts: tuple[Any, ...]) -> str:
    return f"{facts[0]} of {facts[1]} px with patches of {facts[2]}"
