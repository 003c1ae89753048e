"""From CONFIG and `--set` to a checked recipe: a name or a file, its base, its model.

A recipe may stand on another (`base:`), and that on a third; `model:` may be the name of a model
recipe, or `{base: NAME, …}` with changes. A group or phase that is null is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from medmoe.backbones.registry import language_backbone, vision_backbone
from medmoe.backbones.spec import VisionBackbone
from medmoe.config.load import (
    apply_overrides,
    check,
    config_hash,
    like_phase3,
    merged,
    parse_yaml,
    recipe,
    recipe_names,
)
from medmoe.config.phases import PHASE_TABLE
from medmoe.config.schema import PHASES, ModelSpec
from medmoe.config.train_schema import TrainSpec
from medmoe.data import registry
from medmoe.errors import ConfigError
from medmoe.evaluation.tasks import task_spec
from medmoe.model.checkpoint import provenance, read_config
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.efficientnet_lite import EfficientNetLiteConfig
from medmoe.model.locate import find_model
from medmoe.model.pretrained import language_of, vision_of

STANDARD = "standard"


@dataclass(frozen=True, slots=True)
class Recipe:
    """A checked recipe.

    Attributes:
        name: That of its file.
        split: Which of its ``splits`` it was resolved with.
        minutes: Which of its ``presets``; None is the recipe as it stands.
    """

    name: str
    spec: TrainSpec
    split: str = STANDARD
    minutes: int | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration: a recipe itself, written into the run directory."""
        dumped: dict[str, Any] = self.spec.model_dump(mode="json")
        return dumped

    @property
    def sha256(self) -> str:
        """Hash of all that shapes the result but the seed."""
        validation = self.spec.validation
        silent = validation is not None and not validation.shapes
        return config_hash(
            {k: v for k, v in self.config.items() if k != "validation" or not silent}
        )


def load_recipe(
    config: str,
    settings: Sequence[str] = (),
    *,
    split: str = STANDARD,
    minutes: int | None = None,
    records: Sequence[str] = (),
) -> Recipe:
    """Return the recipe of a CONFIG word.

    Args:
        config: Name of a recipe of the package, or a YAML file.
        settings: ``key=value`` changes, applied last.
        split: One of the recipe's ``splits``, whose changes are applied before those of a preset.
        minutes: Take the largest of the recipe's ``presets`` that fits.
        records: A user's own sets in the place of all data of the recipe, before the settings.

    Raises:
        ConfigError: There is no such recipe, split or preset, its bases stand on each other, or a
            value breaks a rule.
        DataError: A set of ``records`` is neither there nor known by name.
    """
    name, data = _read(config)
    own = [] if "base" in data else list(data.get("phases") or ())
    data = _on_its_base(name, data, (config,))
    preset = None if minutes is None else _fitting(name, data, minutes)
    for variant in (_split(name, data, split), (data.get("presets") or {}).get(preset)):
        data = merged(data, variant or {})
    data = apply_overrides(_with_model(_without_variants(data)), settings)
    phases = data.get("phases")
    if isinstance(phases, dict) and list(phases) != own:  # what a base or a setting adds
        place = {name: number for number, name in enumerate(PHASES)}
        data["phases"] = dict(sorted(phases.items(), key=lambda of: place.get(of[0], len(PHASES))))
    spec = check(TrainSpec, _without_nulls(_with_model(data)), name)
    if records:
        settings = [*record_settings(spec, records), *settings]
        return load_recipe(config, settings, split=split, minutes=minutes)
    if spec.run.precision == "auto":
        run = spec.run.model_copy(update={"precision": "bf16" if has_bf16() else "float32"})
        spec = spec.model_copy(update={"run": run})
    _check_sides(spec, vision_backbone(spec.model.vision_encoder))
    if spec.model.vision_source is None:  # a folder is checked when it is read
        vision_of(spec.model)
    check_depth(spec.model)
    return Recipe(name, spec, split, preset)


def _check_sides(spec: TrainSpec, vision: VisionBackbone) -> None:
    """Refuse pictures whose sides the encoder cannot read.

    Raises:
        ConfigError: It is no convolution, or a side is no multiple of a cell or above its own.
    """
    adapt = spec.phases.get("phase0_adapt")
    if adapt is None or not adapt.sides:
        return
    cell, side = vision.patch_size, vision.image_size
    if vision.model_type != EfficientNetLiteConfig.model_type:
        raise ConfigError(
            f"phases.phase0_adapt.sides: {vision.name} reads pictures of {side} pixels alone; "
            "leave sides out"
        )
    if wrong := [s for s in adapt.sides if s % cell or s > side]:
        raise ConfigError(
            f"phases.phase0_adapt.sides: {wrong[0]} is not one of "
            f"{', '.join(str(s) for s in range(cell, side + 1, cell))}, as {vision.name} reads"
        )


def _on_its_base(name: str, data: dict[str, Any], above: tuple[str, ...]) -> dict[str, Any]:
    """Return a recipe with what it does not change of its base, which may have one itself."""
    if "base" not in data:
        return data
    base = str(data["base"])
    if base in above:
        raise ConfigError(f"{name}: its base {base} stands on it; take one base out")
    below = _on_its_base(*_read(base), (*above, base))
    changes = {key: value for key, value in data.items() if key != "base"}
    return merged(_with_model(_without_variants(below)), changes)


def has_bf16() -> bool:
    """Return whether bfloat16 is faster here than float32: by a GPU, or units of the processor."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _split(name: str, data: Mapping[str, Any], split: str) -> Mapping[str, Any]:
    """Return the changes that one of a recipe's splits makes; the standard one may make none."""
    splits: Mapping[str, Any] = data.get("splits") or {}
    if split not in splits and split != STANDARD:
        raise ConfigError(
            f"--split {split}: {name} knows {', '.join(dict.fromkeys([STANDARD, *splits]))}; "
            "other data are chosen by --data DIR"
        )
    changes: Mapping[str, Any] = splits.get(split) or {}
    return changes


def _fitting(name: str, data: Mapping[str, Any], minutes: int) -> int:
    """Return the largest preset of a recipe that fits into so many minutes on two cores."""
    presets = sorted(data.get("presets") or {})
    fitting = [length for length in presets if length <= minutes]
    if not fitting:
        raise ConfigError(
            f"--minutes {minutes} is shorter than the shortest preset of {name} "
            f"({presets[0] if presets else 'it has none'}); "
            f"presets: {', '.join(map(str, presets)) or 'none'}"
        )
    return int(fitting[-1])


def _without_variants(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key not in ("splits", "presets")}


def check_depth(model: ModelSpec) -> None:
    """Refuse MoE layers that the language model does not have, before anything is trained."""
    whole = language_backbone(model.language_model)
    depth = (language_of(model) if model.language_layers else whole).config["num_hidden_layers"]
    outside = [layer for layer in model.moe_layers if not 0 <= layer < depth]
    if outside:
        raise ConfigError(
            f"moe_layers {list(model.moe_layers)} must lie in 0..{depth - 1}, the layers of "
            f"{model.language_model}; use --set model.moe_layers=[0,2]"
        )


def record_settings(spec: TrainSpec, records: Sequence[str]) -> list[str]:
    """Return the settings that put a user's own sets in the place of all data of a recipe.

    Every phase trains on them, each record where its task belongs. Of a set whose split is not
    named the training part is trained on; the others are kept apart, and the router and the tasks
    of a demonstration are scored on the test part.

    Args:
        records: Sets by path, with or without a split, or by name and split.

    Raises:
        ConfigError: A name stands without a split.
        DataError: A set is neither there nor known by name.
    """
    if plain := [name for name in records if name in registry.READERS]:
        raise ConfigError(f"--records {plain[0]}: name its part too, e.g. {plain[0]}/train")
    # A recipe tells a folder that lies right here from a name by its "./".
    bare = {name for name in records if not set(name) & set("/\\.") and Path(name).exists()}
    records = [f"./{name}" if name in bare else name for name in records]
    whole = [name for name in records if registry.parse_set(name)[1] is None]
    values: dict[str, Any] = {f"phases.{phase}.data": records for phase in spec.phases}
    values["description"] = "The recipe's model and phases, on your own data."
    values["data.apart_from"] = whole
    if spec.router is not None:
        values["router.test"] = whole
    if spec.validation is not None:
        values |= {"validation.data": whole} if whole else {"validation": None}
    if spec.scored:
        values["notes"] = ["The tiny model, all its parts trained from scratch on your data alone."]
        values["scored"] = dict(_scored(name) for name in records)
    return as_settings(values)


def as_settings(values: Mapping[str, Any]) -> list[str]:
    """Return values as the ``key=value`` changes of a recipe."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def _scored(name: str) -> tuple[str, str]:
    """Return the task on a set, and its test part as a recipe names it."""
    _, split = registry.parse_set(name)
    whole = name if split is None else re.sub(r"[:/][^:/]+$", "", name)
    task = task_spec(whole)
    known = whole.partition("/")[0] in registry.READERS
    return task.name, f"{whole}{'/' if known else ':'}{task.split}"


def origin_settings(recipe: Recipe, model: Path, phases: Sequence[str]) -> list[str]:
    """Return the settings that make a recipe go on with a trained model.

    A Med-MoE trains its experts further, with the router it has. A dense model goes through what
    comes after the phase that made it, or through the phases named, the first of which trains it.

    Args:
        model: Its folder, that of its run or of a LoRA adapter, or a hub id.
        phases: Those to run; what the model leads to where empty.

    Raises:
        ConfigError: The recipe has no phase that can go on with it, or knows other domains.
        CheckpointError: It is no model of ours.
    """
    folder, spec = find_model(model), recipe.spec
    config, facts = read_config(folder), provenance(folder)
    kind, after = "Med-MoE", PHASES[PHASES.index("phase3_moe") :][:1]
    possible = after
    if not config.moe_layers:
        possible = PHASES[PHASES.index("phase1_alignment") :]
        # Unless it is said to come from phase 1 it can answer, as after phase 2.
        begun = facts.get("phase") == "phase1_alignment"
        kind, after = "dense model", possible[1:] if begun else possible[2:]
    chosen = [p for p in spec.phases if (p in phases if phases else p in after)]
    if not chosen or chosen[0] not in possible:
        raise ConfigError(
            f"{model} is a {kind}, which {' or '.join(after)} can go on with, and {recipe.name} "
            f"would begin with {(chosen or list(spec.phases))[0]}; choose by --phase, or take a "
            "recipe with such a phase"
        )
    domains = tuple(config.domains or ())
    if config.moe_layers and domains != spec.model.domains:
        raise ConfigError(
            f"{model} has the experts {', '.join(domains)}, {recipe.name} has "
            f"{', '.join(spec.model.domains)}; use --domains {','.join(domains)}"
        )
    goes_on = config.moe_layers or chosen[0] in ("phase1_alignment", "phase2_instruction")
    values: dict[str, Any] = {f"phases.{p}": None for p in spec.phases if p not in chosen}
    values |= model_settings(config, facts)
    values[f"starts.{chosen[0] if goes_on else 'phase2_instruction'}"] = str(
        model if model.exists() else folder
    )
    return as_settings(values)


def model_settings(config: MedMoeConfig, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the shape and the backbones that a trained model has."""
    names = ("moe_layers", "num_experts_per_tok", "router_layers", "meta_expert", "routing")
    shape = {name: getattr(config, name) for name in (names if config.moe_layers else ())}
    parts = (facts.get("base_model") or {}).items()
    backbones = {part: known["name"] for part, known in parts if known.get("name")}
    values = {"image_pool": config.image_pool, **shape, **backbones}
    return {f"model.{name}": value for name, value in values.items()}


def blind_twin(recipe: Recipe) -> Recipe:
    """Return the recipe of the same training without pictures: dense, no encoder, no router.

    Its last phase is that of the SFT model, or phase 3's data and steps where a recipe has none.

    Raises:
        ConfigError: The recipe starts from a model that has seen pictures.
    """
    spec = recipe.spec
    seen = [p for p in spec.starts if PHASE_TABLE[p].leaves in ("dense", "moe")]
    if seen or "phase2_instruction" not in spec.phases:
        raise ConfigError(
            f"{recipe.name} starts from {seen[0] if seen else 'no phase 2 of its own'}, and a "
            "blind twin is trained from phase 1 on; use --blind with the recipe of the model"
        )
    trained = recipe.config["phases"]
    phases = {
        p: v for p, v in trained.items() if PHASE_TABLE[p].leaves in ("language_model", "dense")
    }
    if "sft" not in phases and "phase3_moe" in trained:
        phases["sft"] = like_phase3("sft", trained)
    config = recipe.config | {
        "description": f"The blind twin of {recipe.name}: the same training without pictures.",
        "model": recipe.config["model"] | {"blind": True},
        "phases": phases,
        "starts": {p: run for p, run in spec.starts.items() if p in phases},
        "router": None,
    }
    return replace(recipe, spec=check(TrainSpec, _without_nulls(config), recipe.name))


def twin_key(recipe: Recipe) -> str | None:
    """Return the hash that a model and its blind twin have in common; None where there is no twin.

    What shapes only the experts is not part of it: a recipe's variants share one twin.
    """
    try:
        spec = (recipe if recipe.spec.model.blind else blind_twin(recipe)).spec
    except ConfigError:
        return None
    config, model, watched = spec.model_dump(mode="json"), spec.model, spec.validation
    run, layers = config["run"], [model.language_layers] if model.language_layers else []
    pool = [model.image_pool] if model.image_pool > 1 else []
    return config_hash(
        {
            "image": (model.vision_encoder, model.vision_source, *pool),
            "language": (model.language_model, model.language_source, *layers),
            "run": [run[name] for name in ("precision", "group_by_length", "answers_only")],
            **{name: config[name] for name in ("vocab_size", "max_length", "data", "phases")},
            **({"calibrate": watched.data} if watched and watched.calibrate else {}),
        }
    )


def _read(config: str) -> tuple[str, dict[str, Any]]:
    """Return the name and content of a recipe file."""
    path = Path(config)
    if path.suffix not in {".yaml", ".yml"}:
        if config not in recipe_names("experiments") and path.exists():
            raise ConfigError(f"{config!r} is no recipe; give a name or a YAML file")
        return config, recipe("experiments", config)
    try:
        return path.stem, parse_yaml(path.read_text(encoding="utf-8"), config)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(
            f"{config}: not readable as a recipe ({reason}); give a YAML file, or one of: "
            f"{', '.join(recipe_names('experiments'))}"
        ) from None


def _with_model(data: Mapping[str, Any]) -> dict[str, Any]:
    """Put the model recipe in the place of its name."""
    model = data.get("model")
    if isinstance(model, str):
        return {**data, "model": recipe("models", model)}
    if isinstance(model, Mapping) and "base" in model:
        changes = {key: value for key, value in model.items() if key != "base"}
        return {**data, "model": merged(recipe("models", str(model["base"])), changes)}
    return dict(data)


def _without_nulls(data: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out phases, starts, scored tasks, held-out shares and groups that are null."""
    result = {key: value for key, value in data.items() if value is not None}
    for group in ("phases", "starts", "scored", "held_out"):
        if isinstance(result.get(group), Mapping):
            result[group] = {k: v for k, v in result[group].items() if v is not None}
    if isinstance(result.get("data"), Mapping) and "held_out" in result["data"]:
        result["data"] = _without_nulls(result["data"])
    return result
