"""The trace equals the routers called by hand, skips padding and leaves the model as it was."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, DynamicCache, LlamaConfig

from medmoe.errors import DataError, MedMoeError
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.routing.trace import record_routing

PAD, EOS, IMAGE = 0, 1, 39
MOE_LAYERS = [0, 2]


def tiny_model(moe_layers: list[int]) -> MedMoeForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        image_size=8, patch_size=4,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=32, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, vocab_size=40, pad_token_id=PAD, eos_token_id=EOS,
    )  # fmt: skip
    config = MedMoeConfig(
        vision_config=vision, text_config=text, moe_layers=moe_layers, image_token_index=IMAGE,
        num_experts_per_tok=2,
    )  # fmt: skip
    model = MedMoeForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


@pytest.fixture(scope="module")
def model() -> MedMoeForConditionalGeneration:
    return tiny_model(MOE_LAYERS).requires_grad_(False)


def prompt() -> dict[str, Tensor]:
    ids = torch.tensor([[PAD, PAD, 5, 6, 7], [4, 5, 6, 7, 8], [PAD, 9, 9, 12, 13]])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def hook_count(model: MedMoeForConditionalGeneration) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def by_hand(model: MedMoeForConditionalGeneration, **inputs: Any) -> dict[int, tuple[Tensor, ...]]:
    """Return each router's output on what its block was given."""
    given: dict[int, Tensor] = {}
    handles = [
        block.register_forward_pre_hook(lambda _, args, i=i: given.__setitem__(i, args[0]))
        for i, block in model.moe_blocks.items()
    ]
    model(**inputs)
    for handle in handles:
        handle.remove()
    return {i: block.gate(given[i]) for i, block in model.moe_blocks.items()}


def test_trace_equals_the_routers_called_by_hand_and_skips_padding(
    model: MedMoeForConditionalGeneration,
) -> None:
    inputs = prompt()
    expected = by_hand(model, **inputs)
    real = inputs["attention_mask"].bool()
    with record_routing(model) as trace:
        model(**inputs)
    assert trace.layers == MOE_LAYERS
    assert trace.rows.tolist() == [0] * 3 + [1] * 5 + [2] * 4
    for layer, (logits, _, index) in expected.items():
        assert np.array_equal(trace.logits(layer), logits[real].double().numpy())
        assert np.array_equal(trace.probabilities(layer), logits[real].softmax(-1).double().numpy())
        assert np.array_equal(trace.experts(layer), index[real].numpy())


def test_trace_reads_positional_inputs(model: MedMoeForConditionalGeneration) -> None:
    inputs = prompt()
    with record_routing(model) as trace:
        model(inputs["input_ids"], None, inputs["attention_mask"])
    assert len(trace.rows) == 12


def test_rows_go_on_from_batch_to_batch(model: MedMoeForConditionalGeneration) -> None:
    inputs = prompt()
    with record_routing(model) as trace:
        model(**inputs)
        model(input_ids=inputs["input_ids"][1:2])
    assert trace.rows[-5:].tolist() == [3] * 5
    first, again = (trace.experts(0)[trace.rows == row] for row in (1, 3))
    assert np.array_equal(first, again)


def test_a_trace_holds_no_cache_and_no_inputs_once_it_is_over(
    model: MedMoeForConditionalGeneration,
) -> None:
    cache = DynamicCache()
    alive = weakref.ref(cache)
    with record_routing(model) as trace:
        model(input_ids=torch.tensor([[4, 5, 6, 7]]), past_key_values=cache)
    del cache
    gc.collect()
    assert alive() is None
    assert len(trace.rows) == 4


def test_steps_of_generate_belong_to_the_rows_of_the_prompt(
    model: MedMoeForConditionalGeneration,
) -> None:
    inputs = prompt()
    with record_routing(model) as trace:
        made = model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)
        model.generate(**inputs, max_new_tokens=2, do_sample=False, eos_token_id=None)
    assert made.shape[1] == 9
    # n new tokens take the prompt and n - 1 steps.
    tokens = np.bincount(trace.rows).tolist()
    assert tokens == [3 + 3, 5 + 3, 4 + 3, 3 + 1, 5 + 1, 4 + 1]


def test_generated_tokens_are_routed_as_in_one_forward_pass(
    model: MedMoeForConditionalGeneration,
) -> None:
    ids = torch.tensor([[4, 5, 6, 7, 8]])
    with record_routing(model) as steps:
        made = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
    with record_routing(model) as whole:
        model(input_ids=made[:, :-1])
    # cached and uncached attention sum in another order, float32
    assert np.allclose(steps.logits(2), whole.logits(2), rtol=0, atol=1e-4)


def test_a_row_whose_answer_has_ended_counts_as_if_alone(
    model: MedMoeForConditionalGeneration,
) -> None:
    inputs = prompt()
    fed = torch.tensor([[7, 8, 9], [EOS, PAD, PAD], [7, EOS, 5]])  # row 2: 5 comes after its end
    with record_routing(model) as trace:
        cache = DynamicCache()
        model(**inputs, past_key_values=cache)
        mask = inputs["attention_mask"]
        for step in range(3):
            mask = torch.cat([mask, torch.ones(3, 1, dtype=mask.dtype)], dim=1)
            model(input_ids=fed[:, step : step + 1], attention_mask=mask, past_key_values=cache)
    assert np.bincount(trace.rows).tolist() == [3 + 3, 5 + 0, 4 + 1]


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_a_step_goes_on_with_its_prompt_whatever_the_cache_is_called(
    model: MedMoeForConditionalGeneration, name: str
) -> None:
    cache = {name: DynamicCache()}
    with record_routing(model) as trace:
        trace.token_mask = torch.tensor([[False, True, True, False]])
        model(input_ids=torch.tensor([[4, 5, 6, 7]]), **cache)
        model(input_ids=torch.tensor([[8]]), **cache)
    assert trace.rows.tolist() == [0, 0]


def test_own_token_mask_says_which_tokens_count(model: MedMoeForConditionalGeneration) -> None:
    ids = prompt()["input_ids"]
    packed = torch.ones(3, 1, 5, 5, dtype=torch.bool).tril()
    with record_routing(model) as trace:
        model(input_ids=ids, attention_mask=packed)
        trace.token_mask = ids == 9
        model(input_ids=ids, attention_mask=packed)
    assert np.bincount(trace.rows, minlength=6).tolist() == [5, 5, 5, 0, 0, 2]


def test_own_token_mask_of_another_shape_is_an_error(model: MedMoeForConditionalGeneration) -> None:
    with record_routing(model) as trace:
        trace.token_mask = torch.ones(3, 4, dtype=torch.bool)
        with pytest.raises(DataError, match=r"token_mask has shape \(3, 4\) but .* \(3, 5\)"):
            model(**prompt())


def test_gradient_checkpointing_does_not_count_a_layer_twice() -> None:
    model = tiny_model(MOE_LAYERS).train()
    # transformers 5.23 has renamed it and warns of the old name
    old = model.gradient_checkpointing_enable
    getattr(model, "activation_checkpointing_enable", old)({"use_reentrant": False})
    calls = []
    model.moe_blocks[0].gate.register_forward_hook(lambda *_: calls.append(1))
    inputs = prompt()
    with record_routing(model) as trace:
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert len(calls) == 2  # forward, and again in the backward pass
    assert len(trace.rows) == len(trace.experts(0)) == 12


def test_recording_changes_no_output_and_leaves_no_hook(
    model: MedMoeForConditionalGeneration,
) -> None:
    before, plain = hook_count(model), model(**prompt()).logits
    with record_routing(model):
        assert hook_count(model) > before
        assert torch.equal(model(**prompt()).logits, plain)
    assert hook_count(model) == before


def test_hooks_are_gone_after_an_error(model: MedMoeForConditionalGeneration) -> None:
    before = hook_count(model)
    with pytest.raises(KeyError), record_routing(model):
        raise KeyError
    assert hook_count(model) == before


def test_nothing_recorded_gives_empty_arrays(model: MedMoeForConditionalGeneration) -> None:
    with record_routing(model) as trace:
        pass
    assert trace.logits(0).shape == (0, 4)
    assert trace.experts(0).shape == (0, 2)


def test_what_is_read_may_be_written_to(model: MedMoeForConditionalGeneration) -> None:
    with record_routing(model) as trace, torch.no_grad():
        model(**prompt())
    for values in (trace.rows, trace.kinds, trace.experts(0), trace.weights(0), trace.logits(0)):
        values[:] = 7
    assert trace.rows.tolist() == [0] * 3 + [1] * 5 + [2] * 4
    assert trace.experts(0).max() < 4


def test_dense_model_is_an_error() -> None:
    with (
        pytest.raises(MedMoeError, match="has 0 MoE layers and routes nothing"),
        record_routing(tiny_model([])),
    ):
        pass


def test_router_run_outside_the_recorded_model_is_an_error(
    model: MedMoeForConditionalGeneration,
) -> None:
    ids = prompt()["input_ids"]
    with (
        record_routing(model),
        pytest.raises(MedMoeError, match="ran outside the recorded model"),
    ):
        model.model(input_ids=ids)


def test_a_layer_that_is_no_moe_layer_is_named(model: MedMoeForConditionalGeneration) -> None:
    with record_routing(model) as trace:
        model(**prompt())
    with pytest.raises(DataError, match=r"layer 1 is no MoE layer .* \[0, 2\]"):
        trace.logits(1)


@pytest.mark.parametrize("layer", MOE_LAYERS)
def test_weights_are_those_the_block_used(
    model: MedMoeForConditionalGeneration, layer: int
) -> None:
    with record_routing(model) as trace, torch.no_grad():
        model(**prompt())
    chosen = np.take_along_axis(trace.probabilities(layer), trace.experts(layer), axis=1)
    expected = chosen / chosen.sum(axis=1, keepdims=True)  # top-2: renormalised
    np.testing.assert_allclose(trace.weights(layer), expected, rtol=1e-6)


def test_kinds_tell_image_question_and_answer(model: MedMoeForConditionalGeneration) -> None:
    """Left padding is no token; answers are the steps of `generate`, call by call."""
    ids = torch.tensor([[PAD, *[IMAGE] * 4, 6], [*[IMAGE] * 4, 7, 8]])
    inputs = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    pixels = torch.zeros(2, 3, 8, 8)
    with record_routing(model) as trace, torch.no_grad():
        model.generate(
            **inputs, pixel_values=pixels, max_new_tokens=3, min_new_tokens=3, do_sample=False
        )
    image, question, answer = 0, 1, 2
    steps = [answer] * 4  # two rows, two steps: the last token made is fed to no router
    wanted = [*[image] * 4, question, *[image] * 4, question, question, *steps]
    assert trace.kinds.tolist() == wanted
    assert trace.rows.tolist() == [0] * 5 + [1] * 6 + [0, 1] * 2


def test_kinds_of_a_training_pass_follow_its_labels(
    model: MedMoeForConditionalGeneration,
) -> None:
    inputs = prompt()
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -2:] = inputs["input_ids"][:, -2:]
    with record_routing(model) as trace, torch.no_grad():
        model(**inputs, labels=labels)
    assert trace.kinds.tolist() == [1, 2, 2, 1, 1, 1, 2, 2, 1, 1, 2, 2]


def test_kinds_of_embeddings_are_not_known(model: MedMoeForConditionalGeneration) -> None:
    inputs = prompt()
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    with record_routing(model) as trace, torch.no_grad():
        model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"])
    assert trace.kinds.tolist() == [-1] * 12


def test_rows_and_kinds_are_kept_once_for_all_layers(
    model: MedMoeForConditionalGeneration,
) -> None:
    with record_routing(model) as trace:
        model.generate(**prompt(), max_new_tokens=3, do_sample=False, eos_token_id=None)
    lengths = {len(trace.logits(layer)) for layer in MOE_LAYERS}
    assert lengths == {len(trace.rows)} == {len(trace.kinds)} == {12 + 2 * 3}


def test_a_step_whose_mask_hides_a_row_does_not_count_for_it(
    model: MedMoeForConditionalGeneration,
) -> None:
    inputs = prompt()
    with record_routing(model) as trace:
        cache = DynamicCache()
        model(**inputs, past_key_values=cache)
        hidden = torch.tensor([[1], [0], [1]])
        mask = torch.cat([inputs["attention_mask"], hidden], dim=1)
        model(input_ids=torch.tensor([[7], [8], [9]]), attention_mask=mask, past_key_values=cache)
    assert np.bincount(trace.rows).tolist() == [3 + 1, 5, 4 + 1]
