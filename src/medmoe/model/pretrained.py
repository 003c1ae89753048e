"""Loads a pretrained backbone by hub id or folder: safetensors only, no foreign code.

What comes in is checked against the backbone's entry, since image size and tokens depend on it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from medmoe.backbones.spec import LanguageBackbone, VisionBackbone
from medmoe.errors import CheckpointError, ConfigError


def load_language_model(
    backbone: LanguageBackbone, source: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a causal language model with its head (float32), and its tokenizer.

    Args:
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
    model = _load(AutoModelForCausalLM, where, extra, config, "language_source")
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **extra)
    except (OSError, ValueError, TypeError) as error:
        raise _unreachable(where, "language_source", error) from None
    return model, tokenizer


def load_vision_encoder(backbone: VisionBackbone, source: str | None = None) -> PreTrainedModel:
    """Return a vision encoder (float32), also out of a whole CLIP or SigLIP model.

    Args:
        source: Hub id or folder; the backbone's own hub id where None.

    Raises:
        ConfigError: There is no source, it cannot be reached, or has another shape.
        CheckpointError: Weights are missing or damaged.
    """
    where, extra = _origin(backbone, source, "vision_source")
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
        return source, {"local_files_only": True} if Path(source).is_dir() else {}
    if backbone.hub_id is None:
        raise ConfigError(
            f"{backbone.name} has no pretrained weights; train it by phase 0, or use "
            f"--set model.{key}=FOLDER"
        )
    return backbone.hub_id, {"revision": backbone.revision}


def _config(where: str, extra: dict[str, Any], key: str) -> Any:
    try:
        return AutoConfig.from_pretrained(where, **extra)
    except (OSError, ValueError) as error:
        raise _unreachable(where, key, error) from None


def _load(auto: Any, where: str, extra: dict[str, Any], config: Any, key: str) -> PreTrainedModel:
    try:
        model, info = auto.from_pretrained(
            where,
            config=config,
            use_safetensors=True,
            output_loading_info=True,
            dtype="float32",
            **extra,
        )
    except (OSError, ValueError) as error:
        raise _unreachable(where, key, error) from None
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{where}: {len(missing)} weights of the {config.model_type} model are missing, first: "
            f"{missing[0]}; give a complete folder by --set model.{key}=FOLDER"
        )
    loaded: PreTrainedModel = model.eval()
    return loaded


def _unreachable(where: str, key: str, error: Exception) -> ConfigError:
    reason = str(error).strip().partition("\n")[0]
    return ConfigError(
        f"cannot load {where} ({reason}); download it where there is a network and use "
        f"--set model.{key}=FOLDER"
    )


def _shape(facts: tuple[Any, ...]) -> str:
    return f"{facts[0]} of {facts[1]} px with patches of {facts[2]}"
