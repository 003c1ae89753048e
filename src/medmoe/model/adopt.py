"""Takes in a folder that another program saved: checked, freed of pickles, given its manifest.

Such folders come from `save_pretrained`, the Trainer, a PEFT merge or the hub; an adapter's folder
is merged onto its base. Pickles are named and left out, never loaded.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from medmoe.errors import CheckpointError, ConfigError
from medmoe.model.adapter import base_of, merged_note, with_adapter
from medmoe.model.card import CARD, model_card
from medmoe.model.checkpoint import (
    PROCESSOR,
    check_content,
    check_fit,
    check_replaceable,
    load_model,
    provenance,
    read_config,
    read_processor,
    save_model,
    verify,
)
from medmoe.model.committed import MANIFEST, committed, write_json
from medmoe.model.locate import (
    PICKLES,
    PROVENANCE,
    find_model,
    folder_of,
    is_adapter,
    refuse_foreign,
)
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.model.processing_medmoe import MedMoeProcessor


@dataclass(frozen=True, slots=True)
class Adopted:
    """What was taken in.

    Attributes:
        domains: Of its experts; empty for a dense model.
        base: Of an adapter: the model that it was merged onto.
        removed: Files that were left out, by name: pickles and code.
    """

    folder: str
    tensors: int
    domains: tuple[str, ...]
    processor: str
    base: str | None
    removed: tuple[str, ...]
    added: tuple[str, ...]


def adopt(
    source: Path | str,
    out: Path | None = None,
    *,
    processor: Path | str | None = None,
    base: Path | str | None = None,
) -> Adopted:
    """Check a folder and make it a model folder that every verb takes.

    Args:
        source: Folder of a model or of a LoRA adapter, or a hub id.
        out: Where the model folder goes; None: it stays where it is.
        processor: Model to take the processor from.
        base: Of an adapter: the model it was trained on, where `adapter_config.json` is wrong.

    Raises:
        CheckpointError: It is no complete model of ours; the line says what is wrong.
        ConfigError: A flag is missing, or does not fit.
    """
    folder = folder_of(source)
    if out is not None:
        check_replaceable(out)
    own = None if processor is None else read_processor(find_model(processor))
    if is_adapter(folder):
        return _merge(folder, out, own, base, processor)
    if base is not None:
        raise ConfigError(f"--base is for an adapter, and {folder} holds a model; leave it out")
    refuse_foreign(folder)
    others = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if out is None:
        _check_in_place(str(source), folder, others)
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
    removed = [p for p in files if p.suffix.lower() in (*PICKLES, ".py")]
    kept = [path for path in files if path not in removed and path.name != MANIFEST]
    _check_files(folder, kept, own is not None)
    read_config(folder)
    model = MedMoeForConditionalGeneration.from_pretrained(
        folder, local_files_only=True, use_safetensors=True
    )
    check_fit(folder, model, own or read_processor(folder))
    target, present = out or folder, {path.name for path in kept}
    with committed(target) as staging:
        for path in kept:
            if out is None:  # the same file, under a second name until the folder is replaced
                os.link(path, staging / path.name)
            else:
                shutil.copyfile(path, staging / path.name)
        if own is not None:
            _save_processor(own, staging)
        if CARD not in present:
            (staging / CARD).write_text(model_card(model, provenance(folder)), encoding="utf-8")
        if PROVENANCE not in present:
            write_json(staging / PROVENANCE, {"domains": model.config.domains, "training": {}})
    verify(target)
    added = {path.name for path in target.iterdir()} - present
    names = tuple(path.name for path in removed)
    return _account(target, model, str(processor or "its own"), None, names, added)


def _check_files(folder: Path, kept: list[Path], other_processor: bool) -> None:
    """Refuse files that are not what their names say, and a folder without weights or processor."""
    for path in kept:
        check_content(path)
    if not any(path.suffix == ".safetensors" for path in kept):
        raise CheckpointError(
            f"{folder}: holds no weights in safetensors, the only form that is read; save the "
            "model again by its save_pretrained"
        )
    if not other_processor and not (folder / PROCESSOR).is_file():
        raise CheckpointError(
            f"{folder}: holds no processor ({PROCESSOR}); take that of the model it was trained "
            "from by --processor MODEL"
        )


def _save_processor(processor: MedMoeProcessor, staging: Path) -> None:
    """Write a processor over what an incomplete one has left: never through a second name."""
    fresh = staging / ".processor"
    processor.save_pretrained(fresh)
    for path in fresh.iterdir():
        path.replace(staging / path.name)
    fresh.rmdir()


def _check_in_place(source: str, folder: Path, others: list[str]) -> None:
    """Refuse to change a folder whose files are not only those of one model."""
    if not Path(source).exists():
        raise ConfigError(f"{source} lies in the hub's cache; give the model a folder by --out DIR")
    states = sorted(path.name for path in folder.glob("optimizer.*"))
    if others or states:
        raise ConfigError(
            f"{folder}: holds {[*others, *states][0]} too, which adopting in place would delete; "
            "give the model a folder of its own by --out DIR"
        )


def _merge(
    folder: Path,
    out: Path | None,
    own: MedMoeProcessor | None,
    base: Path | str | None,
    processor: Path | str | None,
) -> Adopted:
    if out is None:
        raise ConfigError(f"{folder} is an adapter; give the merged model a folder by --out DIR")
    below = base_of(folder) if base is None else find_model(base)
    model, its_processor = load_model(below)
    model = with_adapter(model, folder)
    check_fit(folder, model, own or its_processor)
    facts = provenance(below)
    notes = [*facts.get("notes", []), merged_note(folder)]
    save_model(model, own or its_processor, out, facts | {"notes": notes})
    added = {path.name for path in out.iterdir()}
    return _account(out, model, str(processor or below), str(below), (), added)


def _account(
    folder: Path,
    model: MedMoeForConditionalGeneration,
    processor: str,
    base: str | None,
    removed: tuple[str, ...],
    added: set[str],
) -> Adopted:
    domains = tuple(model.config.domains or ()) if model.config.moe_layers else ()
    tensors, files = len(model.state_dict()), tuple(sorted(added))
    return Adopted(str(folder), tensors, domains, processor, base, removed, files)
