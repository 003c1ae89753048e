"""Phi, whose goldens are not in the repository: our model against a plain forward in torch.

The plain forward (`tests.parity.plain`) reads the reference's tensors by name and is itself held
against the StableLM goldens; checkpoints are random, in the layout of the reference's key listing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.convert.reference_checkpoint import (
    FAMILIES,
    Family,
    reference_shapes,
    reference_state,
    write_reference,
)
from tests.parity import plain
from tests.parity.support import TOLERANCE, assert_close, at, batched, expand, our_gradient, record
from torch import Tensor

from medmoe.model.convert.reference import convert_reference, load_reference
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration

CASES = [(2, 1), (3, 1), (3, 2)]
#: One image in the middle, two images, none, one first.
ROWS = [
    [5, 9, 300, -200, 17, 40, 511],
    [8, -200, 3, -200, 77, 2, 450, 12],
    [31, 33, 35, 36],
    [-200, 6, 7, 9, 100],
]
Load = Callable[[int, int], MedMoeForConditionalGeneration]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Load:
    loaded: dict[tuple[int, int], MedMoeForConditionalGeneration] = {}

    def load(stage: int, top_k: int) -> MedMoeForConditionalGeneration:
        if (stage, top_k) not in loaded:
            folder = tmp_path_factory.mktemp("phi")
            source = write_reference(folder / "source", "phi", stage, top_k=top_k)
            account = convert_reference(source, folder / "model")
            assert account.filled == ("lm_head.bias (zeros: the reference drops phi-2's)",)
            assert account.dropped == ()
            made = MedMoeForConditionalGeneration.from_pretrained(folder / "model")
            loaded[stage, top_k] = made.eval()
        return loaded[stage, top_k]

    return load


def pixels(count: int) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(9))


def given(model: Any, rows: list[list[int]], side: str = "right") -> dict[str, Tensor]:
    """Return rows as our inputs; every second token that is no image is a label."""
    expanded = []
    for row in rows:
        ids = torch.tensor(row)
        labels = torch.where((ids != -200) & (torch.arange(len(ids)) % 2 == 1), ids, -100)
        expanded.append(expand(ids, model.config.image_token_id, labels))
    images = sum(row.count(-200) for row in rows)
    return batched(expanded, 0, side) | {"pixel_values": pixels(images)}


def plain_embeds(state: plain.State, rows: list[list[int]], length: int) -> Tensor:
    images = sum(row.count(-200) for row in rows)
    features = plain.clip_states(state, pixels(images))[-2][:, 1:]
    tokens = list(plain.project(state, features))
    padded = torch.zeros(len(rows), length, 64)
    for i, row in enumerate(rows):
        own = [tokens.pop(0) for _ in range(row.count(-200))]
        one = plain.merge(state, torch.tensor(row), own)
        padded[i, : one.shape[1]] = one[0]
    return padded


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert theirs.keys() <= ours.keys()
    for name, value in theirs.items():
        if "_expert_first" in name or "_expert_second" in name:
            assert torch.equal(ours[name], value), name
        else:
            assert_close(ours[name], value, name)


@pytest.mark.parametrize(("stage", "top_k"), CASES)
def test_forward_and_loss_of_a_batch(stage: int, top_k: int, model: Load) -> None:
    """Hidden states, routing, MoE and dense FFN outputs of every layer, logits and loss."""
    ours_given = given(model(stage, top_k), ROWS)
    mask, labels = ours_given["attention_mask"], ours_given["labels"]
    state = reference_state("phi", stage)
    embeds = plain_embeds(state, ROWS, mask.shape[1])
    theirs = plain.decode(state, embeds, phi=True, top_k=top_k, mask=mask.bool())
    theirs["loss"] = plain.loss(theirs["logits"], labels)
    ours = record(model(stage, top_k), **ours_given)
    assert len(theirs) == {(2, 1): 15, (3, 1): 27, (3, 2): 29}[stage, top_k]
    assert_same(at(ours, mask), at(theirs, mask))
    if stage == 3:
        chosen = theirs["layer0_expert_first"][mask.flatten().bool()]
        assert len(set(chosen.tolist())) == 4, "the batch must pass every expert"


@pytest.mark.parametrize("top_k", [1, 2])
def test_padding_on_either_side_changes_no_answer(top_k: int, model: Load) -> None:
    right, left = (given(model(3, top_k), ROWS, side) for side in ("right", "left"))
    found = [
        at(record(model(3, top_k), **inputs), inputs["attention_mask"]) for inputs in (right, left)
    ]
    assert_close(found[0]["logits"], found[1]["logits"], "logits")
    assert_close(found[0]["loss"], found[1]["loss"], "loss")


@pytest.mark.parametrize(("stage", "top_k"), CASES)
def test_greedy_answer_of_20_tokens(stage: int, top_k: int, model: Load) -> None:
    rows = [ROWS[0]]
    inputs = given(model(stage, top_k), rows)
    inputs.pop("labels")
    out = model(stage, top_k).generate(
        **inputs,
        do_sample=False,
        max_new_tokens=20,
        eos_token_id=None,
        output_scores=True,
        return_dict_in_generate=True,
    )
    state = reference_state("phi", stage)
    embeds = plain_embeds(state, rows, inputs["input_ids"].shape[1])
    tokens, scores = [], []
    for _ in range(20):
        logits = plain.decode(state, embeds, phi=True, top_k=top_k)["logits"][:, -1]
        scores.append(logits)
        tokens.append(int(logits.argmax()))
        embeds = torch.cat([embeds, state["model.embed_tokens.weight"][None, tokens[-1:]]], 1)
    assert out.sequences[0, -20:].tolist() == tokens
    assert len(set(tokens)) > 3
    assert_close(torch.cat(out.scores), torch.cat(scores), "scores")


@pytest.mark.parametrize("top_k", [1, 2])
def test_gradients_of_experts_meta_experts_and_projector(top_k: int, model: Load) -> None:
    state = reference_state("phi", 3)
    trained = {
        name: tensor.requires_grad_()
        for name, tensor in state.items()
        if re.search(r"deepspeed_experts|meta_moe|mm_projector|mlp\.fc", name)
        and "image_tower" not in name
    }
    inputs = given(model(3, top_k), ROWS)
    mask = inputs["attention_mask"].bool()
    embeds = plain_embeds(state, ROWS, mask.shape[1])
    logits = plain.decode(state, embeds, phi=True, top_k=top_k, mask=mask)["logits"]
    plain.loss(logits, inputs["labels"]).backward()
    ours = model(3, top_k).train()
    ours.zero_grad()
    ours(**inputs).loss.backward()
    assert len(trained) == 2 * 4 * (4 + 1) + 2 * 4 + 4
    for name, tensor in trained.items():
        assert tensor.grad is not None
        largest = float(tensor.grad.abs().max())
        assert largest > 0
        # Some are small: a wrong one must not hide below the absolute bound.
        assert_close(our_gradient(ours, name), tensor.grad, name, min(TOLERANCE, largest / 100))
    ours.zero_grad()
    ours.eval()


def test_traps_of_phi_are_met(model: Load) -> None:
    """Rotary dimension int(0.4 · 16) = 6, GELU-new, epsilon, a head's zero bias, parallel block."""
    phi = model(3, 1)
    language = phi.model.language_model
    assert {layer.self_attn.rotary_ndims for layer in language.layers} == {6}
    assert language.rotary_emb.inv_freq.shape == (3,)
    assert {layer.input_layernorm.eps for layer in language.layers} == {1e-5}
    assert phi.config.text_config.hidden_act == "gelu_new"
    assert phi.lm_head.bias.shape == (512,)
    assert not phi.lm_head.bias.any()
    assert not hasattr(language.layers[0], "post_attention_layernorm")
    assert phi.config.text_config.vocab_size == 512
    assert phi.config.image_token_id == 512


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("setting", "value"), [("rope_theta", 500.0), ("eps", 0.1)])
def test_settings_of_the_config_reach_the_model(
    family: Family, setting: str, value: float, tmp_path: Path
) -> None:
    name = {"eps": {"phi": "layer_norm_eps", "stablelm": "norm_eps"}[family]}.get(setting, setting)
    usual = load_reference(write_reference(tmp_path / "a", family)).model
    other = load_reference(write_reference(tmp_path / "b", family, config={name: value})).model
    layer = other.model.language_model.layers[0]
    if setting == "eps":
        assert layer.input_layernorm.eps == value
    else:
        assert other.config.text_config.rope_parameters["rope_theta"] == value
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert float((usual(ids).logits - other(ids).logits).abs().max()) > 1e-2


@pytest.mark.parametrize(("family", "listing"), [("phi", "phi2"), ("stablelm", "stablelm2_1_6b")])
def test_the_tiny_checkpoints_have_the_keys_of_the_real_ones(
    family: Family, listing: str, shared: Path
) -> None:
    path = shared / "reference" / "keys" / f"{listing}_stage3_keys.json"
    real = json.loads(path.read_text())["keys"]

    def kinds(names: Any) -> set[str]:
        return {re.sub(r"layers\.\d+", "layers.N", name) for name in names}

    assert kinds(reference_shapes(family, 3)) == kinds(real)
