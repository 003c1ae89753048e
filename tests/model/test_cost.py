"""Counts hold against what really runs: files on disk, a real cache, torch's own FLOP counter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.configs.test_models import NAMES, recipe_model
from tests.model.tiny import (
    FAMILIES,
    IMAGE_TOKENS,
    Family,
    dense_model,
    moe_model,
    pixels,
    prompt_ids,
)
from tests.model.zoo import small_dense
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from medmoe.backbones.registry import LANGUAGE_BACKBONES
from medmoe.model.blueprint import dense_twin, first_layers
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.cost import flops
from medmoe.model.cost.flops import answer_flops, kv_cache_bytes
from medmoe.model.cost.parameters import (
    activated_parameters,
    count_by_part,
    load_bytes,
    total_parameters,
)

ANSWER = 5


@pytest.mark.parametrize("name", NAMES)
def test_parts_add_up_to_the_model(name: str) -> None:
    model = recipe_model(name)
    counts = count_by_part(model)
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())
    named = {part for part, count in counts.items() if count}
    tied = model.config.tie_word_embeddings
    assert named == set(counts) - ({"head"} if tied else set())
    # Five equal FFNs in each MoE layer.
    assert counts["domain_experts"] == 4 * counts["meta_experts"]


@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_activated_leaves_out_the_idle_experts_only(family: Family, top_k: int) -> None:
    model = moe_model(family, top_k)
    one = sum(
        p[0].numel() for block in model.moe_blocks.values() for p in block.experts.parameters()
    )
    assert activated_parameters(model) == total_parameters(model) - (4 - top_k) * one
    dense = dense_model(family)
    assert activated_parameters(dense) == total_parameters(dense)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_to_load_are_those_of_the_tensors_on_disk(
    family: Family, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = moe_model(family, 2, router_layers=2).to(dtype)
    for block in model.moe_blocks.values():
        block.gate.float()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors").values()
    assert load_bytes(model, dtype) == sum(t.numel() * t.itemsize for t in tensors)


def test_a_tied_head_is_loaded_once(tmp_path: Path) -> None:
    model = small_dense("qwen3_0_6b", "clip_large_336")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors").values()
    assert load_bytes(model, torch.float32) == sum(t.numel() * t.itemsize for t in tensors)


@pytest.mark.parametrize("language", [n for n, b in LANGUAGE_BACKBONES.items() if b.hub_id])
@torch.no_grad()
def test_kv_cache_has_the_bytes_of_a_real_one(language: str) -> None:
    model = small_dense(language, "clip_large_336")
    ids = torch.ones(3, 20, dtype=torch.int64)
    cache = DynamicCache()
    model(input_ids=ids, past_key_values=cache)
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kv_cache_bytes(model.config, torch.float32, batch=3, context=20) == real


def real_flops(model: Any, question: str) -> tuple[int, int]:
    """Return what torch counts in a real answer about one image, and the question's length."""
    model.set_attn_implementation("eager")
    if model.config.moe_layers:
        model.set_experts_implementation({"": "eager"})
    ids = torch.tensor([prompt_ids(question)])
    with FlopCounterMode(display=False) as counter:
        model.generate(
            input_ids=ids,
            pixel_values=pixels(1),
            min_new_tokens=ANSWER,
            max_new_tokens=ANSWER,
            do_sample=False,
        )
    return counter.get_total_flops(), ids.shape[1] - IMAGE_TOKENS


@pytest.mark.parametrize("top_k", [0, 1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_flops_are_those_of_a_real_answer(family: Family, top_k: int) -> None:
    model = moe_model(family, top_k) if top_k else dense_model(family)
    real, question = real_flops(model, "is there a mass?")
    counted = answer_flops(model.config, question, ANSWER)
    assert counted.total == counted.vision + counted.prefill + counted.decode == real


@pytest.mark.parametrize("moe_layers", [[], [0, 2, 4, 6], [3], [1, 2, 7], list(range(8))])
def test_layers_past_the_first_of_their_kind_need_not_be_run(
    moe_layers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = moe_model("stablelm", 2).config.to_dict()
    values["text_config"]["num_hidden_layers"] = 8
    config = MedMoeConfig.from_dict(values | {"moe_layers": moe_layers})
    cut, alike = first_layers(config)
    assert cut.text_config.num_hidden_layers == max(alike) + 1
    kinds = [index in moe_layers for index in range(8)]
    assert [kinds[index] for index in alike] == kinds
    short = answer_flops(config, 7, 3)
    monkeypatch.setattr(flops, "first_layers", lambda config: (config, list(range(8))))
    assert answer_flops(config, 7, 3) == short


def test_an_expert_more_costs_its_products_and_nothing_else() -> None:
    one, two = (answer_flops(moe_model("phi", k).config, 9, ANSWER) for k in (1, 2))
    tokens = IMAGE_TOKENS + 9
    expert = 2 * 2 * 32 * 48  # two matrices, multiply and add
    assert two.prefill - one.prefill == 2 * tokens * expert
    assert two.decode - one.decode == 2 * (ANSWER - 1) * expert
    assert replace(two, prefill=0, decode=0) == replace(one, prefill=0, decode=0)


def test_counting_leaves_the_config_as_it_was() -> None:
    config = moe_model("stablelm", 2).config
    before = (config.to_dict(), config.text_config._attn_implementation)
    answer_flops(config, 4, 2)
    assert (config.to_dict(), config.text_config._attn_implementation) == before


def test_the_dense_twin_has_the_ffn_of_each_layer_once() -> None:
    model = moe_model("phi", 2)
    twin = type(model)(dense_twin(model.config))
    experts = count_by_part(model)
    idle = experts["domain_experts"] + experts["routers"]
    assert total_parameters(twin) == total_parameters(model) - idle
