"""StableLM's layer passes keywords on and computes what the stock layer computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.model.tiny import dense_model, randomise
from transformers import StableLmConfig
from transformers.models.stablelm import modeling_stablelm as stock

from medmoe.model.modeling_medmoe import StableLmDecoderLayer, pass_keywords


@pytest.mark.parametrize("parallel", [False, True])
def test_layer_equals_the_stock_layer(parallel: bool) -> None:
    config = StableLmConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        use_parallel_residual=parallel,
    )
    model = stock.StableLmModel(config).eval()
    randomise(model, seed=0)
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        before = model(input_ids=ids).last_hidden_state
        for layer in model.layers:
            pass_keywords(layer)
        assert {type(layer) for layer in model.layers} == {StableLmDecoderLayer}
        after = model(input_ids=ids).last_hidden_state
    # a + b + c in another order of addition
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


def test_keywords_reach_the_attention_of_our_model() -> None:
    model = dense_model("stablelm")
    seen: list[Any] = []
    for layer in model.model.language_model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs.get("attention_instances")), with_kwargs=True
        )
    model(input_ids=torch.tensor([[1, 2, 3]]), attention_instances={0: "mine"})
    assert seen == [{0: "mine"}] * len(model.model.language_model.layers)
