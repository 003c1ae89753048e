"""The blind twin: the same training without pictures, and what a score owes to the picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.experiments.micro_train import micro_plan, micro_recipe, settings, silent

from medmoe.cli.main import main
from medmoe.errors import ConfigError
from medmoe.experiments import job
from medmoe.experiments.plan import plan_train
from medmoe.experiments.recipe import blind_twin, load_recipe, twin_key
from medmoe.experiments.run import run_train
from medmoe.inference.engine import MedMoe
from medmoe.model.checkpoint import provenance
from medmoe.model.locate import find_twin


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a seeing run and its blind twin beside it, of a few steps."""
    folder = tmp_path_factory.mktemp("twins")
    run_train(micro_plan(folder / "seeing"), silent, None)
    twin = plan_train(blind_twin(micro_recipe()), (), None, folder / "twin", 7)
    encoded = job.encode_images
    try:
        job.encode_images = None  # type: ignore[assignment]  # no picture is prepared
        run_train(twin, silent, None)
    finally:
        job.encode_images = encoded
    return folder


def test_the_twin_is_the_dense_training_of_the_recipe_and_no_more(runs: Path) -> None:
    summary = json.loads((runs / "twin" / "summary.json").read_text())
    wanted = ["phase0_language", "phase1_alignment", "phase2_instruction", "sft"]
    assert list(summary["phases"]) == wanted
    seeing = micro_recipe().spec.phases
    twin = blind_twin(micro_recipe()).spec.phases
    assert all(twin[phase] == seeing[phase] for phase in wanted[:-1])
    # A recipe without an SFT phase: the steps and data of phase 3, every weight of it.
    assert twin["sft"] == seeing["phase3_moe"]


def test_the_twin_answers_alike_whatever_the_picture(runs: Path) -> None:
    engine = MedMoe.load(runs / "twin")
    rng = np.random.default_rng(3)
    pictures = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(2)]
    pictures.append(np.zeros((64, 64, 3), np.uint8))
    said = [engine.answer(picture, "Which modality is this?") for picture in pictures]
    assert len({(answer.text, answer.confidence) for answer in said}) == 1
    names = [name for name, _ in engine.model.named_parameters()]
    assert not [name for name in names if "vision_tower" in name]


def test_variants_of_the_experts_share_a_twin_and_other_training_has_another() -> None:
    key = twin_key(micro_recipe())
    assert twin_key(blind_twin(micro_recipe())) == key
    assert twin_key(micro_recipe("model.num_experts_per_tok=2")) == key
    assert twin_key(micro_recipe("phases.phase2_router.steps=9")) == key
    assert twin_key(micro_recipe("phases.phase2_instruction.learning_rate=1e-5")) != key
    assert twin_key(micro_recipe("model.vision_encoder=tiny_clip_128")) != key
    assert twin_key(micro_recipe("model.language_layers=3")) != key


def test_a_model_finds_its_twin_beside_its_run(runs: Path, tmp_path: Path) -> None:
    twin = runs / "twin" / "model"
    for model in ("seeing/model", "seeing/phase3_moe/model"):
        assert find_twin(runs / model) == twin
    # A model that has trained for so long only is held against the twin as it was then.
    for phase in ("phase1_alignment", "phase2_instruction"):
        assert find_twin(runs / "seeing" / phase / "model") == runs / "twin" / phase / "model"
    assert find_twin(twin) is None
    assert find_twin(tmp_path) is None
    assert provenance(twin)["blind"] is True


def test_every_score_stands_beside_its_twin_s(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "eval"
    words = ["--task", "phantom_vqa", "--limit", "24", "--control", "blank", "--out", str(out)]
    assert main(["eval", str(runs / "seeing"), *words]) == 0
    scores = json.loads((out / "summary.json").read_text())["scores"]
    plain = [row for row in scores if row["control"] is None]
    assert all(row["share"] is not None for row in plain)
    for row in plain:
        gained = row["value"] - row["blind_twin"]
        assert row["share"]["value"] == pytest.approx(gained, abs=1e-4)
        if row["share"]["low"] is not None:  # of one picture alone there is no interval
            assert row["share"]["low"] <= row["share"]["value"] <= row["share"]["high"]
    assert all(row["share"] is None for row in scores if row["control"])
    text = (out / "report.html").read_text()
    assert "What the pictures gave" in text
    # Scored again from files alone, the same.
    blind = next((out / "phantom_vqa" / "blind_twin").iterdir())
    answers = out / "phantom_vqa" / "predictions.jsonl"
    again = tmp_path / "score.json"
    assert main(["score", str(answers), "--blind-twin", str(blind), "--json", str(again)]) == 0
    cell = json.loads(again.read_text())["protocols"]["strict"]["all"]["accuracy"]
    row = next(r for r in plain if (r["subset"], r["protocol"]) == ("all", "strict"))
    assert {name: cell[name] for name in ("value", "blind_twin", "share")} == {
        name: row[name] for name in ("value", "blind_twin", "share")
    }


@pytest.mark.parametrize("verb", ["ask", "explain"])
def test_a_twin_is_not_asked_about_a_picture(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    picture = tmp_path / "a.png"
    Image.new("L", (32, 32)).save(picture)
    more = ["--out", str(tmp_path / "out")] if verb == "explain" else []
    assert main([verb, str(runs / "twin"), str(picture), "Why?", *more]) == 2
    assert "is a blind twin, which sees no picture" in capsys.readouterr().err


def test_a_twin_of_another_training_is_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--task", "phantom_vqa", "--limit", "4", "--out", str(tmp_path / "eval")]
    for other, reason in (("seeing", "no blind twin"), ("other", "of another training")):
        if other == "other":
            shorter = blind_twin(micro_recipe(steps=1))
            run_train(plan_train(shorter, (), None, tmp_path / other, 7), silent, None)
        folder = runs / other if other == "seeing" else tmp_path / other
        assert main(["eval", str(runs / "seeing"), *words, "--blind-twin", str(folder)]) == 2
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "eval" / "summary.json").exists()


def test_a_twin_needs_the_phases_that_see(tmp_path: Path) -> None:
    started = ("starts.phase2_instruction=runs/other", "phases.phase2_instruction=null")
    recipe = load_recipe("tiny_phantom", settings()[:-1])
    later = load_recipe(
        "tiny_phantom",
        [*settings()[:7], *started, *(f"phases.{p}=null" for p in list(recipe.spec.phases)[:3])],
    )
    with pytest.raises(ConfigError, match="a blind twin is trained from phase 1 on"):
        blind_twin(later)
    assert twin_key(later) is None


def test_the_twin_is_found_by_its_hash_and_not_trained_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "tiny_phantom", "--blind", "--seed", "3"]
    words += [word for setting in settings(steps=1) for word in ("--set", setting)]
    assert main(words) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("blind_twin-")
    assert run.name.endswith("-3")
    before = (run / "sft" / "run.json").read_bytes()
    assert main(words) == 0
    assert (run / "sft" / "run.json").read_bytes() == before
