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

import torch
from huggingface_hub.errors import StrictDataclassError
from jinja2 import TemplateError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from medmoe.errors import CheckpointError, first_line
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
from medmoe.model.expert_tensors import (
    OWN_TENSORS,
    Tensors,
    by_stored_names,
    kept_by,
    read_tensors,
)
from medmoe.model.locate import (
    ADAPTER,
    BASE,
    CONFIG,
    EXPORT,
    PICKLES,
    PROVENANCE,
    is_adapter,
    read_json,
    refuse_other,
    training_of,
)
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.model.processing_medmoe import MedMoeProcessor
from medmoe.model.strange_template import check_template

_FIX = "copy the model directory again"
PROCESSOR, _TOKENIZER = "processor_config.json", "tokenizer.json"
_SAFETENSORS, _INDEX = ".safetensors", ".safetensors.index.json"
#: What transformers raises on values that fit nothing: names it does not know, sizes beyond memory.
_BROKEN = (
    *(OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError),
    *(IndexError, MemoryError, OverflowError, ZeroDivisionError, RecursionError),
)
_MAX_REASON = 200
#: What a tokenizer's config may name files by.
_FILES = ("tokenizer_file", "vocab_file", "merges_file")


def save_model(
    model: MedMoeForConditionalGeneration,
    processor: MedMoeProcessor | None,
    directory: Path,
    provenance: Mapping[str, Any],
    dtype: torch.dtype | None = None,
) -> None:
    """Write a complete model directory, replacing an older one only once the new one is whole.

    Args:
        model: Dense or MoE, of any dtype.
        processor: Saved beside the model, so that both are loaded together; None where a converted
            checkpoint has no tokenizer (`load_model` then refuses it, `from_pretrained` does not).
        directory: Where the model stands afterwards; its parents are made.
        provenance: What the model was trained on and how; written beside the domains.
        dtype: What the weights are cast to first, in place; router and check stay in float32.

    Raises:
        CheckpointError: The directory holds something that is no model: it is left alone.
    """
    check_replaceable(directory)
    for name, parameter in model.named_parameters() if dtype else ():
        if not any(part in name for part in model._keep_in_fp32_modules_strict):
            parameter.data = parameter.data.to(dtype)
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


def load_model(
    directory: Path, dtype: str | None = None
) -> tuple[MedMoeForConditionalGeneration, MedMoeProcessor]:
    """Return the model (eval mode) and processor of a verified model directory.

    An adapter's folder gives its base, with the adapter merged in; a site's its base, with the
    site's experts.

    Args:
        dtype: Of the weights, by PyTorch's name; None is the one they were saved in. Router and
            out-of-domain check are float32 in any case.

    Raises:
        CheckpointError: The directory fails `verify`, or a tensor is missing or left over.
        ConfigError: An adapter needs PEFT, which is not installed.
    """
    if is_adapter(directory):
        model, processor = load_model(base_of(directory), dtype)
        return with_adapter(model, directory), processor
    verify(directory)
    refuse_exported(directory)
    processor = read_processor(directory)
    of_site: dict[str, Any] = {}
    if (directory / BASE).is_file():
        config = read_config(directory)
        of_site = {
            "config": config,
            "state_dict": by_stored_names(tensors_of(directory, config), config),
        }
    try:
        model = MedMoeForConditionalGeneration.from_pretrained(
            None if of_site else directory, local_files_only=True, dtype=dtype or "auto", **of_site
        )
    except _BROKEN as error:
        reason = " ".join(str(error).split())[:_MAX_REASON]
        raise CheckpointError(
            f"{directory}: its config and weights give no model ({type(error).__name__}: "
            f"{reason}); {_FIX}"
        ) from None
    check_fit(directory, model, processor)
    return model.eval(), processor


def tensors_of(directory: Path, config: MedMoeConfig) -> Tensors:
    """Return the tensors of a model folder by names of experts; of a site's with its base's."""
    if not (directory / BASE).is_file():
        return read_tensors(directory, config)
    base = base_of_site(directory)
    tensors = read_tensors(base, read_config(base)) | load_file(directory / OWN_TENSORS)
    return kept_by(config, tensors)


def base_of_site(directory: Path) -> Path:
    """Return the folder of the model that a site's experts belong to.

    Raises:
        CheckpointError: It is gone, or another model stands there.
    """
    named = read_json(directory / BASE)
    base, fix = directory / str(named.get("folder")), "put the model that it was made beside there"
    if not (base / MANIFEST).is_file():
        raise CheckpointError(f"{directory}: its base {base.resolve()} is gone; {fix} again")
    if identity(base) != named.get("identity"):
        raise CheckpointError(f"{directory}: its base {base.resolve()} is another model now; {fix}")
    return base


def refuse_exported(directory: Path) -> None:
    """Refuse a folder of exported graphs where a model's own weights are needed.

    Raises:
        CheckpointError: It is one.
    """
    if (directory / EXPORT).is_file():
        raise CheckpointError(
            f"{directory}: holds exported graphs, which ask, chat, eval and serve run by "
            "themselves; give the model that it was exported from"
        )


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
        # Of a template that is broken this is the first use.
        conversation = [{"role": "user", "content": [{"type": "text", "text": "why?"}]}]
        if processor.chat_template:
            check_template(processor.chat_template)
            processor.apply_chat_template(conversation, add_generation_prompt=True)
    except (*_BROKEN, CheckpointError, TemplateError) as error:
        raise CheckpointError(
            f"{directory}: no usable processor ({first_line(error)}); save the model with its "
            "processor"
        ) from None
    return processor


def check_fit(folder: Path, model: MedMoeForConditionalGeneration, processor: Any) -> None:
    """Refuse a processor that writes other ids, or another number of them, than the model reads.

    Raises:
        CheckpointError: Names the folder, the value and what the model has.
    """
    config = model.config
    counted = processor._get_num_multimodal_tokens(image_sizes=[(1, 1)])["num_image_tokens"][0]
    rows = config.text_config.vocab_size
    facts = (
        ("id of the image token", processor.image_token_id, config.image_token_id),
        ("number of image tokens", counted, config.image_seq_length),
        ("longest id", max(rows, len(processor.tokenizer)), max(rows, config.image_token_id + 1)),
    )
    for what, given, wanted in facts:
        if given != wanted:
            raise CheckpointError(
                f"{folder}: the processor does not fit the model, {what} {given} where the model "
                f"has {wanted}; take that of the model it was trained from by --processor MODEL"
            )


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
    return provenance(base_of(directory)) if is_adapter(directory) else training_of(directory)


def verify(directory: Path) -> None:
    """Check a model directory against its manifest without running anything in it.

    Of an adapter its base is checked, and that its own files are there; of a site both.

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
        # A graph's weights end like old pickles, but are read as plain bytes.
        graph = (directory / EXPORT).is_file() and path.with_suffix(".xml").name in listed
        if path.suffix.lower() in PICKLES and not graph:
            raise CheckpointError(f"{path}: pickle files are refused; use safetensors")
    check_files(directory, listed, _FIX)
    for name in listed:
        check_content(directory / name)
        if name.endswith(_INDEX):
            _check_index(directory / name, listed)
    weights = sum(
        (directory / name).stat().st_size
        for name in listed
        if name.endswith((_SAFETENSORS, *PICKLES))
    )
    if BASE in listed:
        verify(base := base_of_site(directory))
        weights += sum(path.stat().st_size for path in base.glob(f"*{_SAFETENSORS}"))
    _check_sizes(directory / CONFIG, read_json(directory / CONFIG), weights)


def check_content(path: Path) -> None:
    """Refuse JSON that names foreign code or files, and weights whose header is no whole one.

    Raises:
        CheckpointError: The file is one of these.
    """
    if path.suffix == ".json":
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            foreign = _foreign(content) if path.name != _TOKENIZER else None
        except (ValueError, RecursionError):
            raise CheckpointError(f"{path}: not readable as JSON; copy it again") from None
        if foreign is not None:
            raise CheckpointError(f"{path}: {foreign} is refused; remove it")
    if path.suffix == _SAFETENSORS:
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise CheckpointError(f"{path}: damaged weights ({error}); copy it again") from None


def _foreign(content: Any) -> str | None:
    """Return what in JSON names code or a file that is not of the folder, None where nothing does.

    Attention may come from a kernel of the hub, by a name with a slash, which is code.
    """
    if isinstance(content, list):
        return next(filter(None, map(_foreign, content)), None)
    if not isinstance(content, dict):
        return None
    for key, value in content.items():
        if key == "auto_map":
            return "auto_map (foreign code)"
        names = value.values() if isinstance(value, dict) else [value]
        if key.endswith("attn_implementation") and any("/" in str(name) for name in names):
            return f"{key} {value!r} (a kernel of the hub, foreign code)"
        if key in _FILES and isinstance(value, str) and Path(value).name != value:
            return f"{key} {value!r} (a file elsewhere)"
        if (found := _foreign(value)) is not None:
            return found
    return None


def _check_index(path: Path, listed: Mapping[str, Any]) -> None:
    """Refuse an index of weights that names another file than those of the folder."""
    places = read_json(path).get("weight_map")
    files = places.values() if isinstance(places, dict) else [None]
    for name in files:
        if not isinstance(name, str) or name not in listed:
            raise CheckpointError(f"{path}: names {name!r}, which is not in the manifest; {_FIX}")


def _check_sizes(path: Path, config: Mapping[str, Any], weights: int) -> None:
    """Refuse sizes that the weights cannot have: each value of theirs takes a byte or more."""
    width = config.get("hidden_size")
    for name in ("vocab_size", "intermediate_size", "num_hidden_layers"):
        size = config.get(name)
        if isinstance(width, int) and isinstance(size, int) and width * size > weights:
            raise CheckpointError(
                f"{path}: hidden_size {width:,} and {name} {size:,} give more values than the "
                f"{weights:,} bytes of weights hold; {_FIX}"
            )
    for part in config.values():
        if isinstance(part, dict):
            _check_sizes(path, part, weights)
