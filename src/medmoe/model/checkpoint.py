"""A model directory on disk: safetensors, config, processor, provenance, card, SHA-256 manifest.

Saving is all or nothing (staging directory, fsync, manifest last, rename). Loading verifies the
manifest first and refuses what could run code or hide a loss: pickles, ``auto_map``, a wrong hash,
a missing or unlisted file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open

from medmoe.errors import CheckpointError
from medmoe.model.adapter import WEIGHTS, base_of, check_adapter, with_adapter
from medmoe.model.card import CARD, model_card
from medmoe.model.committed import (
    MANIFEST,
    check_files,
    committed,
    read_manifest,
    write_json,
)
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.locate import (
    ADAPTER,
    CONFIG,
    PICKLES,
    PROVENANCE,
    is_adapter,
    read_json,
    read_or_empty,
    refuse_other,
)
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.model.processing_medmoe import MedMoeProcessor

_FIX = "copy the model directory again"
PROCESSOR = "processor_config.json"
_SAFETENSORS = ".safetensors"


def save_model(
    model: MedMoeForConditionalGeneration,
    processor: MedMoeProcessor | None,
    directory: Path,
    provenance: Mapping[str, Any],
) -> None:
    """Write a complete model directory, replacing an older one only once the new one is whole.

    Args:
        model: Dense or MoE, of any dtype.
        processor: Saved beside the model, so that both are loaded together; None where a converted
            checkpoint has no tokenizer (`load_model` then refuses it, `from_pretrained` does not).
        directory: Where the model stands afterwards; its parents are made.
        provenance: What the model was trained on and how; written beside the domains.

    Raises:
        CheckpointError: The directory holds something that is no model: it is left alone.
    """
    check_replaceable(directory)
    with committed(directory) as staging:
        model.save_pretrained(staging)
        if processor is not None:
            processor.save_pretrained(staging)
        card = model_card(model, provenance, complete=processor is not None)
        (staging / CARD).write_text(card, encoding="utf-8")
        facts = {"domains": model.config.domains, "training": dict(provenance)}
        write_json(staging / PROVENANCE, facts)


def check_replaceable(directory: Path) -> None:
    """Refuse a directory that a model may not be written over.

    Raises:
        CheckpointError: The directory holds something that is no model.
    """
    if directory.exists() and not (directory / MANIFEST).is_file() and any(directory.iterdir()):
        raise CheckpointError(
            f"{directory}: holds files but no {MANIFEST}, so it is no model to replace; "
            "give an empty or a new directory"
        )


def load_model(directory: Path) -> tuple[MedMoeForConditionalGeneration, MedMoeProcessor]:
    """Return the model (eval mode) and processor of a verified model directory.

    An adapter's folder gives its base, with the adapter merged in.

    Raises:
        CheckpointError: The directory fails `verify`, or a tensor is missing or left over.
        ConfigError: An adapter needs PEFT, which is not installed.
    """
    if is_adapter(directory):
        model, processor = load_model(base_of(directory))
        return with_adapter(model, directory), processor
    verify(directory)
    processor = read_processor(directory)
    model = MedMoeForConditionalGeneration.from_pretrained(directory, local_files_only=True)
    return model.eval(), processor


def read_processor(directory: Path) -> MedMoeProcessor:
    """Return the processor of a model directory.

    Raises:
        CheckpointError: There is none, or it cannot be used.
    """
    if not (directory / PROCESSOR).is_file():
        raise CheckpointError(
            f"{directory}: no usable processor (it has no {PROCESSOR}); save the model with its "
            "processor, or convert it again with the tokenizer in the checkpoint's folder"
        )
    try:
        processor: MedMoeProcessor = MedMoeProcessor.from_pretrained(
            directory, local_files_only=True
        )
    except (OSError, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{directory}: no usable processor ({reason}); save the model with its processor"
        ) from None
    return processor


def identity(directory: Path) -> str:
    """Return the hash that tells a model from others: of its manifest, of an adapter also its own.

    Raises:
        CheckpointError: A file of it cannot be read.
    """
    names = (ADAPTER, WEIGHTS) if is_adapter(directory) else (MANIFEST,)
    digest = hashlib.sha256(identity(base_of(directory)).encode() if is_adapter(directory) else b"")
    for name in names:
        try:
            digest.update((directory / name).read_bytes())
        except OSError:
            raise CheckpointError(
                f"{directory}: no {name}; give the model/ folder of a run"
            ) from None
    return digest.hexdigest()


def read_config(directory: Path) -> MedMoeConfig:
    """Return the configuration of a model folder, without its weights or its manifest.

    Raises:
        CheckpointError: There is no config.json, or it is not one of ours.
    """
    if is_adapter(directory):
        return read_config(base_of(directory))
    path = directory / CONFIG
    content = read_json(path, "a model")
    kind = content.get("model_type")
    if kind != MedMoeConfig.model_type:
        raise CheckpointError(
            f"{path}: describes a model of type {kind!r}, not {MedMoeConfig.model_type!r}; "
            "give the folder of a medmoe model"
        )
    try:
        config: MedMoeConfig = MedMoeConfig.from_dict(content)
    except (StrictDataclassError, TypeError, ValueError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: not a complete config ({reason}); copy it again") from None
    return config


def provenance(directory: Path) -> dict[str, Any]:
    """Return what a model directory says about its training; empty where it says nothing."""
    if is_adapter(directory):
        return provenance(base_of(directory))
    training = read_or_empty(directory / PROVENANCE).get("training")
    return training if isinstance(training, dict) else {}


def verify(directory: Path) -> None:
    """Check a model directory against its manifest without running anything in it.

    Of an adapter its base is checked, and that its own files are there.

    Raises:
        CheckpointError: Names the offending file and what to do.
    """
    if is_adapter(directory):
        check_adapter(directory)
        return verify(base_of(directory))
    refuse_other(directory)
    listed = read_manifest(directory, _FIX)
    if CONFIG not in listed:
        raise CheckpointError(f"{directory / MANIFEST}: lists no {CONFIG}; {_FIX}")
    for path in sorted(directory.iterdir()):
        if path.suffix.lower() in PICKLES:
            raise CheckpointError(f"{path}: pickle files are refused; use safetensors")
    check_files(directory, listed, _FIX)
    for name in listed:
        check_content(directory / name)


def check_content(path: Path) -> None:
    """Refuse JSON that names foreign code, and weights whose header does not fit the file.

    Raises:
        CheckpointError: The file is one of these.
    """
    if path.suffix == ".json":
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise CheckpointError(f"{path}: not readable as JSON; copy it again") from None
        if _has_key(content, "auto_map"):
            raise CheckpointError(f"{path}: auto_map (foreign code) is refused; remove it")
    if path.suffix == _SAFETENSORS:
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise CheckpointError(f"{path}: damaged weights ({error}); copy it again") from None


def _has_key(content: Any, key: str) -> bool:
    if isinstance(content, dict):
        return key in content or any(_has_key(value, key) for value in content.values())
    return isinstance(content, list) and any(_has_key(value, key) for value in content)
