"""Finished phases found by what shaped them, so that nothing is trained twice.

A phase is known by a hash of the values that shape it, its seed, and the phases it starts from; the
content of the data folder is no part of it. Of which recipe an earlier phase is, ``starts:
{PHASE: runs/RECIPE/PHASE}`` says; where it lies is looked up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from medmoe.config.load import config_hash
from medmoe.config.schema import PHASES, PhaseName
from medmoe.experiments.handover import is_finished
from medmoe.experiments.plan import TrainPlan, plan_train, relevant_of
from medmoe.experiments.recipe import Recipe, load_recipe


class FinishedPhases:
    """The finished phases of a folder of runs, those of `medmoe train` too; it trains missing ones.

    Args:
        root: Folder of the data sets, None for the embedded phantom.
        settings: ``key=value`` changes of every recipe; those of a phase where it has the phase.
        train: Runs a plan.
    """

    def __init__(
        self,
        out: Path,
        root: Path | None,
        settings: Sequence[str],
        train: Callable[[TrainPlan], object],
    ) -> None:
        self.out, self.root, self._settings, self._train = out, root, settings, train
        self.recipe = cache(self._recipe)
        folders = [path.parent for path in sorted(out.glob("*/*/run.json"))]
        self._found = {_key_of(folder): folder for folder in folders if is_finished(folder)}

    def _recipe(self, name: str, *starts: str) -> Recipe:
        phases = load_recipe(name).spec.phases
        own = []
        for setting in self._settings:
            whole, *part = setting.partition("=")[0].split(".")[:2]
            if whole != "phases" or not part or part[0] in phases:
                own.append(setting)
        return load_recipe(name, [*own, *starts])

    def missing(self, name: str, phase: PhaseName, seed: int) -> dict[str, list[PhaseName]]:
        """Return by recipe, in order, what must be trained before a phase is finished."""
        todo: dict[str, list[PhaseName]] = {}

        def visit(name: str, phase: PhaseName) -> None:
            spec = self.recipe(name).spec
            if self._key(name, phase, seed) in self._found or phase in todo.get(name, ()):
                return
            if phase not in spec.phases:
                visit(*self._start(name, phase))
                return
            for source in spec.inputs(phase):
                visit(name, source)
            todo.setdefault(name, []).append(phase)

        visit(name, phase)
        return {name: sorted(phases, key=PHASES.index) for name, phases in todo.items()}

    def run(self, name: str, phase: PhaseName, seed: int) -> Path:
        """Return the run directory of a recipe's phase, after training what is missing.

        Raises:
            MedMoeError: It cannot be trained here, or training was stopped.
        """
        for part, phases in self.missing(name, phase, seed).items():
            spec = self.recipe(part).spec
            before = sorted({s for p in phases for s in spec.inputs(p) if s not in phases})
            found = {s: str(self._found[self._key(part, s, seed)]) for s in before}
            starts = (f"starts.{source}={json.dumps(path)}" for source, path in found.items())
            folder = self.out / f"{part}-{self.recipe(part).sha256[:8]}-{seed}"
            recipe = self.recipe(part, *starts)
            self._train(plan_train(recipe, phases, self.root, folder, seed, resume=True))
            self._found |= {self._key(part, p, seed): folder / p for p in phases}
        return self._found[self._key(name, phase, seed)]

    def _start(self, name: str, phase: PhaseName) -> tuple[str, PhaseName]:
        _, start, source = Path(self.recipe(name).spec.starts[phase]).parts
        return start, next(known for known in PHASES if known == source)

    def _key(self, name: str, phase: PhaseName, seed: int) -> str:
        recipe = self.recipe(name)
        if phase not in recipe.spec.phases:
            return self._key(*self._start(name, phase), seed)
        before = {source: self._key(name, source, seed) for source in recipe.spec.inputs(phase)}
        return _key(recipe.config, phase, seed, before)


def _key(config: Mapping[str, Any], phase: PhaseName, seed: int, before: Mapping[Any, str]) -> str:
    return config_hash({"values": relevant_of(config, phase), "seed": seed, "starts": dict(before)})


def _key_of(run: Path) -> str:
    """Return the key of a run directory; its path, which is the key of nothing, if unreadable."""
    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
        before = {name: _key_of(Path(path).parent) for name, path in facts["starts"].items()}
        return _key(config, facts["phase"], facts["seed"], before)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return str(run)
