"""A recipe with pooled image tokens trains through all phases, and goes on with its like alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from tests.experiments.micro_train import SMALL, micro_plan, micro_recipe, silent

from medmoe.errors import ConfigError
from medmoe.experiments.estimate import estimate
from medmoe.experiments.plan import plan_train
from medmoe.experiments.recipe import blind_twin, load_recipe, origin_settings
from medmoe.experiments.run import run_train
from medmoe.inference.engine import MedMoe

POOL = "model.image_pool=2"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pooled") / "run"
    run_train(micro_plan(out, POOL), silent, None)
    return out


def test_all_phases_train_on_the_fewer_tokens_as_planned(run: Path) -> None:
    engine = MedMoe.load(run)
    assert engine.model.config.image_pool == 2
    assert engine.model.config.image_seq_length == 16
    answer = engine.answer(np.zeros((64, 64), np.uint8), "what is it?", evidence=True)
    assert answer.routing is not None
    # The encoder's states are kept as they are, whatever is made of them: 64 cells of 128.
    kept = [load_file(path)["features"] for path in run.glob("features/*/features.safetensors")]
    assert {tuple(features.shape[1:]) for features in kept} == {(64, 128)}
    plain, pooled = (estimate(micro_recipe(*s), (), None, 7)["phases"] for s in ((), (POOL,)))
    trained = sum(p.numel() for p in engine.model.model.multi_modal_projector.parameters())
    assert pooled["phase1_alignment"]["trainable"] == trained
    for phase in ("phase2_instruction", "phase3_moe"):
        assert pooled[phase]["memory_gib"] < plain[phase]["memory_gib"]
        assert pooled[phase]["pflop"] <= plain[phase]["pflop"]
        assert pooled[phase]["features_gib"] == plain[phase]["features_gib"]


def test_a_phase_starts_from_a_model_of_its_own_pool(run: Path, tmp_path: Path) -> None:
    starts = [f"starts.{p}={run / p}" for p in ("phase2_instruction", "phase2_router")]
    top2 = load_recipe("tiny_phantom_top2", [*SMALL, *starts, "phases.phase3_moe.steps=2"])
    with pytest.raises(ConfigError, match=r"image_pool 2, the recipe has 1; use --set model\.imag"):
        plan_train(top2, (), None, tmp_path / "top2", 7)
    own = load_recipe("tiny_phantom_top2", [*SMALL, *starts, "phases.phase3_moe.steps=2", POOL])
    run_train(plan_train(own, (), None, tmp_path / "top2", 7), silent, None)
    assert MedMoe.load(tmp_path / "top2").model.config.image_pool == 2
    assert POOL in origin_settings(micro_recipe(), run, ())


def test_its_blind_twin_has_as_many_image_tokens(run: Path, tmp_path: Path) -> None:
    twin = blind_twin(micro_recipe(POOL, "phases.phase3_moe.steps=1"))
    starts = {"phase0_language": str(run / "phase0_language")}
    phases = {p: v for p, v in twin.spec.phases.items() if not p.startswith("phase0")}
    twin = replace(twin, spec=twin.spec.model_copy(update={"starts": starts, "phases": phases}))
    run_train(plan_train(twin, (), None, tmp_path / "twin", 7), silent, None)
    assert MedMoe.load(tmp_path / "twin").model.config.image_seq_length == 16
