"""Reads recipes: YAML → ``--set`` overrides → checked specification.

Recipes are package data, so an installed wheel carries them.
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from medmoe.errors import ConfigError, one_of

Spec = TypeVar("Spec", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads ``2e-5`` as a number (YAML 1.1: a string) and refuses repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping; of a repeated key plain YAML silently keeps the last value."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = [key for place, key in enumerate(keys) if key in keys[:place]]
        if repeated:
            second = keys.index(repeated[0], keys.index(repeated[0]) + 1)
            raise yaml.MarkedYAMLError(
                problem=f"key {repeated[0]!r} stands twice; keep one",
                problem_mark=node.value[second][0].start_mark,
            )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    """Return a YAML mapping.

    Raises:
        ConfigError: The text is not YAML, or not a mapping.
    """
    try:
        data = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not readable as YAML: {_yaml_problem(error)}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{name}: must be a mapping of keys to values, got {type(data).__name__}")
    return data


def _yaml_problem(error: yaml.YAMLError) -> str:
    """Return the place and the rule in one line; PyYAML would name a string, not the file."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).replace('in "<unicode string>", ', "at ").split())


def recipe(kind: str, name: str) -> dict[str, Any]:
    """Return a recipe of the package by kind (``models``, ``experiments``) and exact name.

    An experiment is a file, or an ablation of ``recipes/ablations.yaml`` in one of its families.

    Raises:
        ConfigError: There is none; the message lists the choices.
    """
    if kind == "experiments" and name in _ablations():
        return _after_starts(_ablations()[name])
    if name not in _recipe_files(kind):
        raise ConfigError(one_of(name, recipe_names(kind), f"recipe in {kind}"))
    return _package_yaml(f"{kind}/{name}.yaml")


def recipe_names(kind: str) -> list[str]:
    """Return the names of all recipes of a kind."""
    names = _recipe_files(kind)
    if kind == "experiments":
        names += _ablations()
    return sorted(names)


def _recipe_files(kind: str) -> list[str]:
    files = (resources.files("medmoe.recipes") / kind).iterdir()
    return [path.name.removesuffix(".yaml") for path in files if path.name.endswith(".yaml")]


def _package_yaml(path: str) -> dict[str, Any]:
    text = resources.files("medmoe.recipes").joinpath(path).read_text(encoding="utf-8")
    return parse_yaml(text, f"recipes/{path}")


@cache
def _ablations() -> dict[str, dict[str, Any]]:
    """Return what each ablation of each family changes, by the recipe's name."""
    table = _package_yaml("ablations.yaml")
    ablations: dict[str, dict[str, Any]] = {}
    for name, ablation in table["ablations"].items():
        families = ablation.pop("families", dict.fromkeys(table["families"]))
        for family, changes in families.items():
            ablations[f"{family}_{name}"] = {"base": family, **merged(ablation, changes or {})}
    return ablations


def _after_starts(ablation: dict[str, Any]) -> dict[str, Any]:
    """Let an ablation that starts from its family's run train only the phases that it names."""
    if "starts" not in ablation:
        return ablation
    family: str = ablation["base"]
    known = _phases_of(family)
    phases: dict[str, Any] = dict.fromkeys(known)
    for phase, changes in ablation["phases"].items():
        phases[phase] = changes if phase in known else merged(like_phase3(phase, known), changes)
    starts = {phase: f"runs/{family}/{phase}" for phase in ablation["starts"]}
    return {**ablation, "starts": starts, "phases": phases}


def _phases_of(family: str) -> dict[str, Any]:
    """Return the phases of a recipe of the package, those of its bases among them."""
    found = recipe("experiments", family)
    below = _phases_of(found["base"]) if "base" in found else {}
    return merged(below, found["phases"])


def like_phase3(phase: str, phases: Mapping[str, Any]) -> dict[str, Any]:
    """Return a phase on phase 3's data and for its steps: SFT trains what phase 2 does.

    Args:
        phases: Those of the recipe, phases 2 and 3 among them.
    """
    dense: Mapping[str, Any] = phases["phase2_instruction"] if phase == "sft" else {}
    plain = {"trains": dense.get("trains") or "paper", "lora": dense.get("lora")}
    return {**phases["phase3_moe"], **plain, "load_balance": 0.0}


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with changes: groups are merged key by key, all else is replaced."""
    result = dict(base)
    for key, value in changes.items():
        old: Any = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(old, value) if both else value
    return result


def apply_overrides(data: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Return ``data`` with ``key.path=value`` settings applied; values are read as YAML.

    Raises:
        ConfigError: A setting has no ``=``, an empty key, a value that is no YAML, or its path
            leads into a plain value.
    """
    # A copy whose keys are all strings, as a path names them.
    result: dict[str, Any] = json.loads(json.dumps(data, default=str))
    for setting in settings:
        path, equals, raw = setting.partition("=")
        if not equals or not all(path.split(".")):
            raise ConfigError(f"--set {setting!r} must read key=value, e.g. model.router_layers=2")
        *parents, last = path.split(".")
        place: Any = result
        for key in parents:
            place = place.setdefault(key, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise ConfigError(f"--set {setting!r}: {'.'.join(parents)} is a value, not a group")
        place[last] = parse_yaml(f"value: {raw}", f"--set {setting!r}")["value"]
    return result


def check(spec: type[Spec], data: Mapping[str, Any], name: str) -> Spec:
    """Return the checked specification.

    Raises:
        ConfigError: One line for the first problem: where, which value, which rule, what to do.
    """
    try:
        # As JSON, since lists are tuples there and keys are strings; `str` for YAML's dates.
        return spec.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError(f"{name}: {_first_problem(spec, error)}") from None


def config_hash(config: Mapping[str, Any]) -> str:
    """Return the SHA-256 of resolved settings, whatever the order of its keys."""
    text = json.dumps(config, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _first_problem(spec: type[BaseModel], error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"]) or "recipe"
    if problem["type"] == "extra_forbidden":
        *parents, key = (str(part) for part in problem["loc"])
        known = _known_keys(spec, parents)
        return one_of(key, known, f"key at {'.'.join(parents) or 'top level'}:")
    if problem["loc"][-1:] == ("[key]",):  # a mapping whose keys are a fixed set of names
        known = re.findall(r"'([^']+)'", problem["msg"])
        return one_of(str(problem["input"]), known, f"key at {'.'.join(where.split('.')[:-2])}:")
    if problem["type"] == "missing":
        return f"{where} is missing; add it"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":  # a rule between keys: its input is the whole group
        return f"{where}: {message}"
    return f"{where} = {reprlib.repr(problem.get('input'))}: {message}"


def _known_keys(spec: type[BaseModel], parents: Sequence[str]) -> list[str]:
    current: Any = spec
    for part in parents:
        fields = getattr(current, "model_fields", None)
        if fields and part in fields:
            annotation: Any = fields[part].annotation
            arguments = [a for a in getattr(annotation, "__args__", ()) if a is not type(None)]
            current = arguments[-1] if arguments else annotation
    return list(getattr(current, "model_fields", {}))
