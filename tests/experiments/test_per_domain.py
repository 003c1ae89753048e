"""`experts: per_domain`: phase 3a and 3b as `medmoe train` runs them, on a few steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.experiments.micro_train import micro_plan, settings, silent

from medmoe.errors import ConfigError
from medmoe.experiments.plan import plan_train
from medmoe.experiments.recipe import load_recipe
from medmoe.experiments.run import run_train
from medmoe.model.checkpoint import provenance, read_config

MLP = "model.language_model.layers.0.mlp."


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of both phases from a tiny run's phase 2, whose experts of 3a hardly move in 3b."""
    root = tmp_path_factory.mktemp("per_domain")
    before = ("phase0_encoder", "phase0_language", "phase1_alignment")
    phases = (*before, "phase2_instruction", "phase2_router")
    run_train(micro_plan(root / "tiny", phases=phases), silent, None)
    starts = [f"starts.{name}={root / 'tiny' / name}" for name in phases[3:]]
    short = [s for s in settings() if not s.startswith("phases.") or ".phase3" in s]
    short += ["phases.phase3_experts.steps=3", "phases.phase3_moe.learning_rate=1e-12"]
    recipe = load_recipe("tiny_phantom_per_domain", [*short, *starts])
    run_train(plan_train(recipe, (), None, root / "run", 7), silent, None)
    return root


def weights(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "model.safetensors")


def test_phase_3a_tunes_a_copy_for_each_domain_and_3b_goes_on_with_them(run: Path) -> None:
    dense = weights(run / "tiny" / "phase2_instruction" / "model")
    tuned = weights(run / "run" / "phase3_experts" / "model")
    joined = weights(run / "run" / "phase3_moe" / "model")
    ffn = dense[f"{MLP}down_proj.weight"]
    experts = [tuned[f"{MLP}experts.{i}.down_proj.weight"] for i in range(4)]
    assert not any(torch.equal(expert, ffn) for expert in experts)
    assert len({expert.sum().item() for expert in experts}) == 4
    assert not [name for name in tuned if "meta_expert" in name]
    # Three steps of AdamW at 1e-12 move a weight by at most that.
    for i, expert in enumerate(experts):
        found = joined[f"{MLP}experts.{i}.down_proj.weight"]
        torch.testing.assert_close(found, expert, rtol=0, atol=1e-8)
    meta = joined[f"{MLP}meta_expert.down_proj.weight"]
    torch.testing.assert_close(meta, ffn, rtol=0, atol=1e-8)


def test_the_model_says_that_it_went_through_both(run: Path) -> None:
    facts = provenance(run / "run" / "model")
    assert facts["phase"] == "phase3_moe"
    assert set(facts["starts"]) == {"phase2_instruction", "phase2_router", "phase3_experts"}
    assert list(facts["phases"])[-2:] == ["phase3_experts", "phase3_moe"]
    assert read_config(run / "run" / "model").meta_expert


def test_without_phase_3a_per_domain_has_nothing_to_join() -> None:
    with pytest.raises(ConfigError, match="phase3_moe starts from phase3_experts, which is neit"):
        load_recipe("tiny_phantom", ["model.experts=per_domain"])


def test_experts_that_start_at_zero_cannot_be_copies_of_the_ffn() -> None:
    with pytest.raises(ConfigError, match="per_domain are tuned from copies of the FFN"):
        load_recipe("tiny_phantom_per_domain", ["model.upcycle_init=function_preserving"])


def test_experts_of_other_domains_are_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    words = [
        *(f"starts.{name}={run / 'tiny' / name}" for name in ("phase2_instruction",)),
        f"starts.phase3_experts={run / 'run' / 'phase3_experts'}",
        "phases.phase3_experts=null",
        "model.domains=[ct,mri,pathology]",
        "phases.phase3_moe.trains=learned_router",
        "phases.phase3_moe.steps=1",
        "starts.phase2_router=null",
        "data.phantom_images=8",
        "validation=null",
    ]
    plan = plan_train(load_recipe("tiny_phantom_per_domain", words), (), None, tmp_path / "o", 7)
    with pytest.raises(ConfigError, match=r"tuned by domain have domains .*; train phase3_experts"):
        run_train(plan, silent, None)
