"""One expert of a model folder: named, hashed, put in, exchanged or taken out, file by file.

No model is built. What does not change is copied tensor by tensor, and the new folder is committed
only once a hash of every other tensor has shown that its bytes are the same.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from medmoe.domains import MEMBERS
from medmoe.errors import CheckpointError, ConfigError, GuardError, first_line, one_of
from medmoe.model.blueprint import meta_model
from medmoe.model.card import CARD, model_card
from medmoe.model.checkpoint import PROCESSOR, provenance, read_config, refuse_exported, verify
from medmoe.model.committed import committed, read_manifest, write_json
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.hashes import take_in
from medmoe.model.locate import CONFIG, PROVENANCE, is_adapter, read_json
from medmoe.model.moe import activation_of

_EXPERT = re.compile(r"(.*\.layers\.(\d+)\.mlp\.)experts\.(\d+)\.(.+)")
_INDEX = ".safetensors.index.json"
_FIX = "copy the model directory again"
#: Name of a tensor → that of the old folder whose bytes it has, or its new content.
Layout = dict[str, str | Tensor]
#: Tensors of one expert, by ``layers.N.<weight of its FFN>`` and ``layers.N.router.weight`` (1, D)
#: and ``….bias`` (1): its row of each layer.
ExpertTensors = Mapping[str, Tensor]


class ModelFiles:
    """The folder of a Med-MoE, its tensors read when they are asked for.

    Attributes:
        places: Name of a tensor → its file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, read_config(folder)
        self.places: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                self.places |= dict.fromkeys(file.keys(), path)

    @classmethod
    def of(cls, folder: Path) -> ModelFiles:
        """Return those of a folder that is whole.

        Raises:
            CheckpointError: It is damaged, or holds no Med-MoE with weights of its own.
        """
        if is_adapter(folder):
            raise CheckpointError(
                f"{folder}: an adapter has no experts of its own; merge it by "
                f"`medmoe adopt {folder} --out DIR`"
            )
        verify(folder)
        refuse_exported(folder)
        files = cls(folder)
        if not files.config.moe_layers:
            raise CheckpointError(f"{folder}: a dense model has no experts; give a phase 3 model")
        return files

    @property
    def domains(self) -> list[str]:
        """Names of the experts."""
        return list(self.config.domains or [])

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the folder says of its training."""
        return provenance(self.folder)

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield tensors by name, each file opened once."""
        with ExitStack() as stack:
            files: dict[Path, Any] = {}
            for name in names:
                place = self.places[name]
                if place not in files:
                    files[place] = stack.enter_context(safe_open(place, framework="pt"))
                yield name, files[place].get_tensor(name)

    def named(self, name: str) -> int:
        """Return the index of an expert.

        Raises:
            ConfigError: There is none of this name.
        """
        if name not in self.domains:
            raise ConfigError(f"{self.folder}: {one_of(name, self.domains, 'expert')}")
        return self.domains.index(name)

    def expert(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of one expert, as `ExpertTensors` are named."""
        index, row, found = self.named(name), self.config.router_rows.index(name), {}
        own = {k: m for k in self.places if (m := _EXPERT.match(k)) and int(m[3]) == index}
        found = {f"layers.{own[key][2]}.{own[key][4]}": t for key, t in self.tensors(own)}
        for key, tensor in self.tensors(self._gates()):
            layer, kind = key.split(".layers.")[1].split(".")[0], key.rpartition(".")[2]
            found[f"layers.{layer}.router.{kind}"] = tensor[row : row + 1].clone()
        return found

    def base_hash(self, names: Iterable[str]) -> str:
        """Return a hash of the model with these experts alone, whatever their order.

        What an expert was trained beside: nothing of the others, nor of later ones, is in it.
        """
        rows = self.config.router_rows
        kept, order = {name: rows.index(name) for name in names}, self.domains
        gates, named = self._gates(), dict[str, str]()
        for key in self.places:
            match = _EXPERT.match(key)
            owner = match and order[int(match[3])]
            if match is None or owner in kept:
                named[f"{match[1]}experts.{owner}.{match[4]}" if match else key] = key
        digest = hashlib.sha256()
        for name, key in sorted(named.items()):
            ((_, tensor),) = self.tensors([key])
            if key in gates:
                parts = [(f"{name}[{n}]", tensor[row]) for n, row in sorted(kept.items())]
            else:
                parts = [(name, tensor)]
            take_in(digest, parts)
        return digest.hexdigest()

    def hashes(self) -> dict[str, str]:
        """Return a SHA-256 of every tensor, by name; of the routers' last layers, of every row."""
        gates, found = self._gates(), dict[str, str]()
        for name, tensor in self.tensors(self.places):
            rows = zip(self.config.router_rows, tensor, strict=True) if name in gates else ()
            found |= {f"{name}[{row}]": tensor_hash(part) for row, part in rows}
            found |= {} if name in gates else {self._by_name(name): tensor_hash(tensor)}
        return found

    def _by_name(self, key: str) -> str:
        match = _EXPERT.match(key)
        return f"{match[1]}experts.{self.domains[int(match[3])]}.{match[4]}" if match else key

    def _gates(self) -> list[str]:
        last = f".mlp.gate.fc{self.config.router_layers}."
        return [key for key in self.places if last in key]

    def layout(self, experts: Mapping[str, str | ExpertTensors], rows: Iterable[str]) -> Layout:
        """Return the tensors of a model with these experts, in their order.

        Args:
            experts: Name → the expert here whose FFN it has, or its tensors.
            rows: Of the router; one that is not here is that of the expert's tensors.
        """
        layout: Layout = {k: k for k in self.places if not _EXPERT.match(k)}
        gates = self._gates()
        for index, source in enumerate(experts.values()):
            for key in self.places:
                match = _EXPERT.match(key)
                if match and int(match[3]) == 0:
                    new = f"{match[1]}experts.{index}.{match[4]}"
                    if isinstance(source, str):
                        layout[new] = f"{match[1]}experts.{self.named(source)}.{match[4]}"
                    else:
                        layout[new] = source[f"layers.{match[2]}.{match[4]}"]
        known, wanted = self.config.router_rows, list(rows)
        for key, tensor in self.tensors(gates):
            layer, kind = key.split(".layers.")[1].split(".")[0], key.rpartition(".")[2]
            parts = []
            for name in wanted:
                given = experts.get(name, name)
                parts.append(
                    tensor[known.index(name)][None]
                    if isinstance(given, str)
                    else given[f"layers.{layer}.router.{kind}"]
                )
            layout[key] = torch.cat(parts)
        return layout


def tensor_hash(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's type, shape and bytes."""
    return tensors_hash({"": tensor})


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors by name: what tells one expert from others."""
    digest = hashlib.sha256()
    take_in(digest, sorted(tensors.items()))
    return digest.hexdigest()


def shape_of(config: MedMoeConfig) -> dict[str, Any]:
    """Return what an expert's tensors and its function follow from, apart from their values."""
    text = config.text_config
    return {
        "activation": activation_of(text),
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "moe_layers": list(config.moe_layers or []),
        "num_experts_per_tok": config.num_experts_per_tok,
        "router_layers": config.router_layers,
        "routing": config.routing,
        "meta_expert": config.meta_expert,
    }


def list_experts(files: ModelFiles) -> list[dict[str, Any]]:
    """Return of each expert its name, layers, parameters, SHA-256 and origin; removed ones last."""
    known, found = files.facts.get("experts") or {}, list[dict[str, Any]]()
    for name in files.domains:
        tensors = files.expert(name)
        found.append(
            {
                "name": name,
                "modality": list(MEMBERS.get(name, (name,))),
                "layers": list(files.config.moe_layers or []),
                "parameters": sum(tensor.numel() for tensor in tensors.values()),
                "sha256": tensors_hash(tensors),
                "trained_with": files.config.rows_of(name),
                "provenance": known.get(name) or {"origin": "trained with the model"},
            }
        )
    removed = files.config.removed_experts or {}
    return found + [{"name": name, "tokens_go_to": to} for name, to in removed.items()]


def write_experts(
    files: ModelFiles,
    out: Path,
    layout: Layout,
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    changed: Iterable[str],
) -> dict[str, Any]:
    """Commit a model folder with other experts, and prove what is the same in it.

    Args:
        out: May be the folder itself, which is then replaced at once.
        config: Keys of `config.json` that change; None takes one out.
        facts: What `medmoe.json` says of the training then.
        changed: Experts whose tensors and rows may come, change or go.

    Returns:
        ``tensors``: what came, changed and went, and how many are the ``same`` bytes; ``config``:
        its keys, before and after; ``files`` whose SHA-256 in the manifest is another.

    Raises:
        CheckpointError: Anything else would have changed: nothing is written then.
    """
    before, listed = files.hashes(), read_manifest(files.folder, _FIX)
    old = read_json(files.folder / CONFIG)
    content = {k: v for k, v in (old | dict(config)).items() if v is not None or k in old}
    with committed(out) as staging:
        for path in files.folder.iterdir():
            if path.name in listed and path not in files.places.values():
                shutil.copyfile(path, staging / path.name)
        _write_weights(files, staging, layout)
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (staging / CONFIG).write_text(text, encoding="utf-8")
        write_json(staging / PROVENANCE, {"domains": content["domains"], "training": dict(facts)})
        model = meta_model(read_config(staging))
        card = model_card(model, facts, complete=(staging / PROCESSOR).is_file())
        (staging / CARD).write_text(card, encoding="utf-8")
        told = _proof(before, ModelFiles(staging).hashes(), set(changed))
    after = read_manifest(out, _FIX)
    told["config"] = {k: [old.get(k), content.get(k)] for k in config if old.get(k) != config[k]}
    told["files"] = sorted(n for n in after if after[n] != listed.get(n))
    return told


def _write_weights(files: ModelFiles, staging: Path, layout: Layout) -> None:
    """Write a layout, each tensor to the file where it stood, or where its layer's router does."""
    gates = {key.split("gate.")[0]: files.places[key] for key in files._gates()}
    places = {n: files.places.get(n) or gates[n.split("experts.")[0]] for n in layout}
    total = 0
    for path in sorted({*places.values()}):
        content: dict[str, Tensor] = {}
        for name in (name for name, place in places.items() if place == path):
            source = layout[name]
            if isinstance(source, str):
                ((_, source),) = files.tensors([source])
            content[name] = source.contiguous()
            total += source.nbytes
        try:
            save_file(content, staging / path.name, metadata={"format": "pt"})
        except SafetensorError as error:
            raise GuardError(
                f"{path.name} cannot be written to {staging.parent} ({first_line(error)}); free "
                "some space: the model is what it was"
            ) from None
    for path in files.folder.glob(f"*{_INDEX}"):
        index = read_json(path)
        index["weight_map"] = {name: places[name].name for name in sorted(places)}
        index.setdefault("metadata", {})["total_size"] = total
        write_json(staging / path.name, index)


def _proof(
    before: Mapping[str, str], after: Mapping[str, str], changed: set[str]
) -> dict[str, Any]:
    """Return which tensors came, changed and went; refuse those of other experts and the rest."""
    came, went = sorted(after.keys() - before.keys()), sorted(before.keys() - after.keys())
    other = sorted(name for name in after.keys() & before.keys() if after[name] != before[name])
    own = re.compile("|".join(rf"\.experts\.{re.escape(n)}\.|\[{re.escape(n)}\]$" for n in changed))
    if foreign := [name for name in (*came, *went, *other) if not own.search(name)]:
        raise CheckpointError(
            f"{len(foreign)} tensors of other parts would change, first: {foreign[0]}; nothing is "
            "written"
        )
    same = len(after) - len(came) - len(other)
    return {"tensors": {"same": same, "came": came, "changed": other, "went": went}}
