"""A checkpoint of the paper's reference code, converted, is trained on by our phases."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.experiments.micro_train import micro_recipe, silent
from tests.model.convert.reference_checkpoint import FAMILIES, MOE_LAYERS, Family, write_reference
from tests.model.tiny import TEXTS

from medmoe.data.tokenize import train_tokenizer
from medmoe.experiments.plan import plan_train
from medmoe.experiments.recipe import origin_settings
from medmoe.experiments.run import run_train
from medmoe.inference.engine import MedMoe
from medmoe.model.checkpoint import provenance
from medmoe.model.convert.reference import convert_reference


def converted(folder: Path, family: Family, stage: int) -> Path:
    """Return the model made of a tiny reference checkpoint with a tokenizer beside it."""
    source = write_reference(folder / "reference", family, stage)
    train_tokenizer(TEXTS, 320).save_pretrained(source)
    convert_reference(source, folder / "model")
    return folder / "model"


def trained_on(model: Path, out: Path, *settings: str) -> dict[str, torch.Tensor]:
    """Train what goes on with a model, and return the weights of the result."""
    more = origin_settings(micro_recipe(*settings), model, ())
    recipe = micro_recipe(*settings, *more)
    summary = run_train(plan_train(recipe, (), None, out, 7), silent, None)
    return load_file(out / summary["model"] / "model.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stage_2_checkpoint_goes_into_the_router_phase_and_phase_3(
    family: Family, tmp_path: Path
) -> None:
    model, out = converted(tmp_path, family, 2), tmp_path / "run"
    after = trained_on(model, out, f"model.moe_layers={list(MOE_LAYERS)}")
    before = load_file(model / "model.safetensors")
    kept = before.keys() & after.keys()
    assert kept
    assert all(torch.equal(before[name], after[name]) for name in kept)
    new = {name for name in after.keys() - before.keys() if "mlp" in name}
    assert {int(name.split("layers.")[1].split(".")[0]) for name in new} == set(MOE_LAYERS)
    starts = provenance(out / "phase3_moe" / "model")["starts"]
    assert set(starts) == {"phase2_instruction", "phase2_router"}
    assert starts["phase2_instruction"].startswith(str(model))
    answer = MedMoe.load(out / "model").answer(torch.zeros(40, 30, 3).byte().numpy(), "why?")
    assert answer.routing is not None
    assert answer.routing.domain in ("ct", "mri", "pathology", "xray")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stage_3_checkpoint_goes_on_in_phase_3_with_its_own_router(
    family: Family, tmp_path: Path
) -> None:
    model, out = converted(tmp_path, family, 3), tmp_path / "run"
    # Whose the experts are no checkpoint says: they keep the names that they were converted with.
    names = ",".join(f"expert_{number}" for number in range(4))
    after = trained_on(model, out, f"model.domains=[{names}]")
    before = load_file(model / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("expert" in name for name in changed)
    assert set(provenance(out / "phase3_moe" / "model")["starts"]) == {"phase3_moe"}
