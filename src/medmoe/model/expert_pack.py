"""One expert as a folder of its own: tensors, what they belong to, manifest, signature.

A pack goes into the model that its expert was trained beside, and into no other: the hash of that
base, less all other experts, stands in it. It is signed with Ed25519 where a key is given.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from medmoe.model.experts import ExpertTensors, ModelFiles, shape_of, tensor_hash, tensors_hash
from medmoe.model.experts import list_experts as listed_experts

TENSORS, FACTS, SIGNATURE = "expert.safetensors", "expert.json", "signature.json"
_FIX = "copy the pack again"
_KEYS = "make one by `openssl genpkey -algorithm ed25519`, and `openssl pkey -pubout` of it"
_USE = "Research use only, not a medical device."
_BASE_FACTS = ("base_model", "licences", "data", "data_sha256", "commit", "seed", "phases", "notes")


@dataclass(frozen=True, slots=True)
class Pack:
    """An expert to put into a model.

    Attributes:
        trained_with: The rows of the router that its weight is the softmax over, its own included.
        facts: What the model is to say of its origin.
    """

    name: str
    tensors: ExpertTensors
    trained_with: list[str]
    facts: Mapping[str, Any]


def export_expert(files: ModelFiles, name: str, out: Path, key: Path | None) -> dict[str, Any]:
    """Write an expert's pack, signed where a private key is given; return its facts.

    Args:
        out: A new folder, or that of a pack, which is replaced.
        key: Ed25519, PEM.

    Raises:
        ConfigError: There is no such expert, or the key is none.
        CheckpointError: The folder holds something else than a pack.
    """
    if out.exists() and not (out / FACTS).is_file() and any(out.iterdir()):
        raise CheckpointError(f"{out}: holds files that are no pack; give a new folder by --out")
    signer = None if key is None else _private_key(key)
    tensors, rows = files.expert(name), files.config.rows_of(name)
    (known,) = (entry for entry in listed_experts(files) if entry["name"] == name)
    if gone := sorted({*rows} - {*files.domains}):
        raise ConfigError(
            f"{name} was trained beside {', '.join(gone)}, which is removed from {files.folder}; "
            "export it from the model before"
        )
    base = {k: files.facts[k] for k in _BASE_FACTS if k in files.facts}
    facts = {
        "version": 1,
        **known,
        "base": files.base_hash(n for n in rows if n != name),
        "shape": shape_of(files.config),
        "tensors": {
            n: {"sha256": tensor_hash(t), "shape": list(t.shape), "dtype": str(t.dtype)}
            for n, t in sorted(tensors.items())
        },
        "licence": licence_of(
            files.facts.get("base_model") or {},
            {**(files.facts.get("licences") or {}), **(known["provenance"].get("licences") or {})},
        ),
        "base_provenance": base,
        "use": _USE,
    }
    with committed(out) as staging:
        save_file(tensors, staging / TENSORS, metadata={"format": "pt"})
        write_json(staging / FACTS, facts)
        for part in (files.facts.get("base_model") or {}).values():  # notices that go with weights
            for notice in files.folder.glob(f"{part['name']}.*"):
                shutil.copyfile(notice, staging / notice.name)
        if signer is not None:
            public = signer.public_key().public_bytes_raw().hex()
            signature = signer.sign(_signed(staging)).hex()
            content = {"algorithm": "Ed25519", "public_key": public, "signature": signature}
            write_json(staging / SIGNATURE, content)
    return facts


def read_pack(folder: Path, files: ModelFiles, trusted: Path | None) -> Pack:
    """Return a pack that fits into a model.

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
    facts = json_object(folder / FACTS) or {}
    if trusted is not None:
        _check_signature(folder, trusted)
    try:
        check_content(folder / TENSORS)
        tensors = load_file(folder / TENSORS)
        name, wanted = str(facts["name"]), shape_of(files.config)
        beside = [row for row in facts["trained_with"] if row != name]
        given, base = facts["shape"], facts["base"]
        told = (facts["sha256"], {n: entry["sha256"] for n, entry in facts["tensors"].items()})
    except (KeyError, TypeError, AttributeError, OSError):
        raise CheckpointError(f"{folder}: its {FACTS} is incomplete; {_FIX}") from None
    if told != (tensors_hash(tensors), {n: tensor_hash(t) for n, t in tensors.items()}):
        raise CheckpointError(f"{folder}: its tensors are not those that {FACTS} names; {_FIX}")
    for what, value in wanted.items():
        if given.get(what) != value:
            raise CheckpointError(
                f"{folder}: an expert of {what} {given.get(what)}, and the model has {value}; take "
                "one that was trained on this model"
            )
    if foreign := sorted({*beside} - {*files.domains}):
        raise CheckpointError(
            f"{folder}: {name} was trained beside {', '.join(foreign)}, which the model does not "
            "have; take the model that it was exported from"
        )
    if files.base_hash(beside) != base:
        raise CheckpointError(
            f"{folder}: {name} was trained on another base than this model (the hashes differ); "
            "take the model that it was exported from"
        )
    _check_tensors(folder, tensors, files.expert(beside[0] if beside else files.domains[0]))
    signed = json_object(folder / SIGNATURE) if trusted else None
    came = {
        "pack": entry_of(folder / MANIFEST)["sha256"],
        "signed_by": signed and signed["public_key"],
    }
    return Pack(name, tensors, facts["trained_with"], {**facts["provenance"], "imported": came})


def _check_tensors(folder: Path, tensors: ExpertTensors, like: ExpertTensors) -> None:
    for name in sorted({*tensors} | {*like}):
        pair = [
            f"{t.dtype} {list(t.shape)}" if t is not None else "none"
            for t in (tensors.get(name), like.get(name))
        ]
        if pair[0] != pair[1]:
            raise CheckpointError(f"{folder}: {name} is {pair[0]}, and the model has {pair[1]}")
        if not torch.isfinite(tensors[name]).all():
            raise CheckpointError(f"{folder}: {name} has values that are not finite; {_FIX}")


def _signed(folder: Path) -> bytes:
    """Return what is signed: the SHA-256 and name of every file but manifest and signature."""
    names = sorted(p.name for p in folder.iterdir() if p.name not in (MANIFEST, SIGNATURE))
    return "".join(f"{entry_of(folder / n)['sha256']}  {n}\n" for n in names).encode()


def _check_signature(folder: Path, trusted: Path) -> None:
    from cryptography.exceptions import InvalidSignature

    key, content = _public_key(trusted), json_object(folder / SIGNATURE)
    if content is None:
        raise CheckpointError(f"{folder}: is not signed; leave --trust out to take it all the same")
    try:
        key.verify(bytes.fromhex(content["signature"]), _signed(folder))
    except (InvalidSignature, KeyError, ValueError, TypeError):
        raise CheckpointError(
            f"{folder}: its signature is not one by {trusted}; ask for the right key or pack"
        ) from None


def _private_key(path: Path) -> Any:
    kinds, serialization = _cryptography()
    return _key(
        path, kinds.Ed25519PrivateKey, lambda pem: serialization.load_pem_private_key(pem, None)
    )


def _public_key(path: Path) -> Any:
    kinds, serialization = _cryptography()
    return _key(path, kinds.Ed25519PublicKey, serialization.load_pem_public_key)


def _key(path: Path, kind: type, read: Callable[[bytes], Any]) -> Any:
    try:
        key = read(path.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not readable as a key ({first_line(error)}); {_KEYS}") from None
    if not isinstance(key, kind):
        raise ConfigError(f"{path}: no {kind.__name__}; {_KEYS}")
    return key


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise ConfigError("signatures need more; install it: pip install 'medmoe[sign]'") from None
    return ed25519, serialization
