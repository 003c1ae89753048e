"""What a demonstration will do, settled and checked before anything is trained.

``minutes`` picks a step plan from the recipe's table, never a clock: the same arguments do the same
work anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmoe.backbones.registry import language_backbone
from medmoe.config.load import apply_overrides, check, config_hash, recipe
from medmoe.config.schema import DemoSpec, ModelSpec, StepPlan
from medmoe.errors import ConfigError
from medmoe.experiments.demo_corpus import SplitName
from medmoe.training.saving.run_dir import git_commit


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """What a demonstration will do, settled before it starts.

    Attributes:
        source: Commit of the code, None outside a checkout, and whether it has changes: read now,
            since the checkout may move on while the run lasts.
    """

    root: Path | None
    split: SplitName
    seed: int
    minutes: int
    model: ModelSpec
    spec: DemoSpec
    steps: StepPlan
    source: tuple[str | None, bool]

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration, as written into the run directory."""
        return {
            "experiment": "demo_phantom" if self.root is None else "demo_real",
            "split": self.split,
            "minutes": self.minutes,
            "seed": self.seed,
            "model": self.model.model_dump(mode="json"),
            "spec": self.spec.model_dump(mode="json", exclude={"plans"}),
            "plan": self.steps.model_dump(mode="json"),
        }

    @property
    def config_sha256(self) -> str:
        """Hash of all that shapes the result but the seed."""
        return config_hash({key: value for key, value in self.config.items() if key != "seed"})


def plan_demo(
    root: Path | None, split: SplitName, minutes: int, seed: int, settings: Sequence[str] = ()
) -> DemoPlan:
    """Settle the recipe and the step plan: the largest one that fits into ``minutes``.

    Args:
        root: Folder of the real data sets, None for the embedded phantom.
        settings: ``key=value`` changes of the recipe; keys under ``model.`` are the model's.

    Raises:
        ConfigError: No plan is that short, the phantom is asked for another split, or a setting
            breaks a rule.
    """
    name = "demo_phantom" if root is None else "demo_real"
    of_model = [setting for setting in settings if setting.startswith("model.")]
    of_demo = [setting for setting in settings if setting not in of_model]
    spec = check(DemoSpec, apply_overrides(recipe("experiments", name), of_demo), name)
    if root is None and split == "disjoint":
        raise ConfigError(
            "--split disjoint needs real data (the phantom's splits always are); add --data DIR"
        )
    fitting = [length for length in spec.plans if length <= minutes]
    if not fitting:
        raise ConfigError(
            f"--minutes {minutes} is shorter than the shortest plan ({min(spec.plans)}); "
            f"plans: {', '.join(map(str, sorted(spec.plans)))}"
        )
    chosen = {"model": recipe("models", spec.model)}
    model = check(ModelSpec, apply_overrides(chosen, of_model)["model"], spec.model)
    check_depth(model)
    steps = spec.plans[max(fitting)]
    return DemoPlan(root, split, seed, max(fitting), model, spec, steps, git_commit())


def check_depth(model: ModelSpec) -> None:
    """Refuse MoE layers that the language model does not have, before anything is trained."""
    depth = language_backbone(model.language_model).config["num_hidden_layers"]
    outside = [layer for layer in model.moe_layers if not 0 <= layer < depth]
    if outside:
        raise ConfigError(
            f"moe_layers {list(model.moe_layers)} must lie in 0..{depth - 1}, the layers of "
            f"{model.language_model}; use --set model.moe_layers=[0,2]"
        )
