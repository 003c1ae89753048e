"""What a call of `medmoe train` will do, checked before any data is read or anything is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from medmoe.config.phases import PHASE_TABLE
from medmoe.config.schema import PhaseName
from medmoe.data.bad_rows import Policy
from medmoe.errors import ConfigError
from medmoe.experiments.handover import check_input, is_finished
from medmoe.experiments.recipe import Recipe
from medmoe.model.pretrained import check_sources
from medmoe.processes import is_main
from medmoe.training.trackers import check_trackers

#: How the values of a model begin that its phases before router and experts know.
_BACKBONES = ("language", "vision", "blind")


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """What a call of `medmoe train` will do.

    Attributes:
        phases: Those to run, in order.
        root: Folder of the real data sets, None where there is none.
        resume: Skip finished phases and go on with a broken one.
        allow_changed: Resume although values differ from those of the run.
        allow_leak: Train on pictures that are scored; the run and every score then say so.
        label_counts: Sizes of the router's label-count curve.
        allow_outside: Let a table name pictures outside its folder.
        on_bad_row: Whether rows and pictures that cannot be used are left out and counted.
    """

    recipe: Recipe
    phases: tuple[PhaseName, ...]
    root: Path | None
    out: Path
    seed: int
    resume: bool = False
    allow_changed: bool = False
    label_counts: tuple[int, ...] = ()
    allow_leak: bool = False
    allow_outside: bool = False
    on_bad_row: Policy = "fail"

    def where(self, source: PhaseName, phase: PhaseName) -> Path:
        """Return the run directory that a phase starts from: of an earlier phase, or its own."""
        named = self.recipe.spec.starts.get(source)
        here = named is None or (source in self.phases and source != phase)
        return self.out / source if here else Path(str(named))


def phases_of(recipe: Recipe, names: Sequence[str]) -> tuple[PhaseName, ...]:
    """Return the phases that are named, in the recipe's order; all of them where none is.

    Raises:
        ConfigError: One is not of the recipe.
    """
    phases = recipe.spec.phases
    for name in names:
        if name not in phases:
            raise ConfigError(
                f"{name!r} is no phase of {recipe.name}; its phases: {', '.join(phases)}"
            )
    return tuple(phase for phase in phases if not names or phase in names)


def plan_train(
    recipe: Recipe,
    phases: Sequence[str],
    root: Path | None,
    out: Path,
    seed: int,
    **options: Any,
) -> TrainPlan:
    """Return what to do, once everything that needs no data is checked.

    Args:
        phases: Those to run; all of the recipe where empty.
        options: Further fields of `TrainPlan`; ``label_counts`` instead of the recipe's own.

    Raises:
        ConfigError: A phase is not of the recipe or out of order, has nothing to start from, holds
            another run, or a tracker's package is missing.
    """
    spec, chosen = recipe.spec, phases_of(recipe, phases)
    plan = TrainPlan(recipe, chosen, root, out, seed, **options)
    if phases and list(phases) != list(chosen):
        raise ConfigError(
            f"--phase {', '.join(phases)} is out of order; train {', '.join(chosen)} in this order"
        )
    if plan.label_counts and "phase2_router" not in chosen:
        raise ConfigError("--label-counts belongs to phase2_router; add --phase phase2_router")
    check_trackers(spec.run.trackers)
    first = {"phase0_adapt", "phase1_alignment"} & {*chosen}
    begins = any(not is_finished(out / phase) for phase in first)
    if begins and "phase1_alignment" not in spec.starts:
        check_sources(spec.model, spec.pretrained())
    if not plan.label_counts and spec.router and "phase2_router" in chosen:
        plan = replace(plan, label_counts=spec.router.label_counts)
    for phase in chosen:
        if is_main():  # the others may come when the first one has begun to write
            _check_folder(plan, phase)
        if not (plan.resume and is_finished(out / phase)):
            for source in spec.inputs(phase):
                if source not in chosen or source == phase:
                    check_input(plan.where(source, phase), source, phase, recipe)
    return plan


def _check_folder(plan: TrainPlan, phase: PhaseName) -> None:
    """Refuse a folder that holds another run, or one whose values have changed."""
    folder = plan.out / phase
    known = folder / "config.yaml"
    if not known.is_file():
        return
    if not plan.resume:
        raise ConfigError(
            f"{folder} holds a run already; go on with it by --resume, or give another --out"
        )
    try:
        then = yaml.safe_load(known.read_text(encoding="utf-8"))
        seed = json.loads((folder / "run.json").read_text(encoding="utf-8"))["seed"]
    except (OSError, ValueError, KeyError, yaml.YAMLError):
        raise ConfigError(
            f"{folder}: its config.yaml or run.json cannot be read; delete the folder to train anew"
        ) from None
    now = relevant_of(plan.recipe.config, phase) | {"seed": plan.seed}
    before = relevant_of(then, phase) | {"seed": seed}
    keys = sorted(key for key in now.keys() | before.keys() if now.get(key) != before.get(key))
    if keys and not plan.allow_changed:
        shown = "; ".join(f"{key}: {before.get(key)} then, {now.get(key)} now" for key in keys)
        raise ConfigError(
            f"{folder} was trained with other values ({shown}); set them back, delete the folder, "
            "give another --out, or use --allow-changed of `medmoe train`"
        )


def relevant_of(config: Mapping[str, Any], phase: PhaseName) -> dict[str, Any]:
    """Return, flat, the values of a resolved configuration that shape what a phase learns."""
    validation, model = config.get("validation"), config.get("model") or {}
    experts = PHASE_TABLE[phase].leaves in ("router", "moe")
    groups = {
        "model": {k: v for k, v in model.items() if experts or k.startswith(_BACKBONES)},
        "vocab_size": config.get("vocab_size"),
        "max_length": config.get("max_length"),
        "data": config.get("data"),
        "router": config.get("router") if phase == "phase2_router" else None,
        **({"expert": config.get("expert")} if phase == "phase4_expert" else {}),
        f"phases.{phase}": (config.get("phases") or {}).get(phase),
        "validation": validation if _shapes(validation or {}) else None,
        "run.precision": (config.get("run") or {}).get("precision"),
        "run.group_by_length": (config.get("run") or {}).get("group_by_length"),
        "run.answers_only": (config.get("run") or {}).get("answers_only"),
    }
    return _flat(groups)


def _shapes(validation: Mapping[str, Any]) -> bool:
    return bool(validation.get("keep_best") or validation.get("calibrate"))


def _flat(group: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in group.items():
        name = f"{prefix}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found
