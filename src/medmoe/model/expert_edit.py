"""Which experts a model folder has: one more, another in its place, or one less.

Each gives a new folder, or the same one replaced at once; everything else keeps its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medmoe.errors import ConfigError
from medmoe.model.checkpoint import check_replaceable, identity
from medmoe.model.expert_pack import Pack
from medmoe.model.experts import ExpertTensors, ModelFiles, write_experts


def put_in(files: ModelFiles, out: Path, pack: Pack) -> dict[str, Any]:
    """Write the model with one expert more; return what `write_experts` does.

    Raises:
        ConfigError: There is an expert of this name, or was one.
    """
    refuse_known(files, pack.name)
    spans = {n: files.config.rows_of(n) for n in files.domains} | {pack.name: pack.trained_with}
    return _write(files, out, _with(files, pack), spans, _removed(files), pack, "added")


def refuse_known(files: ModelFiles, name: str) -> None:
    """Refuse the name of an expert that is there, or whose row is still there.

    Raises:
        ConfigError: It is one.
    """
    if name in files.domains:
        raise ConfigError(
            f"{files.folder} has an expert {name} already; exchange it by `medmoe expert swap`"
        )
    if name in _removed(files):
        raise ConfigError(
            f"the expert {name} was removed from {files.folder}, which others were trained beside; "
            "go on with the model from before"
        )


def exchange(files: ModelFiles, out: Path, pack: Pack) -> dict[str, Any]:
    """Write the model with a pack's expert in the place of its namesake; return as `put_in` does.

    Raises:
        ConfigError: There is none of this name, or another row would change others' weights.
    """
    name, own = pack.name, files.expert(pack.name)
    beside = [n for n in files.domains if n != name and name in files.config.rows_of(n)]
    rows = [key for key in own if ".router." in key]
    if beside and any(not own[key].equal(pack.tensors[key]) for key in rows):
        raise ConfigError(
            f"{', '.join(beside)} were trained with the router's row of {name}, and the pack has "
            "another one, which would change their answers; take a pack with the same row"
        )
    spans = {n: files.config.rows_of(n) for n in files.domains} | {name: pack.trained_with}
    return _write(files, out, _with(files, pack), spans, _removed(files), pack, "exchanged")


def take_out(files: ModelFiles, out: Path, name: str, to: str) -> dict[str, Any]:
    """Write the model without an expert; return what `write_experts` does.

    Its row of the router stays where others were trained with it, so that their weights are what
    they were, and where its tokens are to go to the meta expert.

    Args:
        to: ``meta``: its tokens go to the meta expert alone; ``next``: to the next best.

    Raises:
        ConfigError: There is none of this name, too few would be left, or no meta expert.
    """
    files.named(name)
    left, per_token = [n for n in files.domains if n != name], files.config.num_experts_per_tok
    if len(left) < per_token:
        raise ConfigError(
            f"{files.folder} chooses {per_token} experts for a token; {name} must stay"
        )
    if to == "meta" and not files.config.meta_expert:
        raise ConfigError(f"{files.folder} has no meta expert; use --to next")
    spans = {n: files.config.rows_of(n) for n in left}
    needed = {row for span in spans.values() for row in span}
    removed = {
        n: t for n, t in (_removed(files) | {name: to}).items() if t == "meta" or n in needed
    }
    gone = Pack(name, {}, [], {})
    return _write(files, out, {n: n for n in left}, spans, removed, gone, f"removed, to {to}")


def _removed(files: ModelFiles) -> dict[str, str]:
    return dict(files.config.removed_experts or {})


def _with(files: ModelFiles, pack: Pack) -> dict[str, str | ExpertTensors]:
    here: dict[str, str | ExpertTensors] = {n: n for n in files.domains}
    return here | {pack.name: pack.tensors}


def _write(
    files: ModelFiles,
    out: Path,
    experts: Mapping[str, str | ExpertTensors],
    spans: Mapping[str, list[str]],
    removed: dict[str, str],
    pack: Pack,
    what: str,
) -> dict[str, Any]:
    check_replaceable(out)
    as_trained = not removed and all(span == [*experts] for span in spans.values())
    config = {
        "domains": [*experts],
        "expert_rows": None if as_trained else dict(spans),
        "removed_experts": removed or None,
    }
    before = identity(files.folder)
    note = f"Expert {pack.name} {what}; everything else is that of the model {before}."
    known = {**(files.facts.get("experts") or {}), pack.name: dict(pack.facts)}
    merged = {
        key: {**files.facts[key], **pack.facts.get(key, {})}
        if key in files.facts
        else pack.facts[key]
        for key in ("licences", "shared_images")
        if key in files.facts or key in pack.facts
    }
    facts = (
        files.facts
        | merged
        | {
            "notes": [*files.facts.get("notes", ()), note],
            "experts": {name: entry for name, entry in known.items() if name in experts and entry},
        }
    )
    rows = [*experts, *sorted(removed, key=lambda n: removed[n])]
    return write_experts(files, out, files.layout(experts, rows), config, facts, [pack.name])
