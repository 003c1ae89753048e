from __future__ import annotations

import json
from typing import Any

import pytest

from medmoe.config.load import apply_overrides, check, config_hash, like_phase3, parse_yaml, recipe
from medmoe.config.schema import PHASES, ModelSpec, PhaseSpec
from medmoe.config.train_schema import TrainSpec
from medmoe.errors import ConfigError

MODEL: dict[str, Any] = {
    "language_model": "tiny_stablelm",
    "vision_encoder": "tiny_clip_64",
    "moe_layers": [0, 2],
    "domains": ["ct", "mri"],
    "num_experts_per_tok": 1,
    "router_layers": 1,
    "upcycle_init": "copy",
}
PHASE = {
    "learning_rate": 2e-5,
    "batch_size": 4,
    "warmup_ratio": 0.03,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
}
RECIPE: dict[str, Any] = {
    "description": "For tests.",
    "model": MODEL,
    "vocab_size": 300,
    "router": {"labels": 10, "loss": "token", "per_layer": False},
    "phases": {
        name: {**PHASE, "data": ["phantom/train"], "steps": 1}
        for name in PHASES
        if name not in ("phase0_adapt", "phase3_experts", "phase4_expert")
    },
}


def refusal(spec: Any, data: dict[str, Any], *settings: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check(spec, apply_overrides(data, settings), "recipe.yaml")
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5),
        ("1E3", 1000.0),
        ("-1.5e+2", -150.0),
        ("0.5", 0.5),
        ("12", 12),
        ("2e-5x", "2e-5x"),
        ("e5", "e5"),
        ("'2e-5'", "2e-5"),
    ],
)
def test_numbers_with_an_exponent_are_numbers(text: str, value: object) -> None:
    found = parse_yaml(f"key: {text}", "x")["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", r"^x: not readable as YAML: "),
        (
            "a: 1\nb: {c: 1, c: 2}",
            r"^x: not readable as YAML: line 2, column 11: key 'c' stands twice",
        ),
        ("- 1", r"^x: must be a mapping of keys to values, got list$"),
        ("", r"^x: must be a mapping of keys to values, got NoneType$"),
        ("a: !!python/object/apply:os.getcwd []", r"^x: not readable as YAML: .*constructor"),
    ],
)
def test_a_text_that_is_no_recipe_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_yaml(text, "x")
    assert "\n" not in str(caught.value)


def test_a_good_recipe_passes_with_lists_as_tuples() -> None:
    spec = check(ModelSpec, MODEL, "recipe.yaml")
    assert spec.moe_layers == (0, 2)
    assert spec.domains == ("ct", "mri")


def test_an_unknown_key_is_refused_with_the_nearest_known_one() -> None:
    message = refusal(ModelSpec, MODEL | {"num_expert_per_tok": 2})
    assert message.startswith("recipe.yaml: unknown key at top level: 'num_expert_per_tok'; ")
    assert message.endswith("did you mean 'num_experts_per_tok'?")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "phases.sft.lerning_rate=1",
            r"unknown key at phases\.sft: 'lerning_rate'; .*learning_rate.* mean 'learning_rate'\?",
        ),
        ("phases.phase3_mo.batch_size=1", r"unknown key at phases: 'phase3_mo'; .*'phase3_moe'\?"),
        ("data.limit.x=1", r"unknown key at data: 'limit'; .* mean 'limits'\?"),
        ("starts.stf=x", r"unknown key at starts: 'stf'; .* mean 'sft'\?"),
    ],
)
def test_a_deep_unknown_key_is_refused_with_its_place(setting: str, message: str) -> None:
    import re

    assert re.search(message, refusal(TrainSpec, RECIPE, setting))


def test_a_missing_key_is_named() -> None:
    data = {key: value for key, value in MODEL.items() if key != "domains"}
    assert refusal(ModelSpec, data) == "recipe.yaml: domains is missing; add it"
    short = {**RECIPE, "phases": {**RECIPE["phases"], "sft": {"batch_size": 4}}}
    assert refusal(TrainSpec, short) == "recipe.yaml: phases.sft.learning_rate is missing; add it"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("num_experts_per_tok='2'", "num_experts_per_tok = '2': Input should be a valid integer"),
        ("num_experts_per_tok=0", "num_experts_per_tok = 0: Input should be greater than 0"),
        ("router_layers=2.5", "router_layers = 2.5: Input should be a valid integer"),
        ("router_layers=4", "router_layers = 4: Input should be less than or equal to 3"),
        ("moe_layers=x", "moe_layers = 'x': Input should be a valid array"),
        ("moe_layers=[0, x]", "moe_layers.1 = 'x': Input should be a valid integer"),
        ("language_model=3", "language_model = 3: Input should be a valid string"),
        ("upcycle_init=zero", "upcycle_init = 'zero': Input should be 'copy' or 'function_pres"),
    ],
)
def test_a_wrong_value_is_named_with_its_rule(setting: str, message: str) -> None:
    assert refusal(ModelSpec, MODEL, setting).startswith(f"recipe.yaml: {message}")


@pytest.mark.parametrize("value", [".nan", ".inf", "-1e-3", "0", "fast"])
def test_a_learning_rate_is_a_finite_number_above_zero(value: str) -> None:
    message = refusal(PhaseSpec, PHASE, f"learning_rate={value}")
    assert message.startswith("recipe.yaml: learning_rate = ")


def test_a_huge_value_does_not_fill_the_screen() -> None:
    assert len(refusal(ModelSpec, MODEL | {"router_layers": "9" * 5000})) < 200


def test_settings_change_values_at_any_depth_and_nothing_else() -> None:
    changed = apply_overrides(RECIPE, ["phases.sft.learning_rate=3e-4", "phases.sft.steps=7"])
    phases = check(TrainSpec, changed, "x").phases
    assert (phases["sft"].learning_rate, phases["sft"].steps) == (3e-4, 7)
    assert (phases["phase3_moe"].learning_rate, phases["phase3_moe"].steps) == (2e-5, 1)
    assert RECIPE["phases"]["sft"]["learning_rate"] == 2e-5
    assert apply_overrides(MODEL, ["domains=[ct, xray]"])["domains"] == ["ct", "xray"]
    assert apply_overrides(MODEL, ["a=1", "a=2"])["a"] == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("router_layers", r"--set 'router_layers' must read key=value"),
        ("=3", r"--set '=3' must read key=value"),
        ("a..b=3", r"--set 'a\.\.b=3' must read key=value"),
        ("domains.ct=1", r"--set 'domains\.ct=1': domains is a value, not a group"),
        ("moe_layers=[0,", r"--set 'moe_layers=\[0,': not readable as YAML"),
        ("language_model=a: b", r"--set 'language_model=a: b': not readable as YAML"),
    ],
)
def test_a_malformed_setting_is_refused(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        apply_overrides(MODEL, [setting])
    assert "\n" not in str(caught.value)


def test_a_date_is_read_as_text() -> None:
    spec = check(ModelSpec, apply_overrides(MODEL, ["language_model=2024-04-16"]), "x")
    assert spec.language_model == "2024-04-16"


def test_specifications_do_not_change_once_checked() -> None:
    spec = check(ModelSpec, MODEL, "x")
    with pytest.raises(ValueError, match="frozen"):
        spec.router_layers = 2  # type: ignore[misc]


def test_the_hash_follows_every_value_and_no_key_order() -> None:
    first = config_hash(MODEL)
    assert first == config_hash(dict(reversed(MODEL.items())))
    assert len(first) == 64
    nested = config_hash({"a": {"b": 1, "c": 2}})
    assert nested == config_hash({"a": {"c": 2, "b": 1}})
    changed = [f"{key}=2" for key in ("num_experts_per_tok", "router_layers")]
    changed += ["upcycle_init=function_preserving", "domains=[mri, ct]", "moe_layers=[0]"]
    hashes = {config_hash(apply_overrides(MODEL, [setting])) for setting in changed}
    assert len(hashes | {first}) == len(changed) + 1


def test_every_recipe_of_the_package_is_found_and_an_unknown_one_refused() -> None:
    assert recipe("models", "tiny")["language_model"] == "tiny_stablelm"
    with pytest.raises(ConfigError, match=r"unknown recipe in models 'tinny'; .* mean 'tiny'\?"):
        recipe("models", "tinny")


def test_what_is_the_papers_is_not_named_in_the_resolved_recipe() -> None:
    """So that a run's hash does not change by a key that came later and says nothing."""
    assert check(ModelSpec, MODEL, "x").model_dump(mode="json") == MODEL
    assert "trains" not in check(PhaseSpec, PHASE, "x").model_dump(mode="json")
    changed = check(ModelSpec, MODEL | {"meta_expert": False}, "x").model_dump(mode="json")
    assert changed == MODEL | {"meta_expert": False}
    by_picture = check(ModelSpec, MODEL | {"routing": "image"}, "x").model_dump(mode="json")
    assert by_picture == MODEL | {"routing": "image"}


def test_no_hyperparameter_of_the_paper_has_a_hidden_default() -> None:
    optional = {
        spec.__name__: {n for n, f in spec.model_fields.items() if not f.is_required()}
        for spec in (ModelSpec, PhaseSpec)
    }
    # Ours, not the paper's: augmentation, label smoothing, … are off unless a recipe says so.
    # The paper's: a meta expert, and the parts that train; backbones from where their entry says.
    assert optional["ModelSpec"] == {
        "meta_expert",
        "routing",
        "experts",
        "blind",
        "language_layers",
        "language_source",
        "vision_source",
        "image_pool",
    }
    assert optional["PhaseSpec"] == {
        "batch_of",
        "augment",
        "label_smoothing",
        "trains",
        "sides",
        "answers",
        "layer_decay",
        "projector_factor",
        "average",
    }


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: 1\nb: [c, d\ne: 1\n", r"line 3, column 2: expected ',' or '\]', but got ':'"),
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1: key 'a' stands twice; keep one"),
        ("a: \x00", "unacceptable character #x0000: .* at position 3"),
    ],
)
def test_broken_yaml_is_one_line_that_names_file_and_line(text: str, place: str) -> None:
    with pytest.raises(ConfigError, match=rf"^my\.yaml: not readable as YAML: {place}$") as caught:
        parse_yaml(text, "my.yaml")
    assert "unicode string" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "home"),
    [
        ("phase2_instruction.sides=[64, 128]", "phase0_adapt"),
        ("phase2_instruction.answers=true", "phase0_adapt"),
        ("phase2_instruction.prompt=plain", "phase1_alignment"),
        ("phase2_router.batch_of=questions", "a phase that packs questions"),
    ],
)
def test_what_only_other_phases_have_is_refused(setting: str, home: str) -> None:
    place = setting.partition("=")[0]
    name = place.partition(".")[2]
    message = refusal(TrainSpec, RECIPE, f"phases.{setting}")
    assert f"phases.{place}: only {home} has {name}; leave it out" in message


@pytest.mark.parametrize(
    ("phase", "changes"),
    [
        ("phase2_instruction", {"views": 2}),
        ("phase2_instruction", {"views": 2, "augment": 0.5, "keep_features": False}),
        ("phase2_router", {"views": 2, "augment": 0.5}),
    ],
)
def test_views_are_kept_augmented_and_of_phases_that_read_pictures(
    phase: str, changes: dict[str, Any]
) -> None:
    settings = [f"phases.{phase}.{key}={json.dumps(value)}" for key, value in changes.items()]
    message = refusal(TrainSpec, RECIPE, *settings)
    assert f"phases.{phase}.views is 2: that is of kept features" in message
    good = {**RECIPE["phases"]["sft"], "views": 2, "augment": 0.5}
    check(TrainSpec, {**RECIPE, "phases": {**RECIPE["phases"], "sft": good}}, "x")


def test_new_values_of_a_phase_are_not_in_the_dump_of_a_recipe_that_does_not_name_them() -> None:
    dumped = check(TrainSpec, RECIPE, "x").model_dump(mode="json")["phases"]["sft"]
    new = {
        "views",
        "sides",
        "answers",
        "layer_decay",
        "projector_factor",
        "average",
        "batch_of",
        "prompt",
    }
    assert not new & set(dumped)


def test_an_sft_twin_trains_what_phase_2_does_on_phase_3s_data() -> None:
    lora = {"rank": 2, "alpha": 4}
    phases = {
        "phase2_instruction": {"trains": "lora", "lora": lora, "data": ["own/train"]},
        "phase3_moe": {"data": ["own/questions"], "load_balance": 0.1, "trains": "learned_router"},
    }
    expected = {"data": ["own/questions"], "trains": "lora", "lora": lora, "load_balance": 0.0}
    assert like_phase3("sft", phases) == expected
    assert like_phase3("phase3_experts", phases) == expected | {"trains": "paper", "lora": None}
