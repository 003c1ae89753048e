"""`routing: image` as `medmoe train` runs it on a few steps: its router, phase 3 and the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.experiments.micro_train import micro_plan, settings, silent

from medmoe.data.phantom import read_phantom
from medmoe.errors import ConfigError
from medmoe.experiments.plan import plan_train
from medmoe.experiments.recipe import load_recipe
from medmoe.experiments.run import run_train
from medmoe.inference.engine import MedMoe
from medmoe.model.export import export_openvino
from medmoe.routing.trace import record_routing


def test_the_ablation_trains_answers_and_is_not_exported(tmp_path: Path) -> None:
    before = ("phase0_encoder", "phase0_language", "phase1_alignment", "phase2_instruction")
    run_train(micro_plan(tmp_path / "tiny", phases=before), silent, None)
    short = [s for s in settings() if not s.startswith("phases.") or ".phase3" in s]
    short += [
        "phases.phase2_router.steps=3",
        f"starts.{before[-1]}={tmp_path / 'tiny' / before[-1]}",
    ]
    recipe = load_recipe("tiny_phantom_image_routing", short)
    run_train(plan_train(recipe, (), None, tmp_path / "run", 7), silent, None)
    run = tmp_path / "run"
    dense, moe = (
        load_file(path / "model" / "model.safetensors")
        for path in (tmp_path / "tiny" / before[-1], run / "phase3_moe")
    )
    ffn = dense["model.language_model.layers.0.mlp.down_proj.weight"]
    experts = [
        moe[f"model.language_model.layers.0.mlp.experts.{i}.down_proj.weight"] for i in range(4)
    ]
    assert not all(torch.equal(expert, ffn) for expert in experts)
    engine = MedMoe.load(run / "model")
    assert engine.model.config.routing == "image"
    record = next(iter(read_phantom("test", 4, seed=7, size=64)))
    with record_routing(engine.model) as trace:
        answer = engine.answer(record.image.source, "Is there a mass?")
    assert answer.routing is not None
    chosen = {int(e) for layer in trace.layers for e in trace.experts(layer).flatten()}
    assert len(chosen) == 1
    pytest.importorskip("openvino", reason="the extra `export` is not installed")
    pytest.importorskip("nncf", reason="the extra `export` is not installed")
    with pytest.raises(ConfigError, match="an exported graph routes token by token"):
        export_openvino(run / "model", tmp_path / "exported")


def test_a_router_for_each_layer_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="first MoE layer's router decides for all"):
        load_recipe("tiny_phantom_image_routing", ["router.per_layer=true"])
