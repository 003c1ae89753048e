"""Which step plan a number of minutes picks, and that every recipe and plan is valid."""

from __future__ import annotations

import itertools
from importlib import resources
from pathlib import Path

import pytest
from tests.model.tiny import LAYERS, MOE_LAYERS, WIDTH, dense_model, moe_model

from medmoe.backbones.registry import language_backbone, vision_backbone
from medmoe.config.load import check, recipe
from medmoe.config.schema import PHASES, DemoSpec, ModelSpec
from medmoe.errors import ConfigError
from medmoe.experiments.demo_plan import plan_demo
from medmoe.experiments.demo_report import next_steps
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.cost import activated_parameters


def names(kind: str) -> list[str]:
    folder = resources.files("medmoe.recipes") / kind
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith("yaml"))


def spec_of(name: str) -> DemoSpec:
    return check(DemoSpec, recipe("experiments", name), name)


PLANS = [(name, minutes) for name in names("experiments") for minutes in spec_of(name).plans]
ROOT = Path("no such folder is opened")


def test_there_are_recipes_to_check() -> None:
    assert {"demo_phantom", "demo_real"} <= set(names("experiments"))
    assert {"tiny", "phi2_2_7b", "stablelm2_1_6b"} <= set(names("models"))


@pytest.mark.parametrize("name", names("models"))
def test_every_model_recipe_names_real_parts_and_gives_a_valid_config(name: str) -> None:
    model = check(ModelSpec, recipe("models", name), name)
    language = language_backbone(model.language_model)
    vision_backbone(model.vision_encoder)
    config = MedMoeConfig(
        text_config={"model_type": language.model_type, **language.config},
        moe_layers=list(model.moe_layers),
        domains=list(model.domains),
        num_experts_per_tok=model.num_experts_per_tok,
        router_layers=model.router_layers,
    )
    assert config.moe_layers == list(model.moe_layers)


@pytest.mark.parametrize("name", names("experiments"))
def test_every_experiment_recipe_names_a_model_and_all_phases(name: str) -> None:
    spec = spec_of(name)
    assert spec.model in names("models")
    assert set(spec.phases) == set(PHASES)
    assert spec.router_images <= 1000  # the paper's upper bound


@pytest.mark.parametrize(("name", "minutes"), PLANS)
def test_every_plan_has_work_for_every_phase(name: str, minutes: int) -> None:
    plan = spec_of(name).plans[minutes]
    assert minutes >= 1
    assert set(plan.steps) == set(PHASES)
    embedded = name == "demo_phantom"
    assert (plan.train_images > 0) == (plan.test_images > 0) == embedded


@pytest.mark.parametrize(("name", "minutes"), PLANS)
def test_sft_gets_the_steps_of_phase_3(name: str, minutes: int) -> None:
    """The comparison of the paper's Table 4: same data, same steps, same optimisation."""
    spec = spec_of(name)
    steps = spec.plans[minutes].steps
    assert steps["sft"] == steps["phase3_moe"]
    assert spec.phases["sft"] == spec.phases["phase3_moe"]


@pytest.mark.parametrize("name", names("experiments"))
def test_a_longer_plan_is_never_less_work(name: str) -> None:
    plans = spec_of(name).plans
    for short, long in itertools.pairwise(sorted(plans)):
        assert all(plans[short].steps[phase] <= plans[long].steps[phase] for phase in PHASES)
        assert plans[short].train_images <= plans[long].train_images


@pytest.mark.parametrize("root", [None, ROOT])
def test_the_largest_plan_that_fits_is_picked(root: Path | None) -> None:
    spec = spec_of("demo_phantom" if root is None else "demo_real")
    lengths = sorted(spec.plans)
    assert len(lengths) > 1
    for here, following in itertools.pairwise([*lengths, lengths[-1] + 1000]):
        for minutes in (here, following - 1):
            plan = plan_demo(root, "standard", minutes, 7)
            assert plan.minutes == here
            assert plan.steps == spec.plans[here]


def test_default_minutes_of_the_demo_are_a_plan_of_the_phantom() -> None:
    from medmoe.cli.main import parser_of

    minutes = parser_of("demo").parse_strictly([]).minutes
    assert minutes in spec_of("demo_phantom").plans


def test_the_seed_changes_no_step() -> None:
    assert plan_demo(None, "standard", 10, 7).steps == plan_demo(None, "standard", 10, 8).steps


def test_minutes_below_the_shortest_plan_are_refused_with_the_choices() -> None:
    shortest = min(spec_of("demo_real").plans)
    assert shortest > 1
    message = rf"^--minutes 1 is shorter than the shortest plan \({shortest}\); plans: {shortest}, "
    with pytest.raises(ConfigError, match=message):
        plan_demo(ROOT, "standard", 1, 7)


def test_a_disjoint_phantom_is_refused_with_the_fix() -> None:
    message = r"^--split disjoint needs real data \(.*\); add --data DIR$"
    with pytest.raises(ConfigError, match=message):
        plan_demo(None, "disjoint", 10, 7)


def test_settings_change_the_recipe_and_the_model() -> None:
    settings = ["model.num_experts_per_tok=2", "phases.phase3_moe.learning_rate=1e-4"]
    plan = plan_demo(None, "standard", 10, 7, settings)
    assert plan.model.num_experts_per_tok == 2
    assert plan.spec.phases["phase3_moe"].learning_rate == 1e-4
    assert plan.config_sha256 != plan_demo(None, "standard", 10, 7).config_sha256


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.num_experts_per_tok=9", r"num_experts_per_tok \(9\) must not exceed .* \(4\)"),
        ("model.moe_layers=[0,9]", r"moe_layers \[0, 9\] must lie in 0\.\.3"),
        ("model.moe_layers=[0,0]", "each once"),
        ("model.num_experts_per_token=2", "did you mean 'num_experts_per_tok'"),
        ("phases.phase3.learning_rate=1", "did you mean 'phase3_moe'"),
    ],
)
def test_a_setting_that_breaks_a_rule_is_refused_before_training(
    setting: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_demo(None, "standard", 10, 7, [setting])


def test_resolved_config_holds_what_was_chosen() -> None:
    config = plan_demo(ROOT, "disjoint", 12, 3).config
    assert config["experiment"] == "demo_real"
    assert (config["split"], config["seed"]) == ("disjoint", 3)
    assert config["plan"]["steps"].keys() == set(PHASES)
    assert "plans" not in config["spec"]


@pytest.mark.parametrize("root", [None, ROOT])
def test_next_steps_are_commands_that_exist(root: Path | None) -> None:
    import re
    import shlex

    from medmoe.cli.main import parser_of

    lines = next_steps(plan_demo(root, "standard", 12, 7), Path("runs/demo"))
    commands = [c for line in lines for c in re.findall(r"`(medmoe [^`]+)`", line)]
    assert commands
    for command in commands:
        _, verb, *rest = shlex.split(command)
        parser_of(verb).parse_strictly(rest)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_activated_are_all_weights_but_the_experts_not_chosen(top_k: int) -> None:
    model = moe_model("stablelm", top_k=top_k)
    total = sum(p.numel() for p in model.parameters())
    expert = 3 * WIDTH * 48  # gate, up and down of one expert
    idle = len(MOE_LAYERS) * (4 - top_k) * expert
    assert activated_parameters(model) == total - idle


def test_activated_counts_the_biases_of_plain_experts() -> None:
    model = moe_model("phi", top_k=1)
    total = sum(p.numel() for p in model.parameters())
    expert = 2 * WIDTH * 48 + 48 + WIDTH  # two layers with their biases
    assert activated_parameters(model) == total - len(MOE_LAYERS) * 3 * expert


def test_all_weights_of_a_dense_model_are_activated() -> None:
    model = dense_model("stablelm")
    assert len(MOE_LAYERS) < LAYERS
    assert activated_parameters(model) == sum(p.numel() for p in model.parameters())
