"""The paper's recipe itself on pretrained backbones from folders: tiny weights, real code paths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.experiments.micro_train import micro_recipe, settings, silent
from tests.model.tiny import language_model, processor, randomise
from transformers import CLIPVisionConfig, CLIPVisionModel

from medmoe.errors import ConfigError
from medmoe.experiments.estimate import estimate
from medmoe.experiments.handover import publish_card, publish_model, save_part
from medmoe.experiments.plan import plan_train
from medmoe.experiments.recipe import Recipe, load_recipe
from medmoe.experiments.run import run_train
from medmoe.inference.engine import MedMoe
from medmoe.model.checkpoint import provenance
from medmoe.model.committed import check_files, read_manifest

PHASES = ("phase1_alignment", "phase2_instruction", "phase2_router", "phase3_moe")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow Phi and a narrow CLIP of the paper's resolution, in the layout of the hub."""
    root = tmp_path_factory.mktemp("backbones")
    language_model("phi", len(processor().tokenizer)).save_pretrained(root / "phi")
    processor().tokenizer.save_pretrained(root / "phi")
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=336,
        patch_size=14,
    )
    randomise(CLIPVisionModel(config), seed=3, std=0.05).save_pretrained(root / "clip")
    return root


def recipe(folders: Path, *more: str) -> Recipe:
    """Return the recipe `phi2` on the narrow backbones and a few embedded pictures."""
    settings = [
        f"model.language_source={folders / 'phi'}",
        f"model.vision_source={folders / 'clip'}",
        "model.moe_layers=[0,2]",
        "data.apart_from=[]",
        "data.phantom_images=8",
        "router.labels=8",
        "router.test=[]",
        "run.gradient_accumulation=2",
        "run.loader_workers=0",
    ]
    for phase in PHASES:
        settings += [
            f"phases.{phase}.data=[phantom/train]",
            f"phases.{phase}.batch_size=2",
            f"phases.{phase}.steps=1",
            f"phases.{phase}.epochs=null",
        ]
    return load_recipe("phi2", [*settings, *more])


def test_the_papers_recipe_runs_on_backbones_from_folders(folders: Path, tmp_path: Path) -> None:
    found = recipe(folders)
    assert found.spec.run.precision == "bf16"
    assert found.spec.run.gradient_checkpointing
    summary = run_train(plan_train(found, (), None, tmp_path / "run", 7), silent, None)
    assert list(summary["phases"]) == list(PHASES)
    model = MedMoe.load(tmp_path / "run" / summary["model"]).model
    assert model.config.text_config.model_type == "phi"
    assert model.config.image_seq_length == 576
    assert model.lm_head.bias is not None
    assert sorted(model.moe_blocks) == [0, 2]
    # Phases 1 and 2 encode on demand: 500,000 images' features would be over a terabyte.
    assert not found.spec.phases["phase1_alignment"].keep_features
    # Those of the router's pictures, of phase 3's, and in float32 those of the out-of-domain check.
    assert len([p for p in (tmp_path / "run" / "features").iterdir() if p.is_dir()]) == 3
    run = json.loads((tmp_path / "run" / "phase1_alignment" / "run.json").read_text())
    assert run["starts"] == {}


def test_a_folder_of_another_architecture_is_refused(folders: Path, tmp_path: Path) -> None:
    wrong = recipe(folders, f"model.language_source={folders / 'clip'}")
    with pytest.raises(ConfigError, match="is a 'clip_vision_model' model, phi2_2_7b is 'phi'"):
        plan_train(wrong, ("phase1_alignment",), None, tmp_path / "run", 7)
    assert not (tmp_path / "run").exists()


def test_an_adapted_encoder_is_what_phase_1_starts_from(folders: Path, tmp_path: Path) -> None:
    phase1 = load_recipe("phi2").config["phases"]["phase1_alignment"]
    shared = {key: phase1[key] for key in phase1 if key not in ("prompt", "batch_of")}
    adapt = shared | {"data": ["phantom/train"], "epochs": None, "steps": 2, "batch_size": 4}
    found = recipe(
        folders,
        f"phases.phase0_adapt={json.dumps(adapt)}",
        "run.save_dtype=float32",  # so that the tower's weights are those of phase 0
        "data.phantom_images=40",
        "data.phantom_test_images=6",
        "run.gradient_accumulation=1",
        "validation={data: [phantom/validation], every: 1}",
        *(f"phases.{phase}=null" for phase in PHASES[1:]),
        *(f"phases.phase1_alignment.{value}" for value in ("views=2", "keep_features=true")),
        "phases.phase1_alignment.augment=0.5",
    )
    planned = estimate(found, (), None, 7)["phases"]
    assert planned["phase0_adapt"]["memory_gib"] > 0
    assert planned["phase0_adapt"]["features_gib"] == 0
    kept = 2 * 40 * 576 * 16 * 4  # views, pictures, tokens, width, float32
    assert planned["phase1_alignment"]["features_gib"] == round(kept / 2**30, 4)
    run_train(plan_train(found, (), None, tmp_path / "run", 7), silent, None)
    out = tmp_path / "run"
    before = CLIPVisionModel.from_pretrained(folders / "clip").state_dict()
    after = CLIPVisionModel.from_pretrained(out / "phase0_adapt" / "model").state_dict()
    tower = MedMoe.load(out / "phase1_alignment" / "model").model.model.vision_tower.state_dict()
    assert all(torch.equal(tower[name], tensor) for name, tensor in after.items())
    assert not torch.equal(
        after["embeddings.patch_embedding.weight"], before["embeddings.patch_embedding.weight"]
    )
    # Of the training pictures two versions are kept, of those measured on one.
    shapes = [load_file(path)["features"].shape for path in out.glob("features/*/*.safetensors")]
    assert sorted(shapes) == [(6, 576, 16), (40, 576, 16), (40, 576, 16)]
    run = json.loads((out / "phase0_adapt" / "run.json").read_text())["finished"]
    assert run["attributes"]["modality"]["n"] == 6
    assert run["validation"]["step"] == 2
    assert provenance(out / "phase1_alignment" / "model")["phases"].keys() == {
        "phase0_adapt",
        "phase1_alignment",
    }


def test_an_encoder_is_adapted_or_trained_from_scratch(folders: Path) -> None:
    values = json.dumps(load_recipe("tiny_phantom").config["phases"]["phase0_encoder"])
    with pytest.raises(ConfigError, match="phase0_encoder trains one from scratch; leave one out"):
        load_recipe("tiny_phantom", [f"phases.phase0_adapt={values}"])


def test_the_licence_texts_of_the_parts_go_on_with_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "weights"
    (home / "gemma3_270m").mkdir(parents=True)
    (home / "gemma3_270m" / "GEMMA_TERMS.html").write_text("terms", encoding="utf-8")
    monkeypatch.setenv("MEDMOE_WEIGHTS", str(home))
    run = tmp_path / "run"
    save_part(
        run / "phase1_alignment" / "model",
        {"base_model": {"language_model": {"name": "gemma3_270m"}}},
        lambda staging: (staging / "README.md").write_text("card", encoding="utf-8"),
    )
    for name in ("config.yaml", "run.json"):
        (run / "phase1_alignment" / name).write_text("{}", encoding="utf-8")
    model = publish_model(run)
    assert model is not None
    assert (model / "gemma3_270m.GEMMA_TERMS.html").read_text(encoding="utf-8") == "terms"
    check_files(model, read_manifest(model, "x"), "x")
    publish_card(run, lambda card: card + ", scored")
    assert (model / "README.md").read_text(encoding="utf-8") == "card, scored"
    assert (run / "phase1_alignment" / "model" / "README.md").read_text() == "card"
    assert (model / "gemma3_270m.GEMMA_TERMS.html").is_file()


def test_an_encoder_from_a_folder_serves_a_language_model_from_scratch(
    folders: Path, tmp_path: Path
) -> None:
    more = [f"model.vision_source={folders / 'clip'}", "phases.phase0_encoder=null"]
    later = list(micro_recipe().spec.phases)[3:]
    mixed = load_recipe(
        "tiny_phantom",
        [*(s for s in settings(steps=1) if "phase0_encoder" not in s), *more]
        + [f"phases.{phase}=null" for phase in later],
    )
    assert mixed.spec.inputs("phase1_alignment") == ("phase0_language",)
    assert mixed.spec.pretrained() == ("vision",)
    run_train(plan_train(mixed, (), None, tmp_path / "run", 7), silent, None)
    tower = MedMoe.load(tmp_path / "run").model.model.vision_tower.state_dict()
    given = CLIPVisionModel.from_pretrained(folders / "clip").state_dict()
    assert all(torch.equal(tower[name], tensor) for name, tensor in given.items())


@pytest.mark.parametrize(
    ("encoder", "sides", "message"),
    [
        ("efficientnet_lite2_pooled", "[96, 320]", "96 is not one of 64, 128, 192, 256, 320"),
        ("efficientnet_lite2_pooled", "[320, 384]", "384 is not one of"),
        ("clip_base_16", "[112, 224]", "clip_base_16 reads pictures of 224 pixels alone"),
    ],
)
def test_sides_are_those_that_the_encoder_reads(encoder: str, sides: str, message: str) -> None:
    named = [f"model.vision_encoder={encoder}", f"phases.phase0_adapt.sides={sides}"]
    with pytest.raises(ConfigError, match=r"^phases\.phase0_adapt\.sides: .*" + message):
        load_recipe("small_real", named)
    good = load_recipe("small_real", ["phases.phase0_adapt.sides=[192, 320]"])
    assert good.spec.phases["phase0_adapt"].sides == (192, 320)
    assert good.sha256 != load_recipe("small_real").sha256
