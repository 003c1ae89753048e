"""From phase to phase: what a finished phase leaves, and the check that it is the right one.

A phase's run directory holds ``model/``: a model directory, or in its manner a vision encoder
(``phase0_encoder``), a language model with its tokenizer (``phase0_language``), or a router.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from medmoe.backbones.published import kept_notices
from medmoe.config.phases import PHASE_TABLE
from medmoe.config.schema import PhaseName
from medmoe.errors import CheckpointError, ConfigError
from medmoe.experiments.recipe import Recipe
from medmoe.model.card import CARD
from medmoe.model.checkpoint import provenance, read_config, verify
from medmoe.model.committed import (
    MANIFEST,
    check_files,
    committed,
    read_manifest,
    staging_of,
    write_json,
)
from medmoe.model.domain_check import DomainCheck
from medmoe.model.locate import PROVENANCE, is_adapter, model_of
from medmoe.model.upcycle import RouterState

_ROUTER, _CHECK = "router.safetensors", "domain_check.safetensors"
_FIX = "run that phase again"


def is_finished(run: Path) -> bool:
    """Return whether a phase's run directory holds its result."""
    return (run / "model" / MANIFEST).is_file()


def publish_model(out: Path) -> Path | None:
    """Put the model of a run where it is looked for: ``OUT/model``, beside its config and facts.

    It is that of phase 3, or of the last phase that leaves a model; None where none has. The files
    are hard links where the disk knows them. The licences of its backbones lie among them, so that
    the folder can be passed on as it is.
    """
    phases = [name for name in PHASE_TABLE if is_finished(out / name)]
    phases = [name for name in phases if PHASE_TABLE[name].leaves in ("dense", "moe")]
    if not phases:
        return None
    last = max(phases, key=lambda name: (PHASE_TABLE[name].leaves == "moe", phases.index(name)))
    model = out / "model"
    with committed(model) as staging:
        _link_files(out / last / "model", staging)
        for part in (provenance(out / last / "model").get("base_model") or {}).values():
            for notice in kept_notices(part["name"]):
                shutil.copyfile(notice, staging / f"{part['name']}.{notice.name}")
    for name in ("config.yaml", "run.json"):
        link_or_copy(out / last / name, out / name)
    return model


def publish_card(out: Path, changed: Callable[[str], str]) -> None:
    """Change the card of ``OUT/model``, and the manifest with it; the phase's own model stays."""
    model = out / "model"
    text = changed((model / CARD).read_text(encoding="utf-8"))
    with committed(model) as staging:
        _link_files(model, staging)
        (staging / CARD).unlink()  # a name of the phase's own card, which stays
        (staging / CARD).write_text(text, encoding="utf-8")


def _link_files(model: Path, staging: Path) -> None:
    for path in model.iterdir():
        if path.name != MANIFEST:
            link_or_copy(path, staging / path.name)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give a file a second name, in the place of what stood there; copy it where that fails."""
    staged = staging_of(Path(target))
    staged.unlink(missing_ok=True)
    try:
        os.link(source, staged)
    except OSError:  # another disk, or one without hard links
        shutil.copy2(source, staged)
    staged.replace(target)


def check_input(directory: Path, source: PhaseName, phase: PhaseName, recipe: Recipe) -> Path:
    """Return the model directory that a phase starts from, if it is that of the right phase.

    Args:
        directory: Run directory, or model directory, of ``source``; or an adapter on one.
        recipe: What the phase is of, named in the line that says what to run.

    Raises:
        ConfigError: There is nothing, or it is of another phase or ``image_pool``.
        CheckpointError: It is damaged.
    """
    model = model_of(directory)
    if is_adapter(model):
        verify(model)
    elif not (model / MANIFEST).is_file():
        raise ConfigError(
            f"{phase} starts from {source}, which {directory} does not hold; run `medmoe train "
            f"{recipe.name} --phase {source}` first, or use --set starts.{source}=RUN_DIRECTORY"
        )
    else:
        check_files(model, read_manifest(model, _FIX), _FIX)
    facts = provenance(model)
    found = facts.get("phase")
    # A model that was converted from elsewhere names no phase: a dense one may be phase 1's or 2's.
    # What a phase goes on with need not be its own work.
    leaves = PHASE_TABLE[source].leaves
    foreign = (found is None or source == phase) and leaves == kind_of(model)
    trained = found == "sft" and source == "phase2_instruction"
    if found != source and not foreign and not trained:
        raise ConfigError(
            f"{phase} starts from {source}, but {directory} is of {found or 'no known phase'}; "
            f"use --set starts.{source}=RUN_DIRECTORY with one of {source}"
        )
    wanted = recipe.spec.model.image_pool
    if leaves in ("dense", "moe") and (own := read_config(model).image_pool) != wanted:
        raise ConfigError(
            f"{directory} was trained with image_pool {own}, the recipe has {wanted}; "
            f"use --set model.image_pool={own}"
        )
    return model


def kind_of(model: Path) -> str | None:
    """Return what a model directory holds, ``dense`` or ``moe``; None for a part of a model."""
    if not (is_adapter(model) or (model / "config.json").is_file()):
        return None
    return "moe" if read_config(model).moe_layers else "dense"


def save_part(directory: Path, facts: Mapping[str, Any], *parts: Callable[[Path], Any]) -> None:
    """Commit what is no whole model: each part writes its files, the facts go beside them."""
    with committed(directory) as staging:
        for write in parts:
            write(staging)
        write_json(staging / PROVENANCE, {"training": dict(facts)})


def save_router(
    directory: Path,
    router: RouterState | list[RouterState],
    layers: tuple[int, ...],
    facts: Mapping[str, Any],
    check: DomainCheck | Mapping[str, Any] | None = None,
) -> None:
    """Commit a router: ``fc1.weight`` … of the shared one, or ``<layer>.fc1.weight`` of each.

    Args:
        check: The out-of-domain check of its pictures, or why there is none.
    """
    if isinstance(router, list):
        named = zip(layers, router, strict=True)
        tensors = {f"{n}.{name}": t for n, state in named for name, t in state.items()}
    else:
        tensors = dict(router)
    parts = [lambda staging: save_file(tensors, staging / _ROUTER)]
    if isinstance(check, DomainCheck):
        held = dict(check.state_dict())
        parts.append(lambda staging: save_file(held, staging / _CHECK))
        check = check.facts
    save_part(directory, {**facts, "domain_check": check}, *parts)


def load_check(directory: Path) -> DomainCheck | dict[str, Any]:
    """Return the out-of-domain check that lies beside a router, or why there is none."""
    facts: dict[str, Any] = provenance(directory).get("domain_check") or {}
    if "pooled_width" not in facts:
        return facts
    check = DomainCheck(facts)
    check.load_state_dict(load_file(directory / _CHECK))
    return check


def load_router(
    directory: Path, layers: tuple[int, ...], domains: tuple[str, ...]
) -> RouterState | list[RouterState]:
    """Return a router as `upcycle` takes it.

    Raises:
        ConfigError: It was trained for other domains or layers than the recipe has.
        CheckpointError: It holds no router.
    """
    known = provenance(directory).get("domains")
    if known is not None and tuple(known) != domains:
        raise ConfigError(
            f"{directory}: its router knows the domains {', '.join(known)}, the recipe has "
            f"{', '.join(domains)}; train phase2_router of this recipe"
        )
    path = directory / _ROUTER
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; run phase2_router again")
    tensors = load_file(path)
    if "fc1.weight" in tensors:
        return tensors
    states: list[RouterState] = []
    for layer in layers:
        prefix = f"{layer}."
        state = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        if not state:
            have = sorted({int(name.partition(".")[0]) for name in tensors})
            raise ConfigError(
                f"{directory}: has routers for the layers {have}, the recipe's moe_layers are "
                f"{list(layers)}; train phase2_router of this recipe"
            )
        states.append(state)
    return states
