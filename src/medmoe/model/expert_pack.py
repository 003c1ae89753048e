"""One expert as a folder of its own: tensors, what they belong to, manifest, signature.

A pack goes into the model that its expert was trained beside, and into no other: the hash of that
base, less all other experts, stands in it. It is signed with Ed25519 where a key is given.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from medmoe.errors import CheckpointError, ConfigError, first_line
from medmoe.files import json_object
from medmoe.model.card import licence_of
from medmoe.model.checkpoint import check_content
from medmoe.model.committed import (
    MANIFEST,
    check_files,
    committed,
    entry_of,
    read_manifest,
    write_json,
)
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.expert_tensors import Tensors, renamed, tensors_hash
from medmoe.model.experts import Expert, MoeFolder
from medmoe.model.moe import activation_of
from medmoe.notice import RESEARCH_ONLY

TENSORS, FACTS, SIGNATURE = "expert.safetensors", "expert.json", "signature.json"
_FIX = "copy the pack again"
_KEYS = "make one by `openssl genpkey -algorithm ed25519`, and `openssl pkey -pubout` of it"
_OF_BASE = ("base_model", "licences", "data", "data_sha256", "commit", "seed", "phases", "notes")


def export_expert(
    model: MoeFolder,
    name: str,
    out: Path,
    key: Path | None,
    evaluation: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write an expert's pack, signed where a private key is given; return its facts.

    Args:
        out: A new folder, or that of a pack, which is replaced.
        key: Ed25519, PEM.
        evaluation: What `medmoe.evaluation.expert_gate` found; None where it was not asked.

    Raises:
        ConfigError: There is no such expert, one it was trained beside is gone, or the key is none.
        CheckpointError: The folder holds something else than a pack.
    """
    if out.exists() and not (out / FACTS).is_file() and any(out.iterdir()):
        raise CheckpointError(f"{out}: holds files that are no pack; give a new folder by --out")
    signer = None if key is None else _key(key, "private")
    tensors, rows, known = model.expert(name), model.config.rows_of(name), model.facts
    if gone := sorted({*rows} - {*model.domains}):
        raise ConfigError(
            f"{name} was trained beside {gone[0]}, which is gone; take the model before"
        )
    (entry,) = (entry for entry in model.experts() if entry["name"] == name)
    base_model = known.get("base_model") or {}
    licences = {**(known.get("licences") or {}), **(entry["provenance"].get("licences") or {})}
    facts = {
        **entry,
        "version": 1,
        "base": model.base_hash({*rows} - {name}),
        "shape": shape_of(model.config),
        "evaluation": evaluation,
        "licence": licence_of(base_model, licences),
        "base_provenance": {k: known[k] for k in _OF_BASE if k in known},
        "use": RESEARCH_ONLY,
    }
    with committed(out) as staging:
        save_file({k: t.contiguous() for k, t in tensors.items()}, staging / TENSORS)
        write_json(staging / FACTS, facts)
        for part in base_model.values():  # its weights go with their notices
            for notice in model.folder.glob(f"{part['name']}.*"):
                shutil.copyfile(notice, staging / notice.name)
        if signer is not None:
            public = signer.public_key().public_bytes_raw().hex()
            content = {"public_key": public, "signature": signer.sign(_signed(staging)).hex()}
            write_json(staging / SIGNATURE, {"algorithm": "Ed25519", **content})
    return facts


def shape_of(config: MedMoeConfig) -> dict[str, Any]:
    """Return what an expert's function follows from, apart from its weights."""
    text = config.text_config
    names = ("moe_layers", "num_experts_per_tok", "router_layers", "routing", "meta_expert")
    return {
        "activation": activation_of(text),
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        **{name: getattr(config, name) for name in names},
    }


def read_pack(folder: Path, model: MoeFolder, trusted: Path | None) -> Expert:
    """Return the expert of a pack that fits into a model.

    Args:
        trusted: The public key that must have signed it, Ed25519, PEM; None takes any pack.

    Raises:
        CheckpointError: It is damaged, of another base, shape or activation, or not signed by that
            key; the line says which.
        ConfigError: The key is none.
    """
    if not (folder / MANIFEST).is_file() or not (folder / FACTS).is_file():
        raise CheckpointError(f"{folder}: no pack of an expert; make one by `medmoe expert export`")
    check_files(folder, read_manifest(folder, _FIX), _FIX)
    signed_by = None if trusted is None else _signer(folder, trusted)
    facts = json_object(folder / FACTS) or {}
    try:
        check_content(folder / TENSORS)
        tensors, name = load_file(folder / TENSORS), str(facts["name"])
        rows, shape = [*map(str, facts["trained_with"])], dict(facts["shape"])
        base, sha256, origin = facts["base"], facts["sha256"], dict(facts["provenance"])
    except (KeyError, TypeError, ValueError, OSError):
        raise CheckpointError(f"{folder}: its {FACTS} is incomplete; {_FIX}") from None
    if sha256 != tensors_hash(tensors):
        raise CheckpointError(f"{folder}: its tensors are not those that {FACTS} names; {_FIX}")
    for what, value in shape_of(model.config).items():
        if shape.get(what) != value:
            raise CheckpointError(
                f"{folder}: an expert of {what} {shape.get(what)}, and the model has {value}"
            )
    beside = {*rows} - {name}
    foreign = sorted(beside - {*model.domains})
    if name not in rows or foreign or model.base_hash(beside) != base:
        what = f"beside {foreign[0]}, which is not here" if foreign else "on another base"
        raise CheckpointError(
            f"{folder}: {name} was trained {what}; take the model that it was exported from"
        )
    _check(folder, name, tensors, model)
    came = {"pack": entry_of(folder / MANIFEST)["sha256"], "signed_by": signed_by}
    came["evaluation"] = facts.get("evaluation")
    return Expert(name, tensors, rows, {**origin, "imported": came})


def _check(folder: Path, name: str, tensors: Tensors, model: MoeFolder) -> None:
    first = model.domains[0]
    like = {renamed(key, first, name): tensor for key, tensor in model.expert(first).items()}
    kinds = [{k: (t.dtype, t.shape) for k, t in part.items()} for part in (tensors, like)]
    if kinds[0] != kinds[1] or not all(torch.isfinite(t).all() for t in tensors.values()):
        raise CheckpointError(
            f"{folder}: its tensors have other names, types or shapes than the model's experts, or "
            "are not finite; take a pack of this model"
        )


def _signed(folder: Path) -> bytes:
    """Return what is signed: the SHA-256 and name of every file but manifest and signature."""
    names = sorted(p.name for p in folder.iterdir() if p.name not in (MANIFEST, SIGNATURE))
    return "".join(f"{entry_of(folder / n)['sha256']}  {n}\n" for n in names).encode()


def _signer(folder: Path, trusted: Path) -> str:
    """Return the key that has signed a pack, if it is the trusted one."""
    key, content = _key(trusted, "public"), json_object(folder / SIGNATURE)
    from cryptography.exceptions import InvalidSignature

    if content is None:
        raise CheckpointError(f"{folder}: is not signed; leave --trust out to take it all the same")
    try:
        key.verify(bytes.fromhex(content["signature"]), _signed(folder))
    except (InvalidSignature, KeyError, ValueError, TypeError):
        raise CheckpointError(
            f"{folder}: its signature is not one by {trusted}; ask for the right key or pack"
        ) from None
    return str(key.public_bytes_raw().hex())


def _key(path: Path, kind: str) -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise ConfigError("signatures need more; install it: pip install 'medmoe[sign]'") from None
    read: Callable[..., Any] = getattr(serialization, f"load_pem_{kind}_key")
    try:
        key = read(path.read_bytes(), *([None] if kind == "private" else []))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not readable as a key ({first_line(error)}); {_KEYS}") from None
    if not isinstance(key, getattr(ed25519, f"Ed25519{kind.title()}Key")):
        raise ConfigError(f"{path}: no {kind} Ed25519 key; {_KEYS}")
    return key
