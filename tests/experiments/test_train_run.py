"""`medmoe train` end to end on a few steps: run directories, hand-over, resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.experiments.micro_train import SMALL, micro_plan, micro_recipe, silent

from medmoe.config.phases import PHASE_TABLE
from medmoe.config.schema import PHASES, PhaseName
from medmoe.data.leakage import drop_near_duplicates, images_of
from medmoe.data.phantom import read_phantom
from medmoe.experiments import phases as running
from medmoe.experiments.estimate import estimate
from medmoe.experiments.handover import check_input, load_router, save_router
from medmoe.experiments.job import spread, strict_score
from medmoe.experiments.outlook import Outlook
from medmoe.experiments.plan import plan_train
from medmoe.experiments.recipe import load_recipe
from medmoe.experiments.run import run_train
from medmoe.inference.chat import token_biases
from medmoe.inference.engine import MedMoe
from medmoe.model.checkpoint import load_model, provenance, verify
from medmoe.training.meter import Measured, Validated

PHASES_OF_TINY = tuple(load_recipe("tiny_phantom").spec.phases)
VALIDATION = "validation={data: [phantom/validation], every: 2, questions: 5}"
ANSWERING = ("phase2_instruction", "phase3_moe")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, list[Any]]:  # type: ignore[type-arg]
    """A finished run of all phases, its summary, and all that its listener was told."""
    out = tmp_path_factory.mktemp("run") / "tiny"
    points: list[Any] = []
    settings = ("run.answers_only=false", VALIDATION)
    summary = run_train(micro_plan(out, *settings, label_counts=(0, 4, 16)), silent, points.append)
    return out, summary, points


def weights_of(model: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a model or of an adapter on its base."""
    found: dict[str, torch.Tensor] = load_model(model)[0].state_dict()
    return found


def weights(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "model.safetensors")


def test_every_phase_leaves_a_run_directory(run) -> None:  # type: ignore[no-untyped-def]
    out, summary, _ = run
    assert list(summary["phases"]) == list(PHASES_OF_TINY)
    for phase in PHASES_OF_TINY:
        folder = out / phase
        assert (folder / "model" / "MANIFEST.json").is_file()
        assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step-2", "step-3"]
        facts = json.loads((folder / "run.json").read_text())
        assert facts["phase"] == phase
        assert facts["seed"] == 7
        assert facts["finished"]["steps"] == 3
        assert {len(digest) for digest in facts["data"]["sha256"].values()} == {64}
        assert facts["versions"].keys() >= {"python", "torch", "transformers", "medmoe"}
        assert facts["hardware"]["cores"] >= 1
        assert (folder / "dirty.diff").is_file() == facts["dirty"]
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
        assert [line["loss"] for line in lines if "loss" in line][-1] == facts["finished"]["loss"]


def test_the_config_of_a_run_directory_is_the_recipe(run) -> None:  # type: ignore[no-untyped-def]
    out, summary, _ = run
    config = yaml.safe_load((out / "phase3_moe" / "config.yaml").read_text())
    again = load_recipe(str(out / "phase3_moe" / "config.yaml"))
    assert again.config == config
    assert again.sha256 == summary["config_sha256"]


def test_the_model_answers_and_says_where_it_comes_from(run) -> None:  # type: ignore[no-untyped-def]
    out, summary, _ = run
    verify(out / summary["model"])
    answer = MedMoe.load(out / summary["model"]).answer(np.zeros((64, 64), np.uint8), "what is it?")
    assert answer.routing is not None
    facts = provenance(out / "phase3_moe" / "model")
    assert facts["phase"] == "phase3_moe"
    assert set(facts["starts"]) == {"phase2_instruction", "phase2_router"}
    assert facts["use"] == "Research use only, not a medical device."
    assert facts["phases"] == dict.fromkeys(PHASES_OF_TINY, 3)
    assert facts["licences"].keys() == {"phantom"}
    assert facts["base_model"]["language_model"] == {
        "name": "tiny_stablelm",
        "hub_id": None,
        "revision": None,
    }


def test_the_plan_counts_the_weights_that_then_train(run) -> None:  # type: ignore[no-untyped-def]
    _, summary, _ = run
    planned = estimate(micro_recipe(), (), None, 7)["phases"]
    for phase, found in summary["phases"].items():
        if phase != "phase0_encoder":  # whose throw-away heads follow from the data
            assert planned[phase]["trainable"] == found["trainable"], phase
        assert planned[phase]["steps"] == found["steps"]
    assert planned["phase3_moe"]["frozen"] == summary["phases"]["phase3_moe"]["frozen"]


def test_the_router_is_scored_and_the_label_curve_written(run) -> None:  # type: ignore[no-untyped-def]
    out, summary, _ = run
    assert summary["router"]["n"] == 12
    assert 0 <= summary["router"]["low"] <= summary["router"]["accuracy"] <= 100
    rows = json.loads((out / "phase2_router" / "label_curve.json").read_text())
    assert [row["labels"] for row in rows] == [0, 4, 16]
    assert [row["images"] for row in rows] == [0, 4, 16]
    # The largest count is the recipe's own: the same router.
    assert rows[-1]["accuracy"] == summary["router"]["accuracy"]
    table = (out / "phase2_router" / "label_curve.csv").read_text().splitlines()
    assert table[0] == "labels,images,accuracy,low,high,n"
    assert len(table) == 4


def test_what_is_measured_adds_up(run) -> None:  # type: ignore[no-untyped-def]
    _, _, points = run
    points = [point for point in points if isinstance(point, Measured)]
    moe = [point for point in points if point.phase == "phase3_moe"]
    assert [point.step for point in moe] == [1, 2, 3]
    assert all(point.tokens_per_second > point.images_per_second > 0 for point in moe)
    assert all(point.memory_gib > 0 for point in moe)
    assert moe[-1].seconds_left == 0
    for point in moe:
        assert point.experts
        assert set(point.experts) <= {"ct", "mri", "pathology", "xray"}
        assert all(sum(shares) == pytest.approx(1, abs=1e-3) for shares in point.experts.values())
    assert not [point for point in points if point.phase != "phase3_moe" and point.experts]


def test_validation_is_measured_in_the_phases_that_answer(run) -> None:  # type: ignore[no-untyped-def]
    out, summary, points = run
    told = [point for point in points if isinstance(point, Validated)]
    assert {point.phase for point in told} == {"phase1_alignment", *ANSWERING}
    for phase in PHASES_OF_TINY:
        of_phase = [point for point in told if point.phase == phase]
        lines = [json.loads(line) for line in (out / phase / "metrics.jsonl").open()]
        rows = [line for line in lines if "validation_loss" in line]
        assert [row["step"] for row in rows] == [p.step for p in of_phase]
        assert [row["validation_loss"] for row in rows] == [p.validation_loss for p in of_phase]
        finished = summary["phases"][phase]
        assert finished["kept_step"] is None
        if not of_phase:
            assert finished["validation"] is None
            continue
        assert [point.step for point in of_phase] == [2, 3]
        scores = {point.strict_score for point in of_phase}
        assert (None in scores) == (phase == "phase1_alignment")  # its captions are not scored
        assert scores <= {None, 0, 20, 40, 60, 80, 100}
        assert finished["validation"]["loss"] == rows[-1]["validation_loss"]


def test_the_strict_score_is_that_of_the_finished_model(run) -> None:  # type: ignore[no-untyped-def]
    out, summary, _ = run
    records = read_phantom("validation", 12, seed=7, size=64)
    kept, dropped = drop_near_duplicates(records, read_phantom("train", 24, seed=7, size=64))
    facts = json.loads((out / "phase3_moe" / "run.json").read_text())
    assert facts["data"]["dropped_near_duplicates"]["phantom/validation"] == dropped
    engine = MedMoe.load(out / "phase3_moe" / "model")
    asked = spread([r for r in kept if r.task != "caption"], 5, 7)
    images = images_of(asked)
    rows = {image.id: row for row, image in enumerate(images)}
    features = engine.encode([image.source for image in images])
    score = strict_score(engine.processor, asked, features, rows)(engine.model)
    assert summary["phases"]["phase3_moe"]["validation"]["strict_score"] == score


def test_a_calibrated_phase_keeps_what_is_added_to_logits_and_is_another_phase(
    tmp_path: Path,
) -> None:
    from medmoe.experiments.recipe import blind_twin, twin_key

    only = ("phases.phase2_router=null", "phases.phase3_moe=null", VALIDATION)
    plain, other = micro_recipe(*only), micro_recipe(*only, "validation.calibrate=true")
    assert plain.sha256 == micro_recipe(*only[:2]).sha256 != other.sha256
    assert twin_key(plain) != twin_key(other) == twin_key(blind_twin(other))
    plan = micro_plan(tmp_path / "run", *only, "validation={data: [phantom/validation], every: 9, "
                      "questions: 40, score: false, calibrate: true}")  # fmt: skip
    run_train(plan, silent, None)
    facts = json.loads((tmp_path / "run" / "phase2_instruction" / "run.json").read_text())
    bias = facts["finished"]["answer_bias"]
    model = MedMoe.load(tmp_path / "run" / "phase2_instruction" / "model").model
    added = token_biases(model.generation_config)
    assert set(bias) == {"end", "yes"}
    assert bias["end"] in added.values()


def test_a_draw_of_questions_is_fixed_and_on_as_many_pictures_as_there_are() -> None:
    records = [r for r in read_phantom("validation", 6, seed=1, size=32) if r.task == "vqa"]
    drawn = spread(records, 6, 3)
    assert len({record.image.id for record in drawn}) == 6
    assert spread(records[::-1], 6, 3) == drawn
    assert spread(records, 6, 4) != drawn
    assert spread(records, 4, 3) == drawn[:4]
    assert sorted(r.id for r in spread(records, 999, 3)) == sorted(r.id for r in records)


def test_the_report_has_the_curves_of_all_phases(run) -> None:  # type: ignore[no-untyped-def]
    out, _, _ = run
    page = (out / "report.html").read_text(encoding="utf-8")
    for phase in PHASES_OF_TINY:
        assert f"{phase}, from " in page
    assert page.count("strict score at the end") == len(ANSWERING)


def test_the_listener_is_told_first_what_the_whole_run_takes(run) -> None:  # type: ignore[no-untyped-def]
    _, _, points = run
    assert points[0].steps == dict.fromkeys(PHASES_OF_TINY, 3)
    assert all(flops > 0 for flops in points[0].flops.values())
    assert not [point for point in points[1:] if isinstance(point, Outlook)]


def test_a_finished_run_resumed_trains_nothing(run) -> None:  # type: ignore[no-untyped-def]
    out, summary, _ = run

    def forbidden(*args: object) -> None:
        raise AssertionError("a finished phase was trained again")

    plan = micro_plan(out, "run.answers_only=false", VALIDATION, resume=True)
    again = run_train(plan, forbidden, None)  # type: ignore[arg-type]
    assert again["phases"] == summary["phases"]


def test_a_broken_phase_is_resumed_and_ends_with_the_same_weights(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out, _, _ = run
    broken = tmp_path / "broken"
    shutil.copytree(out, broken)
    last = broken / "phase3_moe"
    shutil.rmtree(last / "model")
    shutil.rmtree(last / "checkpoints" / "step-3")
    seen: list[int] = []
    plan = micro_plan(broken, "run.answers_only=false", VALIDATION, resume=True)
    run_train(plan, lambda phase, step, steps, loss: seen.append(step), None)
    assert set(seen) == {3}
    before, after = weights(out / "phase3_moe" / "model"), weights(last / "model")
    assert all(torch.equal(before[name], after[name]) for name in before)
    lines, whole = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (last, out / "phase3_moe")
    )
    assert [line["step"] for line in lines] == [1, 2, 2, 3, 3]
    for key in ("loss", "validation_loss", "strict_score"):
        assert [line.get(key) for line in lines] == [line.get(key) for line in whole]
    facts = json.loads((last / "run.json").read_text())["finished"]
    assert facts["resumed_from"] == 2


@pytest.mark.parametrize(
    ("changes", "drop"),
    [
        (["model.meta_expert=false"], ["phase2_router"]),
        (["phases.phase3_moe.trains=reference"], ["phase2_router"]),
        (["model.num_experts_per_tok=2"], ["phase2_router"]),
        (
            [
                "phases.phase3_moe.trains=learned_router",
                "phases.phase3_moe.load_balance=0.01",
                "starts.phase2_router=null",
            ],
            ["phase2_router"],
        ),
        (
            ["phases.phase3_moe.trains=lora", "phases.phase3_moe.lora={rank: 2, alpha: 4}"],
            ["phase2_router"],
        ),
        (["model.domains=[radiology, pathology]", "starts.phase2_router=null"], []),
        (["router.per_layer=true", "router.loss=pooled", "starts.phase2_router=null"], []),
    ],
)
def test_an_ablation_starts_from_another_runs_phase_2(  # type: ignore[no-untyped-def]
    run, changes: list[str], drop: list[str], tmp_path: Path
) -> None:
    if any("lora" in change for change in changes):
        pytest.importorskip("peft", reason="peft is not installed: pip install 'medmoe[train]'")
    out, _, _ = run
    earlier = ["phase0_encoder", "phase0_language", "phase1_alignment", "phase2_instruction", *drop]
    starts = [f"starts.{p}={out / p}" for p in ("phase2_instruction", "phase2_router")]
    recipe = micro_recipe(*(f"phases.{phase}=null" for phase in earlier), *starts, *changes)
    plan = plan_train(recipe, (), None, tmp_path / "ablation", 7)
    summary = run_train(plan, silent, None)
    model = MedMoe.load(tmp_path / "ablation" / "phase3_moe" / "model").model
    assert model.config.num_experts == len(recipe.spec.model.domains)
    assert model.config.meta_expert is recipe.spec.model.meta_expert
    assert summary["phases"]["phase3_moe"]["trains"] == recipe.spec.phases["phase3_moe"].trains
    assert not [name for name in model.state_dict() if "lora" in name]


def test_weights_are_saved_in_the_recipes_dtype_and_train_in_float32(  # type: ignore[no-untyped-def]
    run, tmp_path: Path
) -> None:
    out, _, _ = run
    changes = [
        "run.save_dtype=bf16",
        "run.answers_only=false",
        *(f"phases.{phase}=null" for phase in PHASES_OF_TINY if phase not in ANSWERING),
        *(f"starts.{phase}={out / phase}" for phase in ("phase1_alignment", "phase2_router")),
    ]
    run_train(plan_train(micro_recipe(*changes), (), None, tmp_path, 7), silent, None)
    dense = Path("phase2_instruction") / "model"
    whole, rounded = weights(out / dense), weights(tmp_path / dense)
    assert all(torch.equal(rounded[name], whole[name].bfloat16()) for name in whole)
    tuned = weights(tmp_path / "phase3_moe" / "model")
    gates = {name for name in tuned if ".mlp.gate." in name}
    assert {tensor.dtype for name, tensor in tuned.items() if name in gates} == {torch.float32}
    assert {t.dtype for n, t in tuned.items() if n not in gates} == {torch.bfloat16}
    kept = load_file(tmp_path / "phase3_moe" / "checkpoints" / "step-3" / "weights.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}


@pytest.mark.parametrize("bits", ["null", "4"])
@pytest.mark.parametrize("phase", ["phase2_instruction", "phase3_moe"])
def test_a_kept_adapter_on_its_base_answers_like_the_merged_model(  # type: ignore[no-untyped-def]
    run, phase: PhaseName, bits: str, tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="peft is not installed: pip install 'medmoe[train]'")
    if bits == "4":
        reason = "bitsandbytes is not installed: pip install 'medmoe[qlora]'"
        pytest.importorskip("bitsandbytes", reason=reason)
    out, _, _ = run
    others = [f"phases.{other}=null" for other in PHASES_OF_TINY if other != phase]
    starts = [f"starts.{other}={out / other}" for other in PHASE_TABLE[phase].inputs
              if other in PHASES_OF_TINY and other != "phase3_experts"]  # fmt: skip
    lora = f"phases.{phase}.lora={{rank: 2, alpha: 4, keep: true, bits: {bits}}}"
    recipe = micro_recipe(*others, *starts, f"phases.{phase}.trains=lora", lora)
    run_train(plan_train(recipe, (), None, tmp_path / "trained", 7), silent, None)
    folder = (tmp_path / "trained").rename(tmp_path / "elsewhere") / phase
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["r"] == 2
    verify(folder / "base")
    merged, base, kept = (weights_of(folder / name) for name in ("model", "base", "adapter"))
    assert merged.keys() == base.keys() == kept.keys()
    assert any(not torch.equal(merged[name], base[name]) for name in base)
    for name, weight in merged.items():
        assert torch.equal(kept[name], weight), name
    assert MedMoe.load(folder / "adapter").answer(np.zeros((64, 64), np.uint8), "what is it?")


def test_sft_trains_the_dense_model(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out, _, _ = run
    start = f"starts.phase2_instruction={out / 'phase2_instruction'}"
    recipe = load_recipe("tiny_phantom_sft", [*SMALL, start, "phases.sft.steps=2"])
    run_train(plan_train(recipe, (), None, tmp_path / "sft", 7), silent, None)
    assert not MedMoe.load(tmp_path / "sft" / "sft" / "model").model.config.moe_layers


def test_a_router_goes_over_disk_unchanged(tmp_path: Path) -> None:
    shared = {"fc1.weight": torch.randn(4, 8), "fc1.bias": torch.randn(4)}
    layers = [{name: tensor + n for name, tensor in shared.items()} for n in range(2)]
    for number, router in enumerate((shared, layers)):
        folder = tmp_path / str(number)
        save_router(folder, router, (0, 2), {"phase": "phase2_router", "domains": ["ct", "mri"]})
        assert check_input(folder, "phase2_router", "phase3_moe", micro_recipe()) == folder
        found = load_router(folder, (0, 2), ("ct", "mri"))
        pairs = zip(found, router, strict=True) if isinstance(router, list) else [(found, router)]
        for a, b in pairs:
            assert a.keys() == b.keys()
            assert all(torch.equal(a[name], b[name]) for name in b)


def test_phases_are_those_of_the_schema() -> None:
    assert set(running.PHASE_FUNCTIONS) == set(PHASES)
