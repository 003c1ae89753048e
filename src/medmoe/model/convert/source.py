"""Reads the weights of foreign checkpoint folders: plain tensors, nothing that could run code.

This is the one place where a pickle is opened, and only for tensors (torch's ``weights_only``).
It knows no architecture: what the tensors mean is said elsewhere.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from medmoe.errors import CheckpointError, ConfigError, first_few
from medmoe.model.locate import read_json

#: In the order in which transformers looks for them.
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_INDEX = ".index.json"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: So many names stand in an error line; the others are counted.
_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Weights:
    """The tensors of a checkpoint, by name, and the files they came from."""

    tensors: dict[str, Tensor]
    files: tuple[str, ...]


def read_weights(folder: Path) -> Weights:
    """Return all tensors of a checkpoint folder: safetensors before pickles, whole before sharded.

    Raises:
        CheckpointError: There are no weights, a shard is missing or damaged, or a file holds
            something other than tensors.
    """
    for name in _WEIGHT_FILES:
        if (folder / name).is_file():
            return Weights(read_tensors(folder / name), (name,))
        if (folder / f"{name}{_INDEX}").is_file():
            return _read_shards(folder, f"{name}{_INDEX}")
    raise CheckpointError(
        f"{folder}: no {' and no '.join(_WEIGHT_FILES)}, whole or sharded; "
        "give the folder of a whole checkpoint"
    )


def _read_shards(folder: Path, index: str) -> Weights:
    listed = read_json(folder / index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(v, str) for v in listed.values()):
        raise CheckpointError(f"{folder / index}: has no weight_map of names; copy it again")
    files = tuple(sorted(set(listed.values())))
    tensors: dict[str, Tensor] = {}
    for name in files:
        if Path(name).name != name:
            raise CheckpointError(f"{folder / index}: names {name!r}, a file of another folder")
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder / name}: missing shard ({index} lists it); copy the checkpoint again"
            )
        shard = read_tensors(folder / name)
        twice = sorted(tensors.keys() & shard.keys())
        if twice:
            raise CheckpointError(f"{folder / name}: {shown(twice)} stands in another shard too")
        tensors |= shard
    absent = sorted(listed.keys() - tensors.keys())
    if absent:
        raise CheckpointError(
            f"{folder / listed[absent[0]]}: lacks {shown(absent)} that {index} lists; "
            "copy the checkpoint again"
        )
    return Weights(tensors, files)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one file: ``.safetensors``, else a pickle of plain tensors.

    Raises:
        CheckpointError: The file is missing, damaged, or holds something other than tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give a .safetensors, .bin or .pth file")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise CheckpointError(f"{path}: damaged weights ({error}); copy it again") from None
    return _read_pickle(path)


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        # Mapped into memory where its format allows it: a large file is not read twice.
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except Exception as error:  # torch has no error of its own, and broken bytes raise any
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it names {foreign.group(1)}" if foreign else "it is damaged, or no torch file"
        raise CheckpointError(
            f"{path}: not a file of plain tensors ({reason}); nothing of it was run: "
            "copy it again, or save the tensors as safetensors"
        ) from None
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        kinds = (
            {type(value).__name__ for value in content.values()}
            if isinstance(content, dict)
            else {}
        )
        what = ", ".join(sorted(kinds)) or type(content).__name__
        raise CheckpointError(
            f"{path}: not a dictionary of plain tensors (it holds {what}); save the state_dict"
        )
    return {str(name): tensor.detach() for name, tensor in content.items()}


def check_tensors(
    source: Path,
    tensors: Mapping[str, Tensor],
    wanted: Mapping[str, Sequence[int]],
    whose: str,
) -> None:
    """Refuse a set of tensors that is not exactly the one wanted, or is not finite.

    Args:
        source: Named in the error.
        wanted: The shape of each.
        whose: What asks for these shapes; named in the error.

    Raises:
        CheckpointError: Names what is missing, left over, misshapen (with both shapes), of
            another kind than floating point, or not finite.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    misshapen = [
        f"{name} is {shapes[name]}, {whose} needs {tuple(shape)}"
        for name, shape in sorted(wanted.items())
        if name in shapes and shapes[name] != tuple(shape)
    ]
    missing, unexpected = wanted.keys() - shapes.keys(), shapes.keys() - wanted.keys()
    refuse_misfits(source, whose, missing, unexpected, misshapen)
    check_finite(source, tensors)


def refuse_misfits(
    source: Path,
    whose: str,
    missing: Iterable[str],
    unexpected: Iterable[str],
    misshapen: Iterable[str],
) -> None:
    """Refuse tensors, if there are any that do not fit what they are for."""
    kinds = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    listed = {what: sorted(names) for what, names in kinds.items()}
    faults = [f"{len(names)} {what}: {shown(names)}" for what, names in listed.items() if names]
    if faults:
        raise CheckpointError(f"{source}: tensors do not fit {whose}: {'; '.join(faults)}")


def check_finite(source: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are no plain floating-point numbers, or not all finite.

    Raises:
        CheckpointError: Names the tensors.
    """
    odd = [f"{name} ({t.dtype})" for name, t in tensors.items() if t.dtype not in _FLOATS]
    if odd:
        raise CheckpointError(
            f"{source}: not of 16, 32 or 64 floating-point bits: {shown(sorted(odd))}; "
            "take the checkpoint before it was quantised"
        )
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(
            f"{source}: not finite (NaN or infinite): {shown(sorted(broken))}; "
            "take an earlier checkpoint"
        )


def shown(names: Iterable[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    return first_few(names, _SHOWN)


def file_of(source: str, suffix: str) -> Path | None:
    """Return the file of a suffix that a source is, or that its folder holds in place of a model.

    Raises:
        ConfigError: The folder holds several.
    """
    path = Path(source)
    files = [path] if path.suffix == suffix else []
    if path.is_dir() and not (path / "config.json").is_file():
        files = sorted(path.glob(f"*{suffix}"))
    if len(files) > 1:
        raise ConfigError(
            f"{path} holds {len(files)} {suffix} files, first: {files[0].name}; name one"
        )
    return files[0] if files else None
