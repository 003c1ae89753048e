"""transformers' own expert parallelism on our model: two processes, half of the experts each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.model import expert_parallel
from tests.model.tiny import FAMILIES, moe_model, processor
from tests.torchrun import in_two_processes
from transformers.integrations.tensor_parallel import ALL_PARALLEL_STYLES

from medmoe.model.checkpoint import load_model, save_model

pytestmark = pytest.mark.skipif(
    "ep_dispatch_experts" not in ALL_PARALLEL_STYLES,
    reason="this release of transformers cannot spread experts that way (5.23 can)",
)


def test_the_plan_names_every_parameter_of_the_experts_and_no_other() -> None:
    for family in FAMILIES:
        model = moe_model(family)
        where = "model.language_model.layers.*.mlp.experts"
        assert model.ep_plan.pop(where) == "ep_dispatch_experts"
        assert set(model.ep_plan.values()) == {"grouped_gemm"}
        names = {name for name in model.state_dict() if ".experts." in name}
        assert names == {
            name.replace("*", str(layer)) for name in model.ep_plan for layer in (0, 2)
        }


@pytest.mark.slow
def test_experts_spread_over_two_processes_give_the_logits_and_gradients_of_one(
    tmp_path: Path,
) -> None:
    for family in FAMILIES:
        save_model(moe_model(family, top_k=2), processor(), tmp_path / family, {})
    in_two_processes(expert_parallel.__file__, str(tmp_path))
    seen = json.loads((tmp_path / "seen.json").read_text(encoding="utf-8"))
    assert len(seen) == 4
    for name, found in seen.items():
        # float32 sums in another order; logits and gradients are of the order of 1
        assert found["logits"] < 1e-4, name
        assert found["gradients"] < 1e-4, name
        assert found["same_answer"], name
        assert set(found["share"]) == {0.5}, name
        family, _, layout = name.partition(" ")
        again = type(moe_model("phi")).from_pretrained(tmp_path / name).state_dict()
        model, _ = load_model(tmp_path / family)
        assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())
        assert layout in expert_parallel.LAYOUTS
