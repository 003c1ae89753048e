"""What the plugin gives vLLM, without vLLM: the same model, readable as its files are."""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.model.growing import grown, saved
from tests.model.tiny import DOMAINS, FAMILIES, MOE_LAYERS, Family, moe_model, processor
from torch import nn

from medmoe.errors import ConfigError
from medmoe.model.checkpoint import load_model, save_model
from medmoe.serving.vllm.plugin import VllmConfig, VllmModel


def built(family: Family, top_k: int = 1) -> VllmModel:
    model = moe_model(family, top_k)
    return VllmModel(VllmConfig.from_dict(model.config.to_dict()))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    directory = tmp_path_factory.mktemp("plugin") / "model"
    save_model(moe_model("phi"), processor(), directory, {})
    return load_file(directory / "model.safetensors")


def of_layer(files: dict[str, torch.Tensor], layer: int) -> dict[str, torch.Tensor]:
    mark = f"layers.{layer}.mlp.experts."
    return {name.partition(mark)[2]: value for name, value in files.items() if mark in name}


def test_the_entry_point_names_the_function(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["vllm.general_plugins"]["medmoe"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_a_model_with_an_expert_more_chooses_as_ours_does(tmp_path: Path) -> None:
    grown(saved(tmp_path / "old"), tmp_path / "new")
    model, _ = load_model(tmp_path / "new")
    twin = VllmModel(VllmConfig.from_dict(model.config.to_dict()))
    twin.load_state_dict(model.model.state_dict())
    assert twin.config.text_config.num_experts == 5
    states = torch.randn(2, 9, model.config.text_config.hidden_size)
    for layer, block in model.moe_blocks.items():
        given = twin.language_model.layers[layer].mlp.gate(states)
        assert all(a.equal(b) for a, b in zip(given, block.gate(states), strict=True))


def test_the_text_config_says_how_many_experts_vllm_fuses() -> None:
    text = built("stablelm", top_k=2).config.text_config
    assert (text.num_experts, text.num_experts_per_tok) == (len(DOMAINS), 2)


def test_plain_experts_say_nothing_of_themselves() -> None:
    assert not hasattr(built("phi").config.text_config, "num_experts")


def test_only_swiglu_experts_look_like_what_vllm_fuses() -> None:
    # It takes experts whose tensors are all 3-D for SwiGLU, whatever they are: wrong, and silent.
    for family in FAMILIES:
        for layer in MOE_LAYERS:
            experts = built(family).language_model.layers[layer].mlp.experts
            three = all(tensor.dim() == 3 for tensor in experts.parameters())
            assert three == (family == "stablelm")


def test_plain_experts_read_the_tensors_of_the_files(files: dict[str, torch.Tensor]) -> None:
    model, source = built("phi"), moe_model("phi")
    for layer in MOE_LAYERS:
        experts = model.language_model.layers[layer].mlp.experts
        loaded = experts.load_weights(of_layer(files, layer).items())
        wanted = dict(source.moe_blocks[layer].experts.named_parameters())
        assert loaded == set(wanted)
        assert all(torch.equal(getattr(experts, name), wanted[name]) for name in wanted)


def test_a_missing_expert_is_refused(files: dict[str, torch.Tensor]) -> None:
    experts = built("phi").language_model.layers[0].mlp.experts
    tensors = of_layer(files, 0)
    del tensors["2.fc2.bias"]
    with pytest.raises(ConfigError, match="fc2_bias has 3 of 4 experts"):
        experts.load_weights(tensors.items())


def test_nothing_that_answers_is_left_out_of_the_files() -> None:
    # vLLM skips what is named here, the head too, and would answer with zeros for it; the
    # out-of-domain check looks at the picture alone.
    assert VllmModel._keys_to_ignore_on_load_unexpected == (r"^domain_check\.",)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_routers_layers_are_none_that_vllm_swaps(family: Family) -> None:
    for layer in MOE_LAYERS:
        gate = built(family).language_model.layers[layer].mlp.gate
        assert list(gate.parameters())
        assert not any(isinstance(module, nn.Linear) for module in gate.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_it_computes_what_our_model_computes(family: Family) -> None:
    source, model = moe_model(family, top_k=2), built(family, top_k=2)
    model.load_state_dict(source.model.state_dict())
    ids = torch.arange(10, 20)[None]
    with torch.inference_mode():
        theirs, ours = (one.eval()(input_ids=ids) for one in (model, source.model))
    assert torch.equal(theirs.last_hidden_state, ours.last_hidden_state)
