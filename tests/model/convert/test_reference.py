"""`convert reference`: what it finds, fills and drops, in checkpoints that are whole."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.model.convert.reference_checkpoint import (
    FAMILIES,
    STD,
    TOWER,
    WEIGHTS,
    Family,
    change,
    own_tower,
    reference_config,
    reference_shapes,
    reference_state,
    router_file,
    shard,
    without_tower,
    write_reference,
)

from medmoe.backbones.vision import CLIP_LARGE_336
from medmoe.errors import CheckpointError, ConfigError
from medmoe.model.checkpoint import PROVENANCE, load_model, verify
from medmoe.model.convert.reference import (
    convert_reference,
    load_reference,
    model_config,
    wanted_shapes,
)
from medmoe.model.convert.reference_config import parse_config
from medmoe.model.convert.reference_keys import reference_names
from medmoe.model.convert.tower import find_tower
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration

GATE = "model.layers.0.mlp.deepspeed_moe.gate.wg.weight"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_reference(tmp_path / "source")


def assert_same_weights(one: Any, other: Any) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


# ── what is accepted ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stage", [2, 3])
def test_every_tensor_of_the_checkpoint_is_in_the_model(
    family: Family, stage: int, tmp_path: Path
) -> None:
    """Counted and summed: no weight is lost, doubled, or made up."""
    made = load_reference(write_reference(tmp_path, family, stage))
    state = reference_state(family, stage)
    assert made.account.tensors == len(state)
    ours = dict(made.model.named_parameters())
    bias = ours.pop("lm_head.bias", torch.zeros(0))
    assert bias.numel() == (512 if family == "phi" else 0)
    assert not bias.any()
    assert sum(p.numel() for p in ours.values()) == sum(t.numel() for t in state.values())
    total = sum(float(p.detach().double().square().sum()) for p in ours.values())
    assert total == pytest.approx(sum(float(t.double().square().sum()) for t in state.values()))
    assert made.processor is None
    assert made.account.processor.startswith("none: there is no tokenizer in the folder")


def test_a_model_directory_is_written_with_its_account(source: Path, tmp_path: Path) -> None:
    account = convert_reference(source, tmp_path / "out" / "model")
    verify(tmp_path / "out" / "model")
    facts = json.loads((tmp_path / "out" / "model" / PROVENANCE).read_text())
    assert facts["training"]["converted"] == json.loads(json.dumps(asdict(account)))
    assert facts["domains"] == ["expert_0", "expert_1", "expert_2", "expert_3"]
    assert any("not recorded" in note for note in account.notes)
    again = MedMoeForConditionalGeneration.from_pretrained(tmp_path / "out" / "model")
    assert_same_weights(again, load_reference(source).model)
    with pytest.raises(
        CheckpointError, match=r"no usable processor .* convert it again with the t"
    ):
        load_model(tmp_path / "out" / "model")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_and_pickles_give_the_same_model(kind: str, source: Path) -> None:
    whole = load_reference(source).model
    paths = shard(source, kind)
    found = load_reference(source)
    assert found.account.files == tuple(path.name for path in paths)
    assert_same_weights(found.model, whole)


def test_buffers_of_older_transformers_are_dropped_and_listed(source: Path) -> None:
    rotary = "model.layers.1.self_attn.rotary_emb.inv_freq"
    positions = f"{TOWER}vision_model.embeddings.position_ids"
    whole = load_reference(source).model
    change(source, lambda s: s.update({rotary: torch.ones(3), positions: torch.ones(1, 17)}))
    found = load_reference(source)
    assert found.account.dropped == (
        f"{positions} (computed, no weight)",
        f"{rotary} (computed, no weight)",
    )
    assert_same_weights(found.model, whole)


def test_a_head_bias_that_is_there_is_kept(source: Path) -> None:
    change(source, lambda s: s.update({"lm_head.bias": torch.arange(512.0)}))
    found = load_reference(source)
    assert found.account.filled == ()
    assert torch.equal(found.model.lm_head.bias, torch.arange(512.0))


def test_half_precision_stays_and_the_router_is_float32(tmp_path: Path) -> None:
    state = {name: tensor.bfloat16() for name, tensor in reference_state("phi", 3).items()}
    tower = {name: t.float() if name.startswith(TOWER) else t for name, t in state.items()}
    account = convert_reference(write_reference(tmp_path / "a", state=tower), tmp_path / "model")
    assert account.notes[0] == "torch.float32 tensors were cast to torch.bfloat16"
    model = MedMoeForConditionalGeneration.from_pretrained(tmp_path / "model")
    types = {n: p.dtype for n, p in model.named_parameters()}
    assert {t for n, t in types.items() if ".mlp.gate." in n} == {torch.float32}
    assert {t for n, t in types.items() if ".mlp.gate." not in n} == {torch.bfloat16}


def test_tied_embeddings_need_no_head(tmp_path: Path) -> None:
    state = reference_state("stablelm", 3)
    state.pop("lm_head.weight")
    folder = write_reference(
        tmp_path, "stablelm", state=state, config={"tie_word_embeddings": True}
    )
    model = load_reference(folder).model
    assert model.lm_head.weight is model.get_input_embeddings().weight


# ── the image placeholder ────────────────────────────────────────────────────────────────────────


def test_without_a_tokenizer_no_row_of_the_vocabulary_becomes_the_placeholder(source: Path) -> None:
    """Logits keep their width, every id is still a word, and the placeholder is one id more."""
    model = load_reference(source).model
    assert model.config.image_token_id == 512
    assert model.config.text_config.vocab_size == 512
    table = model.get_input_embeddings()
    assert table.weight.shape == (512, 64)
    ids = torch.tensor([[511, 512, 0]])
    assert torch.equal(table(ids)[0, [0, 2]], table.weight[[511, 0]])
    assert not table(ids)[0, 1].any()
    with pytest.raises(IndexError):
        table(torch.tensor([[513]]))
    text = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert model(text).logits.shape == (1, 3, 512)


def test_a_grown_vocabulary_gives_the_placeholder_a_row(source: Path) -> None:
    model = load_reference(source).model
    before = model(torch.tensor([[5, 6, 7]])).logits
    model.resize_token_embeddings(520, mean_resizing=False)
    after = model(torch.tensor([[5, 6, 7]])).logits
    assert torch.equal(after[..., :512], before)
    assert model.get_input_embeddings()(torch.tensor([512])).any()


def test_a_tokenizer_gives_a_processor_and_a_spare_row(source: Path, tmp_path: Path) -> None:
    from tests.model.tiny import TEXTS

    from medmoe.data.tokenize import train_tokenizer
    from medmoe.inference.engine import MedMoe

    train_tokenizer(TEXTS, 320).save_pretrained(source)
    convert_reference(source, tmp_path / "model")
    engine = MedMoe.load(tmp_path / "model")
    assert engine.model.config.image_token_id == engine.processor.image_token_id < 512
    assert engine.model.config.eos_token_id == engine.processor.tokenizer.eos_token_id
    assert tuple(engine.processor.image_processor.image_std) == tuple(STD)
    answer = engine.answer(torch.zeros(40, 30, 3, dtype=torch.uint8).numpy(), "why?")
    assert answer.routing is not None
    assert answer.routing.domain.startswith("expert_")


# ── where the vision tower comes from ────────────────────────────────────────────────────────────


def test_the_checkpoints_own_tower_comes_first(source: Path, tmp_path: Path) -> None:
    found = load_reference(source, vision_tower=own_tower(tmp_path / "other", scale=2.0))
    assert found.account.vision_tower.startswith("weights from the checkpoint, config from ")
    assert "55 of them differ from" in found.account.vision_tower
    assert_same_weights(found.model, load_reference(source).model)
    assert "differ" not in load_reference(source).account.vision_tower


def test_a_tower_is_taken_from_the_folder_given_then_from_the_one_named(tmp_path: Path) -> None:
    whole = load_reference(write_reference(tmp_path / "whole")).model
    folder = without_tower(tmp_path / "bare")
    given = load_reference(folder, vision_tower=own_tower(tmp_path / "tower"))
    assert given.account.vision_tower == f"weights and config from {tmp_path / 'tower'}"
    assert_same_weights(given.model, whole)
    own_tower(folder / "clip")
    named = load_reference(folder)
    assert named.account.vision_tower == f"weights and config from {folder / 'clip'}"
    assert_same_weights(named.model, whole)


def test_a_tower_named_relative_to_the_folder_above_is_found(tmp_path: Path) -> None:
    """As the reference's stage-2 folders name it: relative to where training ran."""
    folder = write_reference(tmp_path / "stage2", stage=2)
    (folder / "clip").rename(tmp_path / "clip")
    assert str(tmp_path / "clip") in load_reference(folder).account.vision_tower


def test_a_whole_clip_gives_its_vision_side(tmp_path: Path) -> None:
    folder = without_tower(tmp_path / "bare")
    tower = own_tower(tmp_path / "clip")
    config = json.loads((tower / "config.json").read_text())
    (tower / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": config}))
    change(tower, lambda s: s.update({"text_model.x": torch.ones(1), "logit_scale": torch.ones(1)}))
    positions = "vision_model.embeddings.position_ids"
    change(tower, lambda s: s.update({positions: torch.ones(1, 17)}))
    whole = load_reference(write_reference(tmp_path / "whole")).model
    found = load_reference(folder, vision_tower=tower)
    assert_same_weights(found.model, whole)
    assert found.account.dropped == (
        f"logit_scale, text_model.x in {tower} (of a CLIP's text side)",
        f"{positions} in {tower} (computed, no weights)",
    )


@pytest.mark.parametrize(
    "named", ["openai/clip-vit-large-patch14-336", "/data/clip-vit-large-patch14-336"]
)
def test_a_released_checkpoints_tower_is_known_by_its_name(named: str, tmp_path: Path) -> None:
    """Its weights are in the checkpoint; only the shape is asked of the name."""
    config = parse_config(reference_config("phi", 3) | {"mm_image_tower": named}, tmp_path)
    inside = {f"{TOWER}vision_model.embeddings.class_embedding": torch.ones(1024)}
    tower = find_tower(tmp_path, config, inside, None)
    assert tower.weights is None
    assert tower.config.hidden_size == 1024
    assert tower.vision.mean == CLIP_LARGE_336.mean
    assert tower.origin == f"weights from the checkpoint, config of clip_large_336 ({named})"


# ── router and top-k ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_router_file_replaces_every_router(depth: int, source: Path, tmp_path: Path) -> None:
    path = router_file(tmp_path, depth=depth)
    found = load_reference(source, router=path)
    wanted = torch.load(path, weights_only=True)
    for block in found.model.moe_blocks.values():
        assert block.gate.state_dict().keys() == wanted.keys()
        assert all(torch.equal(block.gate.state_dict()[n], t) for n, t in wanted.items())
    assert found.account.router == f"from {path}, the same in every MoE layer"
    assert len(found.account.dropped) == 4
    assert found.account.dropped[1] == f"{GATE} (replaced by {path})"


def test_a_router_file_stands_in_for_routers_that_are_missing(source: Path, tmp_path: Path) -> None:
    gates = [name for name in load_file(source / WEIGHTS) if ".gate.wg." in name]
    change(source, lambda s: [s.pop(name) for name in gates])
    with pytest.raises(CheckpointError, match=r"4 missing: .*gate\.wg\.bias"):
        load_reference(source)
    assert load_reference(source, router=router_file(tmp_path)).account.dropped == ()


@pytest.mark.parametrize(
    ("family", "file"), [("phi", "phi_router"), ("stablelm", "stablelm_router")]
)
def test_the_released_routers_load(family: Family, file: str, shared: Path, tmp_path: Path) -> None:
    from medmoe.model.convert.reference import read_router

    width = {"phi": 2560, "stablelm": 2048}[family]
    config = parse_config(reference_config(family, 3) | {"hidden_size": width}, tmp_path)
    path = shared / "reference" / "routers" / f"{file}.safetensors"
    router = read_router(path, config)
    assert (router.experts, router.depth) == (4, 1)
    assert router.state["fc1.weight"].shape == (4, width)
    other = parse_config(reference_config(family, 3), tmp_path)
    with pytest.raises(CheckpointError, match=rf"is \(4, {width}\), .* needs \(4, 64\)"):
        read_router(path, other)


def test_stage_2_with_a_router_is_the_start_of_stage_3(tmp_path: Path) -> None:
    folder = write_reference(tmp_path / "stage2", "stablelm", 2)
    found = load_reference(folder, router=router_file(tmp_path), top_k=2)
    assert found.account.moe_layers == (0, 2)
    assert found.account.num_experts_per_tok == 2
    assert found.account.notes[0].startswith(
        "stage 2 with a router: made into the model that stage"
    )
    ffn = reference_state("stablelm", 2)["model.layers.2.mlp.down_proj.weight"]
    block = found.model.moe_blocks[2]
    assert torch.equal(block.meta_expert.down_proj.weight, ffn)
    assert all(torch.equal(expert, ffn) for expert in block.experts.down_proj)


@pytest.mark.parametrize(("stage", "top_k"), [(3, 5), (3, 0), (2, 1)])
def test_a_top_k_that_does_not_fit_is_refused(stage: int, top_k: int, tmp_path: Path) -> None:
    folder = write_reference(tmp_path, "phi", stage)
    rule = r"top-k \(\d\) must lie between 1 and .*\(4\)" if stage == 3 else "no experts to choose"
    with pytest.raises(ConfigError, match=rule):
        load_reference(folder, top_k=top_k)


# ── the real sizes ───────────────────────────────────────────────────────────────────────────────

REAL: dict[str, dict[str, Any]] = {
    "phi2": {
        "vocab_size": 51200,
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 2048,
    },
    "stablelm2_1_6b": {
        "vocab_size": 100352,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
    },
}


@pytest.mark.parametrize(("family", "name"), [("phi", "phi2"), ("stablelm", "stablelm2_1_6b")])
def test_the_real_key_listings_map_completely(
    family: Family, name: str, shared: Path, tmp_path: Path
) -> None:
    """Zero missing but phi-2's dropped head bias, zero unexpected, all shapes equal."""
    path = shared / "reference" / "keys" / f"{name}_stage3_keys.json"
    listing = {k: tuple(shape) for k, (shape, _) in json.loads(path.read_text())["keys"].items()}
    layers = list(range(0, REAL[name]["num_hidden_layers"], 2))
    raw = reference_config(family, 3) | REAL[name]
    raw |= {"mm_image_tower": "openai/clip-vit-large-patch14-336"}
    raw["moe"] |= {"moe_layers_idx": layers, "num_experts": [4] * len(layers)}
    config = parse_config(raw, tmp_path)
    tower = find_tower(tmp_path, config, dict.fromkeys(listing, torch.zeros(0)), None)
    with torch.device("meta"):
        model = MedMoeForConditionalGeneration(model_config(config, tower, None, 1))
    wanted = wanted_shapes(model)
    assert wanted.keys() - listing.keys() == ({"lm_head.bias"} if family == "phi" else set())
    assert listing.keys() - wanted.keys() == set()
    assert {key: wanted[key] for key in listing} == listing
    # One-to-one: no tensor of the reference is asked for twice.
    asked = [
        key
        for ours, tensor in model.state_dict().items()
        for key, _ in reference_names(ours, tuple(tensor.shape))
    ]
    assert len(asked) == len(set(asked)) == len(listing) + (family == "phi")


def test_a_conversion_replaces_an_older_model(source: Path, tmp_path: Path) -> None:
    convert_reference(source, tmp_path / "model")
    other = write_reference(tmp_path / "other", "stablelm", 2)
    convert_reference(other, tmp_path / "model")
    verify(tmp_path / "model")
    model = MedMoeForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert_same_weights(model, load_reference(other).model)


def test_what_is_read_is_what_the_listing_names() -> None:
    """The tiny checkpoints of these tests are whole: as many tensors as their listing."""
    assert len(reference_state("phi", 3)) == len(reference_shapes("phi", 3)) == 155
