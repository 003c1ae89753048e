"""A model directory on disk: safetensors, config, processor, provenance and a SHA-256 manifest.

Saving is all or nothing (staging directory, fsync, manifest last, rename). Loading verifies the
manifest first and refuses what could run code or hide a loss: pickles, ``auto_map``, a wrong hash,
a missing or unlisted file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medmoe.errors import CheckpointError
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.model.processing_medmoe import MedMoeProcessor

MANIFEST = "MANIFEST.json"
PROVENANCE = "medmoe.json"
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}


def save_model(
    model: MedMoeForConditionalGeneration,
    processor: MedMoeProcessor,
    directory: Path,
    provenance: Mapping[str, Any],
) -> None:
    """Write a complete model directory, replacing an older one only once the new one is whole.

    Args:
        model: Dense or MoE, of any dtype.
        processor: Saved beside the model, so that both are loaded together.
        directory: Where the model stands afterwards; its parents are made.
        provenance: What the model was trained on and how; written beside the domains.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = directory.with_name(f".{directory.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    model.save_pretrained(staging)
    processor.save_pretrained(staging)
    facts = {"domains": model.config.domains, "training": dict(provenance)}
    (staging / PROVENANCE).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    files = {path.name: _entry(path) for path in sorted(staging.iterdir())}
    manifest = json.dumps({"version": 1, "files": files}, indent=1, sort_keys=True)
    (staging / MANIFEST).write_text(manifest + "\n")
    for path in [*staging.iterdir(), staging]:
        _fsync(path)
    _replace_directory(staging, directory)


def load_model(directory: Path) -> tuple[MedMoeForConditionalGeneration, MedMoeProcessor]:
    """Return the model (eval mode) and processor of a verified model directory.

    Raises:
        CheckpointError: The directory fails `verify`, or a tensor is missing or left over.
    """
    verify(directory)
    model = MedMoeForConditionalGeneration.from_pretrained(directory, local_files_only=True)
    processor = MedMoeProcessor.from_pretrained(directory, local_files_only=True)
    return model.eval(), processor


def verify(directory: Path) -> None:
    """Check a model directory against its manifest without running anything in it.

    Raises:
        CheckpointError: Names the offending file and what to do.
    """
    manifest = directory / MANIFEST
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such model directory; give the folder of a model")
    if not manifest.is_file():
        raise CheckpointError(
            f"{directory}: no {MANIFEST}; this is not a finished medmoe model directory "
            "(the model/ folder of a run is)"
        )
    listed = _read_manifest(manifest)
    present = {path.name for path in directory.iterdir()} - {MANIFEST}
    for name in sorted(present):
        if Path(name).suffix in _PICKLES:
            raise CheckpointError(f"{directory / name}: pickle files are refused; use safetensors")
    for name in sorted(set(listed) ^ present):
        state = "missing" if name in listed else "not in the manifest"
        raise CheckpointError(f"{directory / name}: {state}; copy the model directory again")
    for name, entry in listed.items():
        if _entry(directory / name) != entry:
            raise CheckpointError(
                f"{directory / name}: its SHA-256 differs from {MANIFEST}; copy it again"
            )
    if "auto_map" in json.loads((directory / "config.json").read_text()):
        raise CheckpointError(f"{directory / 'config.json'}: auto_map (foreign code) is refused")


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        files = json.loads(path.read_text())["files"]
        assert isinstance(files, dict)
    except (ValueError, KeyError, TypeError, AssertionError):
        raise CheckpointError(f"{path}: not a manifest; copy the model directory again") from None
    if "config.json" not in files:
        raise CheckpointError(f"{path}: lists no config.json; copy the model directory again")
    return files


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace_directory(staging: Path, directory: Path) -> None:
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    staging.rename(directory)
    _fsync(directory.parent)
    shutil.rmtree(old, ignore_errors=True)
