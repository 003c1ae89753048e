"""What stands in the weight files, and which of them are refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.model.tiny import DOMAINS, FAMILIES, Family, dense_model, moe_model, pixels, processor
from tests.model.tiny import prompt_ids as ids_of
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    pipeline,
)

import medmoe.model
from medmoe.errors import CheckpointError
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration, MedMoeModel
from medmoe.model.processing_medmoe import MedMoeProcessor

WEIGHTS = "model.safetensors"
LAYER = "model.language_model.layers.0.mlp."
PARTS = {
    "stablelm": ["gate_proj.weight", "up_proj.weight", "down_proj.weight"],
    "phi": ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"],
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directories = {}
    for family in FAMILIES:
        for kind, model in (("dense", dense_model(family)), ("moe", moe_model(family, 2))):
            directories[f"{family}/{kind}"] = path = tmp_path_factory.mktemp(family) / kind
            model.save_pretrained(path)
            processor().save_pretrained(path)
    return directories


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(
            input_ids=torch.tensor([ids_of("why?")]), pixel_values=pixels(1).to(model.dtype)
        ).logits
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_are_named_one_by_one_on_disk(family: Family, saved: dict[str, Path]) -> None:
    tensors = load_file(saved[f"{family}/moe"] / WEIGHTS)
    found = {name.removeprefix(LAYER) for name in tensors if name.startswith(LAYER)}
    experts = [f"experts.{i}.{part}" for i in range(len(DOMAINS)) for part in PARTS[family]]
    meta = [f"meta_expert.{part}" for part in PARTS[family]]
    assert found == {*experts, *meta, "gate.fc1.weight", "gate.fc1.bias"}
    block: Any = moe_model(family, 2).moe_blocks[0]
    if family == "phi":
        assert torch.equal(tensors[f"{LAYER}experts.2.fc1.bias"], block.experts.fc1_bias[2])
        assert torch.equal(tensors[f"{LAYER}experts.3.fc2.weight"], block.experts.fc2_weight[3])
    else:
        gate, up = block.experts.gate_up_proj[2].chunk(2)
        assert torch.equal(tensors[f"{LAYER}experts.2.gate_proj.weight"], gate)
        assert torch.equal(tensors[f"{LAYER}experts.2.up_proj.weight"], up)


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_layers_keep_the_stock_names(family: Family, saved: dict[str, Path]) -> None:
    dense, moe = (load_file(saved[f"{family}/{kind}"] / WEIGHTS) for kind in ("dense", "moe"))
    assert {name for name in dense if ".mlp." not in name} == {
        name for name in moe if ".mlp." not in name
    }
    assert {f"{LAYER}{part}" for part in PARTS[family]} <= dense.keys()


@pytest.mark.parametrize("name", ["eager", "batched_mm", "grouped_mm"])
def test_the_experts_implementation_is_chosen_on_loading(name: str, saved: dict[str, Path]) -> None:
    path = saved["stablelm/moe"]
    model = MedMoeForConditionalGeneration.from_pretrained(path, experts_implementation={"": name})
    assert model.config._experts_implementation == name
    assert model.moe_blocks[0].experts.config._experts_implementation == name
    # Three layers of sums in another order, logits near 10.
    torch.testing.assert_close(
        logits(model), logits(moe_model("stablelm", 2)), rtol=1e-4, atol=1e-4
    )


def test_experts_run_grouped_unless_told_otherwise(saved: dict[str, Path]) -> None:
    model = MedMoeForConditionalGeneration.from_pretrained(saved["phi/moe"])
    assert model.config._experts_implementation == "grouped_mm"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_router_stays_in_float32_when_loaded_in_bfloat16(
    family: Family, saved: dict[str, Path]
) -> None:
    model = MedMoeForConditionalGeneration.from_pretrained(
        saved[f"{family}/moe"], dtype=torch.bfloat16
    )
    types = {name: parameter.dtype for name, parameter in model.named_parameters()}
    gates = {name for name in types if ".mlp.gate." in name}
    assert len(gates) == 4
    assert {types[name] for name in gates} == {torch.float32}
    # In dense layers too `gate_proj` must not be taken for a router.
    assert {dtype for name, dtype in types.items() if name not in gates} == {torch.bfloat16}
    assert logits(model).isfinite().all()


def rename_head(tensors: dict[str, torch.Tensor]) -> None:
    tensors["head.weight"] = tensors.pop("lm_head.weight")


def reshape_experts(tensors: dict[str, torch.Tensor]) -> None:
    for i in range(len(DOMAINS)):
        tensors[f"{LAYER}experts.{i}.down_proj.weight"] = torch.zeros(3, 3)


EXPERT = f"{LAYER}experts.2.down_proj.weight"
DAMAGES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "a missing tensor": (
        lambda t: t.pop("lm_head.weight"),
        "1 missing keys, first: lm_head.weight",
    ),
    "a head of another name": (rename_head, "missing keys, first: lm_head.weight"),
    "a missing expert": (lambda t: t.pop(EXPERT), r"layers\.0\.mlp\.experts\.down_proj"),
    "an expert too many": (
        lambda t: t.update({EXPERT.replace(".2.", ".4."): t[EXPERT].clone()}),
        r"layers\.0\.mlp\.experts\.down_proj",
    ),
    "an unexpected tensor": (
        lambda t: t.update(extra=torch.zeros(1)),
        "1 unexpected keys, first: extra",
    ),
    "a tensor of another shape": (
        lambda t: t.update({"model.language_model.norm.weight": torch.zeros(3)}),
        r"1 mismatched keys, first: model\.language_model\.norm\.weight",
    ),
    "an expert of another shape": (
        lambda t: t.update({EXPERT: torch.zeros(3, 3)}),
        "the experts of a layer have different shapes",
    ),
    "experts of another shape": (reshape_experts, r"mismatched keys, first: .*experts\.down_proj"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_checkpoint_that_does_not_fit_its_config_is_refused(
    name: str, saved: dict[str, Path], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(saved["stablelm/moe"], tmp_path / "model"))
    damage, message = DAMAGES[name]
    tensors = load_file(path / WEIGHTS)
    damage(tensors)
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message) as caught:
        MedMoeForConditionalGeneration.from_pretrained(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dense_checkpoint_under_a_moe_config_is_refused(
    family: Family, saved: dict[str, Path], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(saved[f"{family}/dense"], tmp_path / "model"))
    shutil.copy(saved[f"{family}/moe"] / "config.json", path / "config.json")
    with pytest.raises(CheckpointError, match=r"missing keys, first: .*layers\.0\.mlp\.experts"):
        MedMoeForConditionalGeneration.from_pretrained(path)
    with pytest.raises(CheckpointError, match="missing keys"):
        AutoModel.from_pretrained(path)


def test_a_truncated_weight_file_is_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(saved["phi/moe"], tmp_path / "model"))
    os.truncate(path / WEIGHTS, (path / WEIGHTS).stat().st_size - 8)
    with pytest.raises(CheckpointError, match="a weight file is damaged"):
        MedMoeForConditionalGeneration.from_pretrained(path)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_auto_classes_load_a_saved_directory(family: Family, saved: dict[str, Path]) -> None:
    medmoe.model.register()
    path = saved[f"{family}/moe"]
    assert type(AutoConfig.from_pretrained(path)) is MedMoeConfig
    assert type(AutoProcessor.from_pretrained(path)) is MedMoeProcessor
    inner, info = AutoModel.from_pretrained(path, output_loading_info=True)
    assert type(inner) is MedMoeModel
    assert not info["missing_keys"]
    whole = AutoModelForImageTextToText.from_pretrained(path)
    assert type(whole) is MedMoeForConditionalGeneration
    expected = moe_model(family, 2).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in whole.state_dict().items())
    assert all(
        torch.equal(tensor, expected[f"model.{name}"])
        for name, tensor in inner.state_dict().items()
    )


def test_the_stock_pipeline_answers_as_generate_does(saved: dict[str, Path]) -> None:
    picture = Image.linear_gradient("L").convert("RGB")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "is there a mass?"}]
    messages = [{"role": "user", "content": content}]
    answer = pipeline("image-text-to-text", model=str(saved["stablelm/moe"]))
    found = answer(text=messages, max_new_tokens=6, do_sample=False, return_full_text=False)
    inputs = processor().apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )
    out = moe_model("stablelm", 2).generate(**inputs, max_new_tokens=6, do_sample=False)
    new = out[:, inputs["input_ids"].shape[1] :]
    expected = processor().batch_decode(new, skip_special_tokens=True)[0]
    assert found[0]["generated_text"] == expected
    assert expected
