"""One expert of a model folder: named, hashed, put in, exchanged or taken out.

No model is built and no weight computed: tensors are copied. A new folder is committed only once
hashes have shown that no other tensor changed. A site's folder holds the tensors of its own experts
alone, and names the model that has all others.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file

from medmoe.domains import MEMBERS
from medmoe.errors import CheckpointError, ConfigError, GuardError, first_line, one_of
from medmoe.model.blueprint import meta_model
from medmoe.model.card import CARD, model_card
from medmoe.model.checkpoint import (
    PROCESSOR,
    base_of_site,
    check_replaceable,
    identity,
    provenance,
    read_config,
    refuse_exported,
    tensors_of,
    verify,
)
from medmoe.model.committed import committed, read_manifest, write_json
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.expert_tensors import (
    OWN_TENSORS,
    Tensors,
    by_stored_names,
    owner,
    tensors_hash,
)
from medmoe.model.locate import BASE, CONFIG, PROVENANCE, is_adapter, read_json

_FIX = "copy the model directory again"


@dataclass(frozen=True, slots=True)
class Expert:
    """An expert to put into a model.

    Attributes:
        rows: Of the router, by name, that its weight is the softmax over, its own among them.
        facts: What the model is to say of its origin.
    """

    name: str
    tensors: Tensors
    rows: list[str]
    facts: Mapping[str, Any]


class MoeFolder:
    """The folder of a Med-MoE, whole and with weights of its own.

    Raises:
        CheckpointError: It is not.
    """

    def __init__(self, folder: Path) -> None:
        if is_adapter(folder):
            fix = f"merge it by `medmoe adopt {folder} --out DIR`"
            raise CheckpointError(f"{folder}: an adapter has no experts of its own; {fix}")
        verify(folder)
        refuse_exported(folder)
        self.folder, self.config, self.facts = folder, read_config(folder), provenance(folder)
        if not self.config.moe_layers:
            raise CheckpointError(f"{folder}: a dense model has no experts; give a phase 3 model")
        self.domains, self.removed = self.config.domains or [], self.config.removed_experts or {}
        self.tensors = tensors_of(folder, self.config)

    def expert(self, name: str) -> Tensors:
        """Return the tensors of an expert, with its rows.

        Raises:
            ConfigError: There is none of this name.
        """
        if name not in self.domains:
            raise ConfigError(f"{self.folder}: {one_of(name, self.domains, 'expert')}")
        return {key: tensor for key, tensor in self.tensors.items() if owner(key) == name}

    def base_hash(self, beside: Iterable[str]) -> str:
        """Return a hash of the model with some of its experts alone: what one is trained beside."""
        kept = {None, *beside}
        return tensors_hash({k: t for k, t in self.tensors.items() if owner(k) in kept})

    def experts(self) -> list[dict[str, Any]]:
        """Return of each expert what it is and where it is from; the removed ones last."""
        known, found = self.facts.get("experts") or {}, []
        for name in self.domains:
            tensors = self.expert(name)
            entry = {
                "name": name,
                "modality": list(MEMBERS.get(name, (name,))),
                "layers": self.config.moe_layers,
                "parameters": sum(tensor.numel() for tensor in tensors.values()),
                "sha256": tensors_hash(tensors),
                "trained_with": self.config.rows_of(name),
                "provenance": known.get(name) or {"origin": "trained with the model"},
            }
            found.append(entry)
        return found + [{"name": name, "tokens_go_to": to} for name, to in self.removed.items()]

    def refuse(self, name: str) -> None:
        """Refuse the name of an expert that is here, or whose row is."""
        if name in self.domains:
            fix = "exchange it by `medmoe expert swap`"
            raise ConfigError(f"{self.folder} has an expert {name} already; {fix}")
        if name in self.removed:
            fix = "go on with the model from before"
            raise ConfigError(f"the expert {name} was removed from {self.folder}; {fix}")


def whole_model(folder: Path) -> Path:
    """Return the folder of the whole model behind a folder: of a site its base, else itself."""
    return (base_of_site(folder) if (folder / BASE).is_file() else folder).resolve()


def put_in(
    model: MoeFolder, out: Path, expert: Expert, *, swap: bool = False, base: Path | None = None
) -> dict[str, Any]:
    """Write a model with one expert more; return what changed and what is proven to be the same.

    Args:
        out: May be the model's own folder, which is then replaced at once.
        swap: Its namesake goes.
        base: The whole model that ``out``, a site's folder, is to name; None writes a whole one.

    Raises:
        ConfigError: The name is taken, or none has it; or its rows would change others' weights.
        CheckpointError: Anything else would have changed: nothing is written then.
        GuardError: The disk is full.
    """
    name, own = expert.name, model.expert(expert.name) if swap else Tensors()
    if not swap:
        model.refuse(name)
    beside = [n for n in model.domains if n != name and name in model.config.rows_of(n)]
    same = all(t.equal(expert.tensors[k]) for k, t in own.items() if k.endswith("]"))
    if beside and not same:
        raise ConfigError(
            f"{', '.join(beside)} were trained with the router's row of {name}, and the pack has "
            "another one, which would change their answers; take a pack with the same row"
        )
    tensors, domains = model.tensors | expert.tensors, list(dict.fromkeys([*model.domains, name]))
    what = "exchanged" if swap else "added"
    return _write(model, out, base, tensors, domains, model.removed, expert, what)


def take_out(
    model: MoeFolder, out: Path, name: str, to: str, base: Path | None = None
) -> dict[str, Any]:
    """Write a model without an expert; else as `put_in`.

    Its rows stay where others were trained with them, and where tokens go to the meta expert.

    Args:
        to: ``meta``: its tokens go to the meta expert alone; ``next``: to the next best.

    Raises:
        ConfigError: There is none of this name, too few would be left, or no meta expert.
    """
    own, left = model.expert(name), [n for n in model.domains if n != name]
    if len(left) < (count := model.config.num_experts_per_tok):
        raise ConfigError(f"{model.folder} chooses {count} experts for a token; {name} must stay")
    if to == "meta" and not model.config.meta_expert:
        raise ConfigError(f"{model.folder} has no meta expert; use --to next")
    needed = {row for n in left for row in model.config.rows_of(n)}
    removed = {n: t for n, t in (model.removed | {name: to}).items() if t == "meta" or n in needed}
    gone = {n for n in [*model.removed, name] if n not in removed}
    tensors = {
        k: t
        for k, t in model.tensors.items()
        if owner(k) not in gone and (k not in own or k[-1] == "]")
    }
    expert = Expert(name, {}, [], {})
    return _write(model, out, base, tensors, left, removed, expert, f"removed, to {to}")


def _write(
    model: MoeFolder,
    out: Path,
    base: Path | None,
    tensors: Tensors,
    domains: list[str],
    removed: Mapping[str, str],
    expert: Expert,
    what: str,
) -> dict[str, Any]:
    check_replaceable(out)
    spans = {n: model.config.rows_of(n) for n in domains if n in model.domains}
    spans |= {expert.name: expert.rows} if expert.rows else {}
    as_trained = not removed and all(span == domains for span in spans.values())
    changes = {
        "domains": domains,
        "expert_rows": None if as_trained else spans,
        "removed_experts": dict(removed) or None,
    }
    old, listed = read_json(model.folder / CONFIG), read_manifest(model.folder, _FIX)
    content = {k: v for k, v in (old | changes).items() if v is not None or k in old}
    facts = _facts(model, domains, expert, what)
    with committed(out) as staging:
        for name in listed:
            if ".safetensors" not in name and name != BASE:
                shutil.copyfile(model.folder / name, staging / name)
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (staging / CONFIG).write_text(text, encoding="utf-8")
        config = read_config(staging)
        if base is not None:
            link = {"folder": os.path.relpath(base, out.parent.resolve() / out.name)}
            write_json(staging / BASE, link | {"identity": identity(base)})
        _store(tensors, config, staging, model.folder, base)
        write_json(staging / PROVENANCE, {"domains": domains, "training": facts})
        complete = (staging / PROCESSOR).is_file()
        card = model_card(meta_model(config), facts, complete=complete)
        (staging / CARD).write_text(card, encoding="utf-8")
        told = _proven(model.tensors, tensors_of(staging, config), expert.name)
    after = read_manifest(out, _FIX)
    keys = {k: [old.get(k), v] for k, v in changes.items() if old.get(k) != v}
    other = sorted(name for name in after if after[name] != listed.get(name))
    return {"tensors": told, "config": keys, "files": other}


def _facts(model: MoeFolder, domains: list[str], expert: Expert, what: str) -> dict[str, Any]:
    """Return what the folder says of its training then."""
    old, new = model.facts, expert.facts
    note = f"Expert {expert.name} {what}; all else is that of the model {identity(model.folder)}."
    experts = {**(old.get("experts") or {}), expert.name: dict(new)}
    kinds = [key for key in ("licences", "shared_images") if key in new]
    merged: dict[str, Any] = {key: {**(old.get(key) or {}), **new[key]} for key in kinds}
    merged["notes"] = [*old.get("notes", ()), note]
    merged["experts"] = {n: known for n, known in experts.items() if n in domains and known}
    return old | merged


def _store(
    tensors: Tensors, config: MedMoeConfig, staging: Path, old: Path, base: Path | None
) -> None:
    """Write a site's own tensors, or all by the names that models are loaded by.

    The files are as large as the old ones.
    """
    try:
        if base is not None:
            held = tensors_of(base, read_config(base))
            own = {k: t for k, t in tensors.items() if k not in held or not t.equal(held[k])}
            save_file({k: t.contiguous() for k, t in own.items()}, staging / OWN_TENSORS)
            return
        stored = by_stored_names(tensors, config)
        sizes = [path.stat().st_size for path in old.glob("*.safetensors")]
        largest = max(sizes) if len(sizes) > 1 else sum(t.nbytes for t in stored.values()) + 1
        save_torch_state_dict(stored, staging, max_shard_size=largest)
    except SafetensorError as error:
        raise GuardError(
            f"the weights cannot be written beside {staging} ({first_line(error)}); free some "
            "space: the model is what it was"
        ) from None


def moved(old: Tensors, new: Tensors) -> dict[str, list[str]]:
    """Return by their SHA-256 which tensors came, changed and went, and which are the same."""
    before, after = ({k: tensors_hash({"": t}) for k, t in part.items()} for part in (old, new))
    came, went = sorted(after.keys() - before.keys()), sorted(before.keys() - after.keys())
    changed = sorted(key for key in after.keys() & before.keys() if after[key] != before[key])
    same = sorted(after.keys() - {*came, *changed})
    return {"same": same, "came": came, "changed": changed, "went": went}


def _proven(old: Tensors, new: Tensors, name: str) -> dict[str, Any]:
    """Return what moved, of what stayed how many; refuse what moved and is not of the expert."""
    found = moved(old, new)
    others = (key for kind in ("came", "went", "changed") for key in found[kind])
    if foreign := [key for key in others if owner(key) != name]:
        raise CheckpointError(
            f"{len(foreign)} tensors of other parts would change, first: {foreign[0]}; nothing is "
            "written"
        )
    return found | {"same": len(found["same"])}
