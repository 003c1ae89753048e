"""Which preset a number of minutes picks, and that every preset and split is a valid recipe."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from tests.experiments.micro import PHASES
from tests.model.tiny import LAYERS, MOE_LAYERS, WIDTH, dense_model, moe_model

from medmoe.config.load import recipe
from medmoe.errors import ConfigError
from medmoe.evaluation.tasks import TASKS
from medmoe.experiments.demo import next_steps, plan_demo
from medmoe.experiments.plan import TrainPlan
from medmoe.experiments.recipe import load_recipe
from medmoe.model.cost.parameters import activated_parameters

DEMOS = ("demo_phantom", "demo_real")
VARIANTS = [
    (name, split, minutes)
    for name in DEMOS
    for split in ("standard", *recipe("experiments", name)["splits"])
    for minutes in recipe("experiments", name)["presets"]
]
ROOT = Path("no such folder is opened")


def plan(root: Path | None, minutes: int, *settings: str, **changes: Any) -> TrainPlan:
    values = {"split": "standard", "seed": 7, "out": Path("out")} | changes
    return plan_demo(root, minutes=minutes, settings=settings, **values)


@pytest.mark.parametrize(("name", "split", "minutes"), VARIANTS)
def test_every_split_of_every_preset_trains_and_scores_all(
    name: str, split: str, minutes: int
) -> None:
    spec = load_recipe(name, split=split, minutes=minutes).spec
    assert list(spec.phases) == list(PHASES)
    assert all(values.steps for values in spec.phases.values())
    assert spec.router is not None
    assert spec.router.labels <= 1000  # the paper's upper bound
    assert spec.scored.keys() <= TASKS.keys()
    assert set(spec.apart_from()) >= set(spec.scored.values())


@pytest.mark.parametrize(("name", "split", "minutes"), VARIANTS)
def test_sft_gets_the_steps_of_phase_3(name: str, split: str, minutes: int) -> None:
    """The comparison of the paper's Table 4: same data, same steps, same optimisation."""
    phases = load_recipe(name, split=split, minutes=minutes).spec.phases
    assert phases["sft"] == phases["phase3_moe"]


@pytest.mark.parametrize("name", DEMOS)
def test_a_longer_preset_is_never_less_work(name: str) -> None:
    for short, long in itertools.pairwise(sorted(recipe("experiments", name)["presets"])):
        less, more = (load_recipe(name, minutes=minutes).spec for minutes in (short, long))
        assert all(less.phases[p].steps <= more.phases[p].steps for p in PHASES)  # type: ignore[operator]
        assert less.data.phantom_images <= more.data.phantom_images


@pytest.mark.parametrize("root", [None, ROOT])
def test_the_largest_preset_that_fits_is_picked(root: Path | None) -> None:
    name = "demo_phantom" if root is None else "demo_real"
    lengths = sorted(recipe("experiments", name)["presets"])
    assert len(lengths) > 1
    for here, following in itertools.pairwise([*lengths, lengths[-1] + 1000]):
        for minutes in (here, following - 1):
            found = plan(root, minutes).recipe
            assert found.minutes == here
            assert found.spec == load_recipe(name, minutes=here).spec


def test_default_minutes_of_the_demo_are_a_preset_of_the_phantom() -> None:
    from medmoe.cli.main import parser_of

    minutes = parser_of("demo").parse_strictly([]).minutes
    assert minutes in recipe("experiments", "demo_phantom")["presets"]


def test_minutes_below_the_shortest_preset_are_refused_with_the_choices() -> None:
    message = r"^--minutes 1 is shorter than the shortest preset of demo_real \(2\); presets: 2, "
    with pytest.raises(ConfigError, match=message):
        plan(ROOT, 1)
    with pytest.raises(ConfigError, match=r"preset of tiny_real \(it has none\)"):
        load_recipe("tiny_real", minutes=10)


def test_a_split_that_a_recipe_lacks_is_refused_with_the_choices() -> None:
    message = "^--split disjoint: demo_phantom knows standard, validation; .* by --data DIR$"
    with pytest.raises(ConfigError, match=message):
        plan(None, 10, split="disjoint")


def test_settings_change_the_preset_and_the_model() -> None:
    settings = ("model.num_experts_per_tok=2", "phases.phase3_moe.learning_rate=1e-4")
    found = plan(None, 10, *settings).recipe
    assert found.spec.model.num_experts_per_tok == 2
    assert found.spec.phases["phase3_moe"].learning_rate == 1e-4
    assert found.sha256 != plan(None, 10).recipe.sha256


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
        plan(None, 10, setting)


@pytest.mark.parametrize("root", [None, ROOT])
def test_next_steps_are_commands_that_exist(root: Path | None) -> None:
    import re
    import shlex

    from medmoe.cli.main import parser_of

    lines = next_steps(plan(root, 12))
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
