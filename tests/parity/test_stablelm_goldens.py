"""Our model, converted from the reference's checkpoint, against what the reference computed.

Every array of the neutral goldens, top-1 and top-2, through the whole path: `medmoe convert
reference` to a folder, then `from_pretrained`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.parity import plain
from tests.parity.support import (
    TOLERANCE,
    assert_close,
    at,
    batched,
    expand,
    our_gradient,
    record,
)
from torch import Tensor

import medmoe.model  # noqa: F401
from medmoe.model.convert.reference import convert_reference, load_reference
from medmoe.model.convert.source import read_tensors
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.model.upcycle import upcycle

TOP_K = (1, 2)
Load = Callable[[int], MedMoeForConditionalGeneration]


@pytest.fixture(scope="module")
def goldens(shared: Path) -> Path:
    return shared / "reference" / "stablelm"


@pytest.fixture(scope="module")
def arrays(goldens: Path) -> Callable[[str], dict[str, np.ndarray]]:
    return lambda name: dict(np.load(goldens / f"{name}.npz"))


@pytest.fixture(scope="module")
def model(goldens: Path, tmp_path_factory: pytest.TempPathFactory) -> Load:
    loaded: dict[int, MedMoeForConditionalGeneration] = {}

    def load(top_k: int) -> MedMoeForConditionalGeneration:
        if top_k not in loaded:
            folder = tmp_path_factory.mktemp("converted") / "model"
            convert_reference(goldens, folder, top_k=top_k)
            loaded[top_k] = MedMoeForConditionalGeneration.from_pretrained(folder).eval()
        return loaded[top_k]

    return load


@pytest.fixture(scope="module")
def inputs(arrays: Any) -> dict[str, Tensor]:
    return {name: torch.as_tensor(value) for name, value in arrays("inputs").items()}


def single(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    ids, _ = expand(inputs["single_input_ids"][0], model.config.image_token_id)
    return {"input_ids": ids[None], "pixel_values": inputs["single_pixel_values"]}


def batch(model: Any, inputs: dict[str, Tensor], side: str = "right") -> dict[str, Tensor]:
    """The labelled batch: row 2 has no image, so its dummy image (the fourth) is left out."""
    rows = zip(
        inputs["batch_input_ids"],
        inputs["batch_labels"],
        inputs["batch_attention_mask"].sum(1).tolist(),
        strict=True,
    )
    image_id = model.config.image_token_id
    expanded = [expand(ids[:n], image_id, labels[:n]) for ids, labels, n in rows]
    pixels = inputs["pixel_values"][[0, 1, 2, 4]]
    return batched(expanded, model.config.pad_token_id, side) | {"pixel_values": pixels}


def assert_all_of_it(ours: dict[str, Tensor], theirs: dict[str, np.ndarray], top_k: int) -> None:
    """Compare every array that is not about the reference's own dispatch and auxiliary loss."""
    buffers = ("_sec", "_capacity", "_exp_counts", "_l_aux", "moe_loss")
    about_merging = {"inputs_embeds", "merged_attention_mask", "merged_labels"}
    names = [n for n in theirs if not n.endswith(buffers) and n not in about_merging]
    assert len(names) >= (26 if top_k == 1 else 28)
    for name in names:
        if "expert_first" in name or "expert_second" in name:
            np.testing.assert_array_equal(ours[name].numpy(), theirs[name], name)
        else:
            assert_close(ours[name], theirs[name], name)


def test_vision_features_and_projector(model: Load, arrays: Any, inputs: Any) -> None:
    wanted, inner = arrays("vision"), model(1).model
    with torch.no_grad():
        states = inner.vision_tower(inputs["pixel_values"], output_hidden_states=True)
        for i, state in enumerate(states.hidden_states):
            assert_close(state, wanted[f"clip_hidden_{i}"], f"clip_hidden_{i}")
        features = inner.encode_images(inputs["pixel_values"])
        assert_close(features, wanted["clip_selected"], "clip_selected")
        assert_close(inner.multi_modal_projector(features), wanted["projected"], "projected")


@pytest.mark.parametrize(
    ("case", "side", "limit"),
    [("right", "right", None), ("left", "left", None), ("right_trunc24", "right", 24)],
)
def test_merge_of_images_and_text(
    case: str, side: str, limit: int | None, model: Load, arrays: Any, inputs: Any
) -> None:
    wanted, ours = arrays("merge"), batch(model(1), inputs, side)
    mask = ours["attention_mask"][:, :limit].bool()
    np.testing.assert_array_equal(mask.numpy(), wanted[f"{case}_attention_mask"])
    np.testing.assert_array_equal(ours["labels"][:, :limit].numpy(), wanted[f"{case}_labels"])
    inner = model(1).model
    with torch.no_grad():
        features = inner.encode_images(ours["pixel_values"])
        embeds = inner.embed(ours["input_ids"], features)[:, :limit]
    theirs = torch.as_tensor(wanted[f"{case}_inputs_embeds"])
    # Padding is never read: zeros there, the padding token's embedding here.
    assert_close(embeds[mask], theirs[mask], "inputs_embeds")


@pytest.mark.parametrize("top_k", TOP_K)
def test_forward_of_one_prompt(top_k: int, model: Load, arrays: Any, inputs: Any) -> None:
    wanted = arrays(f"forward_single_top{top_k}_neutral")
    ours = record(model(top_k), **single(model(top_k), inputs))
    assert_close(ours["hidden_states_0"], wanted["inputs_embeds"], "inputs_embeds")
    assert_all_of_it(ours, wanted, top_k)


@pytest.mark.parametrize("top_k", TOP_K)
def test_forward_and_loss_of_a_batch(top_k: int, model: Load, arrays: Any, inputs: Any) -> None:
    """From ids and pixels, at every real position."""
    wanted = arrays(f"forward_batch_top{top_k}_neutral")
    given = batch(model(top_k), inputs)
    mask = given["attention_mask"]
    np.testing.assert_array_equal(mask.numpy().astype(bool), wanted["merged_attention_mask"])
    np.testing.assert_array_equal(given["labels"].numpy(), wanted["merged_labels"])
    ours = record(model(top_k), **given)
    theirs = {name: torch.as_tensor(value) for name, value in wanted.items()}
    whole = {n: v for n, v in theirs.items() if n in ours}
    seen = at(whole, mask)
    assert_all_of_it(at(ours, mask), {n: v.numpy() for n, v in seen.items()}, top_k)


@pytest.mark.parametrize("top_k", TOP_K)
def test_forward_of_a_batch_at_padding_too(top_k: int, model: Load, arrays: Any) -> None:
    """From the reference's own embeddings, whose padding is zeros: every position, every array."""
    wanted = arrays(f"forward_batch_top{top_k}_neutral")
    ours = record(
        model(top_k),
        inputs_embeds=torch.as_tensor(wanted["inputs_embeds"]),
        attention_mask=torch.as_tensor(wanted["merged_attention_mask"]).long(),
        labels=torch.as_tensor(wanted["merged_labels"]),
    )
    assert_all_of_it(ours, wanted, top_k)


@pytest.mark.parametrize("case", ["single", "batch"])
@pytest.mark.parametrize("top_k", TOP_K)
def test_dispatch_buffers_of_the_reference_hold_our_routing(
    top_k: int, case: str, model: Load, arrays: Any
) -> None:
    """Its buffers per expert and slot say the same as index and weight: nothing is dropped."""
    wanted = arrays(f"forward_{case}_top{top_k}_neutral")
    mask = wanted.get("merged_attention_mask", np.ones(wanted["inputs_embeds"].shape[:2]))
    ours = record(
        model(top_k),
        inputs_embeds=torch.as_tensor(wanted["inputs_embeds"]),
        attention_mask=torch.as_tensor(mask).long(),
    )
    for layer in (0, 2):
        weights = ours[f"layer{layer}_combine_weights"]
        slots = torch.as_tensor(wanted[f"layer{layer}_combine_weights_sec"])
        assert_close(weights, slots.sum(-1), "weights summed over slots")
        used = torch.as_tensor(wanted[f"layer{layer}_dispatch_mask_sec"]).any(-1)
        assert torch.equal(weights > 0, used)
        first = ours[f"layer{layer}_expert_first"]
        counts = torch.bincount(first, minlength=4)
        np.testing.assert_array_equal(counts.numpy(), wanted[f"layer{layer}_exp_counts"])
        # The loss that the method switches off: mean probability times share of first choices.
        share = counts / len(first)
        aux = 4 * (ours[f"layer{layer}_gate_logits"].softmax(-1).mean(0) * share).sum()
        assert_close(aux, wanted[f"layer{layer}_l_aux"], "l_aux")
        assert wanted[f"layer{layer}_capacity"] >= counts.max().item()


def test_top2_makes_the_choice_without_noise(model: Load, arrays: Any, inputs: Any) -> None:
    """The reference draws noise for its second expert at evaluation too; ours never does."""
    noisy = arrays("forward_single_top2_seeded")
    ours = record(model(2), **single(model(2), inputs))
    second, first = ours["layer0_expert_second"], ours["layer0_expert_first"]
    theirs = torch.as_tensor(noisy["layer0_expert_second"])
    assert 0 < int((second != theirs).sum()) < len(second)
    drawn = ours["layer0_gate_logits"] + torch.as_tensor(noisy["layer0_gumbel_noise"])
    drawn = drawn.scatter(1, first[:, None], -torch.inf)
    assert torch.equal(drawn.argmax(-1), theirs)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("top_k", TOP_K)
def test_greedy_answer_of_20_tokens(
    top_k: int, cache: bool, model: Load, arrays: Any, inputs: Any
) -> None:
    wanted = arrays("generate")
    case = f"top{top_k}_neutral_{'cache' if cache else 'nocache'}"
    given = single(model(top_k), inputs)
    out = model(top_k).generate(
        **given,
        attention_mask=torch.ones_like(given["input_ids"]),
        do_sample=False,
        max_new_tokens=20,
        eos_token_id=None,
        use_cache=cache,
        output_scores=True,
        return_dict_in_generate=True,
    )
    new = out.sequences[0, given["input_ids"].shape[1] :]
    assert new.tolist() == wanted[f"{case}_tokens"].tolist()
    assert_close(torch.cat(out.scores), wanted[f"{case}_scores"], "scores")


@pytest.mark.parametrize("top_k", TOP_K)
def test_gradients_of_everything_that_stage_3_trains(
    top_k: int, model: Load, arrays: Any, inputs: Any
) -> None:
    wanted = arrays(f"train_grads_top{top_k}_neutral_aux0")
    trained = model(top_k).train()
    trained.zero_grad()
    loss = trained(**batch(trained, inputs)).loss
    loss.backward()
    assert_close(loss, wanted.pop("loss"), "loss")
    assert len(wanted) == 40
    for name, gradient in wanted.items():
        assert np.abs(gradient).max() > 10 * TOLERANCE, f"{name} could not tell a wrong gradient"
        assert_close(our_gradient(trained, name), gradient, name)
    trained.zero_grad()
    trained.eval()


def test_a_batch_of_three_equals_its_rows(model: Load, arrays: Any) -> None:
    """The reference is silently wrong here: it takes three rows for its own return values."""
    wanted = arrays("defect_batch3_top1_neutral")
    ids = [
        expand(torch.as_tensor(row), model(1).config.image_token_id) for row in wanted["input_ids"]
    ]
    given = {"input_ids": torch.stack([row for row, _ in ids])}
    ours = record(model(1), **given, pixel_values=torch.as_tensor(wanted["pixel_values"]))
    assert_close(ours["logits"], wanted["logits_one_at_a_time"], "logits")
    wrong = torch.as_tensor(wanted["logits_reference_batch_of_three_WRONG"])
    assert float((ours["logits"] - wrong).abs().max()) > 1


def test_stage_2_is_a_dense_model(goldens: Path, arrays: Any, inputs: Any) -> None:
    dense = load_reference(goldens / "stage2").model
    assert dense.config.moe_layers == []
    ours = record(dense, **single(dense, inputs))
    assert_close(ours["logits"], arrays("stage2_forward_single")["logits"], "logits")


@pytest.mark.parametrize("router", ["router.safetensors", "router.pth"])
def test_stage_3_starts_where_the_reference_starts(
    router: str, goldens: Path, arrays: Any, inputs: Any, tmp_path: Path
) -> None:
    """Its step-0 file, our upcycling, and `convert` with a router file are one model."""
    for name in ("config.json", "clip"):
        (tmp_path / name).symlink_to(goldens / name)
    (tmp_path / "model.safetensors").symlink_to(goldens / "stage3_init.safetensors")
    theirs = load_reference(tmp_path).model
    dense = load_reference(goldens / "stage2").model
    ours = upcycle(
        dense,
        moe_layers=[0, 2],
        domains=theirs.config.domains,
        router=read_tensors(goldens / router),
    )
    at_once = load_reference(goldens / "stage2", router=goldens / router).model
    for made in (ours, at_once):
        assert made.state_dict().keys() == theirs.state_dict().keys()
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(tensor, made.state_dict()[name]), name
    wanted = arrays("stage3_init_forward_single_top1_neutral")
    assert_all_of_it(record(at_once, **single(at_once, inputs)), wanted, 1)


def test_config_and_flag_give_the_same_top_k(goldens: Path, tmp_path: Path) -> None:
    for name in ("clip", "model.safetensors"):
        (tmp_path / name).symlink_to(goldens / name)
    (tmp_path / "config.json").symlink_to(goldens / "config_top2.json")
    assert load_reference(tmp_path).model.config.num_experts_per_tok == 2
    assert load_reference(goldens).model.config.num_experts_per_tok == 1
    assert load_reference(goldens, top_k=2).model.config.num_experts_per_tok == 2


def test_the_pickle_gives_the_same_model(goldens: Path, tmp_path: Path) -> None:
    for name in ("config.json", "clip", "pytorch_model.bin"):
        (tmp_path / name).symlink_to(goldens / name)
    pickled, plain_file = load_reference(tmp_path), load_reference(goldens)
    assert pickled.account.files == ("pytorch_model.bin",)
    for name, tensor in plain_file.model.state_dict().items():
        assert torch.equal(tensor, pickled.model.state_dict()[name]), name


@pytest.mark.parametrize("top_k", TOP_K)
def test_plain_forward_is_the_references(top_k: int, goldens: Path, arrays: Any) -> None:
    """What the Phi tests compare with is itself held against goldens, but for Phi's own block."""
    state, given = load_file(goldens / "model.safetensors"), arrays("inputs")
    pixels, vision = torch.as_tensor(given["pixel_values"]), arrays("vision")
    states = plain.clip_states(state, pixels)
    for i, value in enumerate(states):
        assert_close(value, vision[f"clip_hidden_{i}"], f"clip_hidden_{i}")
    images = plain.project(state, states[-2][:, 1:])
    wanted = arrays(f"forward_single_top{top_k}_neutral")
    embeds = plain.merge(state, torch.as_tensor(given["single_input_ids"][0]), images[:1])
    assert_all_of_it(plain.decode(state, embeds, phi=False, top_k=top_k), wanted, top_k)
    wanted = arrays(f"forward_batch_top{top_k}_neutral")
    ours = plain.decode(
        state,
        torch.as_tensor(wanted["inputs_embeds"]),
        phi=False,
        top_k=top_k,
        mask=torch.as_tensor(wanted["merged_attention_mask"]),
    )
    ours["loss"] = plain.loss(ours["logits"], torch.as_tensor(wanted["merged_labels"]))
    assert_all_of_it(ours, wanted, top_k)
