"""Tensors of a model folder by names that do not depend on the experts' order.

``….experts.ct.up_proj.weight``, and for a row of a router ``….gate.fc1.bias[ct]``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.hashes import take_in

#: What a site's folder holds of weights.
OWN_TENSORS = "experts.safetensors"
_STORED = re.compile(r"(.*\.mlp\.experts\.)(\d+)(\..+)")
_OWNED = re.compile(r"\.mlp\.experts\.([^.]+)\.|\[(.+)\]$")
Tensors = dict[str, Tensor]


def owner(key: str) -> str | None:
    """Return the expert that a tensor belongs to, None for all others."""
    match = _OWNED.search(key)
    return match and (match[1] or match[2])


def renamed(key: str, old: str, new: str) -> str:
    """Return the name of another expert's tensor in the same place."""
    return key.replace(f".experts.{old}.", f".experts.{new}.").replace(f"[{old}]", f"[{new}]")


def tensors_hash(tensors: Tensors) -> str:
    """Return the SHA-256 of tensors: names, types, shapes and bytes, in any order."""
    digest = hashlib.sha256()
    take_in(digest, sorted(tensors.items()))
    return digest.hexdigest()


def read_tensors(folder: Path, config: MedMoeConfig) -> Tensors:
    """Return the tensors of a whole model's folder, by these names."""
    last, found = f".mlp.gate.fc{config.router_layers}.", Tensors()
    for path in sorted(folder.glob("*.safetensors")):
        for key, tensor in load_file(path).items():
            if match := _STORED.match(key):
                name = (config.domains or [])[int(match[2])]
                found[f"{match[1]}{name}{match[3]}"] = tensor
            elif last in key:
                rows = zip(config.router_rows, tensor, strict=True)
                found |= {f"{key}[{row}]": part for row, part in rows}
            else:
                found[key] = tensor
    return found


def kept_by(config: MedMoeConfig, tensors: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors that a model of this config has: experts of its own, and its rows."""
    names = {False: {None, *(config.domains or [])}, True: {None, *config.router_rows}}
    return {k: t for k, t in tensors.items() if owner(k) in names[k.endswith("]")]}


def by_stored_names(tensors: Mapping[str, Tensor], config: MedMoeConfig) -> Tensors:
    """Return tensors by the names that models are loaded by: numbered experts, rows together."""
    stored, order = Tensors(), config.domains or []
    for key, tensor in tensors.items():
        name = owner(key)
        if key.endswith("]"):
            whole = key.partition("[")[0]
            stored[whole] = torch.stack([tensors[f"{whole}[{row}]"] for row in config.router_rows])
        else:
            stored[renamed(key, name, str(order.index(name))) if name else key] = tensor
    return stored
