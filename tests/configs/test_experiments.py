"""Every experiment recipe resolves; what each of its phases trains builds on the meta device."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import yaml

import medmoe.recipes
from medmoe.config.load import recipe, recipe_names
from medmoe.config.phases import PHASE_TABLE
from medmoe.config.schema import PHASES
from medmoe.errors import ConfigError
from medmoe.experiments import recipe as recipe_module
from medmoe.experiments.estimate import Shape, memory_bytes, phase_shape, step_memory
from medmoe.experiments.recipe import load_recipe

RECIPES = Path(medmoe.recipes.__file__).parent
FILES = sorted(path.stem for path in (RECIPES / "experiments").iterdir())
FAMILIES = ("phi2", "stablelm2", "tiny_phantom", "tiny_real", "small_real", "small_real_disjoint")
NAMES = recipe_names("experiments")
#: What each family varies, beside its base: table of the paper -> suffixes.
ABLATIONS = {
    "Table 4": ("sft",),
    "Table 5": ("no_meta",),
    "Table 6": ("learned_router",),
    "Table 9": ("top2",),
    "Table 10": ("experts2", "experts6"),
    "Figure 6": ("label_curve",),
    "ours": ("function_preserving", "reference_phase3"),
}
_shapes: dict[str, Shape] = {}


def shape(name: str, phase: str) -> Shape:
    """Return what a phase of a recipe trains; recipes of one family share most of it."""
    spec = load_recipe(name).spec
    values = spec.phases[phase]  # type: ignore[index]
    key = f"{spec.model} {phase} {values.trains} {values.lora} {spec.vocab_size} {spec.router}"
    if key not in _shapes:
        _shapes[key] = phase_shape(spec, phase)  # type: ignore[arg-type]
    return _shapes[key]


def test_every_family_has_every_ablation() -> None:
    suffixes = [suffix for group in ABLATIONS.values() for suffix in group]
    wanted = {f"{family}_{suffix}" for family in FAMILIES for suffix in suffixes}
    # The embedded pictures show four domains: there is none of ultrasound to train an expert on.
    wanted -= {"tiny_phantom_experts6"}
    ours = ("tiny_phantom", "tiny_real", "small_real", "small_real_disjoint")
    wanted |= {f"{family}_{own}" for family in ours for own in ("per_domain", "image_routing")}
    wanted |= {f"small_real_layers{count}" for count in (9, 12, 15)}
    assert wanted <= set(NAMES)
    ranks = {
        "phi2": (128, 256),
        "stablelm2": (128, 256),
        "tiny_phantom": (4, 8),
        "tiny_real": (4, 8),
        "small_real": (32, 64),
        "small_real_disjoint": (32, 64),
    }
    for family, pair in ranks.items():
        for rank in pair:
            spec = load_recipe(f"{family}_lora{rank}").spec
            lora = spec.phases["phase3_moe"].lora
            assert lora is not None
            assert lora.rank == rank


@pytest.mark.parametrize("name", NAMES)
def test_every_phase_builds_on_the_meta_device(name: str) -> None:
    spec = load_recipe(name).spec
    assert list(spec.phases) == [phase for phase in PHASES if phase in spec.phases]
    for phase, values in spec.phases.items():
        found = shape(name, phase)
        assert 0 < found.trainable <= found.total
        assert PHASE_TABLE[phase].trains[values.trains]


@pytest.mark.parametrize("name", FILES)
def test_every_file_opens_with_its_command_and_what_to_expect(name: str) -> None:
    path = RECIPES / "experiments" / f"{name}.yaml"
    first, second, *_ = path.read_text(encoding="utf-8").splitlines()
    verb = "demo" if name.startswith("demo_") else f"train {name}"
    assert re.fullmatch(rf"# medmoe {verb}( --data DIR)?( --minutes 60)?", first)
    assert second.startswith("# ")
    assert re.search(r"\d|Not in the paper", second) or verb == "demo"
    real = any(
        not d.startswith("phantom/") for p in load_recipe(name).spec.phases.values() for d in p.data
    )
    assert real == ("--data DIR" in first)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_ablation_says_what_of_the_paper_it_repeats(family: str) -> None:
    for group, suffixes in ABLATIONS.items():
        for suffix in suffixes:
            if (name := f"{family}_{suffix}") in NAMES:
                said = load_recipe(name).spec.description
                assert re.search("ours|reference code" if group == "ours" else group, said), name


@pytest.mark.parametrize("name", sorted({*NAMES} - {*FILES}))
def test_what_an_ablation_does_not_train_it_takes_from_its_familys_run(name: str) -> None:
    spec, family = load_recipe(name).spec, recipe("experiments", name)["base"]
    whole = load_recipe(family).spec
    assert spec.starts == {phase: f"runs/{family}/{phase}" for phase in spec.starts}
    assert not spec.starts.keys() & spec.phases.keys()
    assert spec.starts.keys() <= whole.phases.keys()
    inputs = {source for phase in spec.phases for source in spec.inputs(phase)}
    assert spec.starts.keys() == inputs - spec.phases.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_dense_twin_is_trained_on_phase_3s_data(family: str) -> None:
    whole = load_recipe(family).spec.phases
    sft = load_recipe(f"{family}_sft").spec.phases["sft"]
    assert sft.trains == whole["phase2_instruction"].trains
    # The tiny twin on real pictures: twice the steps.
    same = {"trains": "paper"} | ({"steps": 60} if family == "tiny_real" else {})
    assert sft.model_copy(update=same) == whole["phase3_moe"]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_named_after_its_base(name: str) -> None:
    base = recipe("experiments", name).get("base")
    assert base is None or name.startswith((f"{base}_", "demo_"))


def test_a_variant_of_a_recipe_with_a_base_differs_from_it_as_of_any_other() -> None:
    disjoint = load_recipe("small_real_disjoint").spec
    for suffix in ("sft", "no_meta", "top2"):
        of, plain = (
            load_recipe(f"{name}_{suffix}").spec for name in ("small_real_disjoint", "small_real")
        )
        assert of.phases.keys() == plain.phases.keys()
        assert (of.model, of.data) == (plain.model, disjoint.data)
        for phase, values in of.phases.items():
            assert values.data == disjoint.phases[phase].data


def test_bases_that_stand_on_each_other_are_refused(tmp_path: Path) -> None:
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    one.write_text(f"base: {other}\n", encoding="utf-8")
    other.write_text(f"base: {one}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"other: its base .*one.yaml stands on it; take one"):
        load_recipe(str(one))


@pytest.mark.parametrize("name", ["phi2", "tiny_real", "tiny_phantom_experts2", "phi2_lora128"])
def test_the_resolved_recipe_is_a_recipe_itself(name: str, tmp_path: Path) -> None:
    found = load_recipe(name)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(found.config, sort_keys=False), encoding="utf-8")
    again = load_recipe(str(path))
    assert again.spec == found.spec
    assert again.sha256 == found.sha256


@pytest.mark.parametrize("family", ["tiny_phantom", "tiny_real", "small_real"])
def test_experts_by_domain_are_tuned_as_phase_3_is(family: str) -> None:
    phase3 = load_recipe(family).spec.phases["phase3_moe"]
    joined = load_recipe(f"{family}_per_domain").spec
    assert joined.phases["phase3_experts"] == joined.phases["phase3_moe"] == phase3


def test_the_ladder_trains_dense_models_of_the_first_layers_as_the_dense_twin() -> None:
    twin = load_recipe("small_real_sft").spec.phases["sft"]
    sizes = [shape("small_real_sft", "sft").total]
    for count in (15, 12, 9):
        spec = load_recipe(f"small_real_layers{count}").spec
        assert (spec.model.language_layers, spec.phases["sft"]) == (count, twin)
        sizes.append(shape(f"small_real_layers{count}", "sft").total)
    # A layer of Gemma 3 270M: attention of 4 and 1 heads of 256, an FFN of 2048, its norms.
    layer = 640 * (2 * 1024 + 2 * 256) + 3 * 640 * 2048 + 4 * 640 + 2 * 256
    assert [a - b for a, b in itertools.pairwise(sizes)] == [3 * layer] * 3


def test_layers_that_the_language_model_does_not_have_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"language_layers \(19\) must not exceed the 18 layers"):
        load_recipe("small_real", ["model.language_layers=19"])
    with pytest.raises(ConfigError, match=r"moe_layers \[.*16\] must lie in 0\.\.8"):
        load_recipe("small_real", ["model.language_layers=9"])


def test_what_only_measures_is_no_part_of_the_hash_of_a_run() -> None:
    plain, measured, kept = (
        load_recipe("tiny_phantom", [change])
        for change in ("validation=null", "validation.every=7", "validation.keep_best=true")
    )
    assert measured.spec.validation is not None
    assert plain.sha256 == measured.sha256 != kept.sha256


@pytest.mark.parametrize("name", ["phi2", "stablelm2"])
def test_the_papers_runs_have_table_11s_values(name: str) -> None:
    spec = load_recipe(name).spec
    phases = [spec.phases[p] for p in ("phase1_alignment", "phase2_instruction", "phase3_moe")]
    assert [phase.learning_rate for phase in phases] == [1e-3, 2e-5, 2e-5]
    assert [phase.epochs for phase in phases] == [1, 3, 9]
    assert {(p.warmup_ratio, p.weight_decay) for p in phases} == {(0.03, 0.0)}
    assert (spec.max_length, spec.run.precision) == (2048, "bf16")
    assert spec.router is not None
    assert spec.router.labels == 1000


def test_real_sizes_are_counted() -> None:
    phi = shape("phi2", "phase3_moe")
    assert round(phi.total / 1e9, 2) == 6.45
    # Five FFNs with biases in each of 16 layers.
    ffn = 2 * 2560 * 10240 + 10240 + 2560
    assert phi.trainable == 16 * 5 * ffn
    assert phi.total - phi.trainable == shape("phi2_learned_router", "phase3_moe").total - (
        shape("phi2_learned_router", "phase3_moe").trainable - 16 * (4 * 2560 + 4)
    )
    assert shape("phi2_no_meta", "phase3_moe").total == phi.total - 16 * ffn
    lora = shape("phi2_lora128", "phase3_moe")
    assert lora.total - lora.trainable == phi.total
    assert lora.trainable < 0.2 * phi.trainable


def test_a_plan_holds_float32_weights_and_16_bytes_of_what_trains() -> None:
    spec = load_recipe("phi2").spec
    for phase in ("phase1_alignment", "phase2_instruction", "phase3_moe"):
        row, found = step_memory(spec, phase), shape("phi2", phase)  # type: ignore[arg-type]
        assert row.trained == found.trainable
        assert row.weights == 4 * found.total
        assert row.gradients + row.optimizer == 12 * found.trainable
        assert 0 < row.checkpointed < row.activations
    lora = step_memory(load_recipe("phi2_lora128").spec, "phase3_moe")
    assert lora.trained == shape("phi2_lora128", "phase3_moe").trainable
    assert lora.weights == 4 * shape("phi2_lora128", "phase3_moe").total


def test_memory_follows_how_a_recipe_is_run() -> None:
    plain = load_recipe("tiny_phantom", ["run.gradient_accumulation=1"]).spec
    base = memory_bytes(plain, "phase2_instruction")
    for words in (
        ["run.gradient_accumulation=2"],
        ["run.gradient_checkpointing=true"],
        ["run.precision=bf16"],
        ["phases.phase2_instruction.max_questions=2"],
    ):
        less = memory_bytes(load_recipe("tiny_phantom", words).spec, "phase2_instruction")
        assert less < base, words
    everywhere = load_recipe("tiny_phantom", ["run.answers_only=false"]).spec
    assert memory_bytes(everywhere, "phase2_instruction") > base


def test_the_router_holds_the_dense_model_and_the_states_of_its_images() -> None:
    spec = load_recipe("phi2").spec
    dense, router = shape("phi2", "phase2_instruction").total, 4 * (2560 + 1)
    states = 16 * 32 * 2560  # MoE layers, tokens of an image, width
    found = memory_bytes(spec, "phase2_router", 1000)
    assert found == 4 * (dense + 1000 * states) + 16 * router


@pytest.mark.parametrize("phase", ["phase0_encoder", "phase0_language"])
def test_stand_ins_train_whole(phase: str) -> None:
    spec = load_recipe("tiny_phantom").spec
    row, found = step_memory(spec, phase), shape("tiny_phantom", phase)  # type: ignore[arg-type]
    assert row.trained == found.total
    assert row.total - row.activations == 16 * found.total
    assert 0 < row.checkpointed < row.activations


@pytest.mark.parametrize(("units", "precision"), [(True, "bf16"), (False, "float32")])
def test_auto_precision_is_settled_by_the_machine_and_said(
    units: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe_module, "has_bf16", lambda: units)
    found = load_recipe("tiny_phantom", ["run.precision=auto"])
    assert found.config["run"]["precision"] == precision
    assert found.sha256 == load_recipe("tiny_phantom", [f"run.precision={precision}"]).sha256
