"""`convert reference` refuses what is no whole checkpoint: one line, and nothing half-written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model.convert.reference_checkpoint import (
    TOWER,
    WEIGHTS,
    change,
    configure,
    reference_config,
    reference_state,
    router_file,
    shard,
    tower_shapes,
    without_tower,
    write_reference,
    write_tower,
)
from torch import Tensor, nn

from medmoe.errors import CheckpointError, MedMoeError
from medmoe.model.checkpoint import MANIFEST
from medmoe.model.convert.reference import convert_reference

GATE = "model.layers.0.mlp.deepspeed_moe.gate.wg.weight"
FC1 = "model.layers.0.mlp.meta_moe.fc1.weight"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_reference(tmp_path / "source")


class Evil:
    """A pickle of this runs a command when it is opened the unsafe way."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch EVIL",)


def pickled(content: Any) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        torch.save(content, folder / "pytorch_model.bin")

    return replace


def cut(name: str, folder: Path) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_pickle(folder: Path) -> None:
    pickled(reference_state("phi", 3))(folder)
    cut("pytorch_model.bin", folder)


def lose_shard(folder: Path) -> None:
    shard(folder)[1].unlink()


def cut_shard(folder: Path) -> None:
    cut(shard(folder)[0].name, folder)


def empty_shard(folder: Path) -> None:
    path = shard(folder)[0]
    tensors = load_file(path)
    tensors.pop(FC1, None)
    tensors.pop(min(tensors))
    save_file(tensors, path)


def shard_elsewhere(folder: Path) -> None:
    shard(folder)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"a": "../x.bin"}}))


def put(name: str, value: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    return lambda folder: change(folder, lambda s: s.update({name: value(s[name]).clone()}))


def with_value(number: float) -> Callable[[Tensor], Tensor]:
    def edit(tensor: Tensor) -> Tensor:
        tensor.view(-1)[7] = number
        return tensor

    return edit


def remove(*names: str) -> Callable[[Path], None]:
    return lambda folder: change(folder, lambda s: [s.pop(name) for name in names])


def moe(**values: Any) -> Callable[[Path], None]:
    return lambda f: configure(f, moe=json.loads((f / "config.json").read_text())["moe"] | values)


EXPERT = "model.layers.2.mlp.deepspeed_moe.experts.deepspeed_experts.3.fc2.weight"
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing tensor": (remove(FC1), rf"do not fit its config: 1 missing: {FC1}"),
    "missing tensors": (
        lambda f: change(
            f, lambda s: [s.pop(n) for n in list(s) if ".layers.1." in n and ".encoder" not in n]
        ),
        r"14 missing: model\.layers\.1\..* and 10 more",
    ),
    "extra tensor": (
        lambda f: change(f, lambda s: s.update({"model.layers.9.x": torch.ones(1)})),
        r"1 unexpected: model\.layers\.9\.x",
    ),
    "an expert too many": (
        lambda f: change(
            f, lambda s: s.update({EXPERT.replace("experts.3", "experts.4"): s[EXPERT].clone()})
        ),
        r"1 unexpected: model\.layers\.2\.mlp\..*deepspeed_experts\.4\.fc2\.weight",
    ),
    "misshapen tensor": (
        put(EXPERT, lambda t: t[:, :-1]),
        rf"1 misshapen: {EXPERT} is \(64, 127\), its config needs \(64, 128\)",
    ),
    "transposed tensor": (
        put(FC1, lambda t: t.T.contiguous()),
        r"is \(64, 128\), its config needs \(128, 64\)",
    ),
    "shrunk vocabulary": (
        put("lm_head.weight", lambda t: t[:-2]),
        r"lm_head\.weight is \(510, 64\), its config needs \(512, 64\)",
    ),
    "NaN": (put(EXPERT, with_value(float("nan"))), rf"not finite .*: {EXPERT}"),
    "infinity": (put(GATE, with_value(float("inf"))), rf"not finite .*: {GATE}"),
    "whole numbers": (
        put(FC1, lambda t: t.to(torch.int8)),
        r"not of 16, 32 or 64 .*: .*fc1\.weight \(torch\.int8\)",
    ),
    "pickle that runs code": (
        pickled({"model.embed_tokens.weight": Evil()}),
        r"not a file of plain tensors \(it names (posix|nt|os)\.system\); nothing of it was run",
    ),
    "pickle of a module": (pickled(nn.Linear(2, 2)), "not a file of plain tensors"),
    "pickle with other things": (
        pickled({"state": {}, "step": 3, "x": torch.ones(1)}),
        r"not a dictionary of plain tensors \(it holds Tensor, dict, int\)",
    ),
    "pickle of a list": (pickled([torch.ones(1)]), r"plain tensors \(it holds list\)"),
    "truncated pickle": (cut_pickle, r"pytorch_model\.bin: not a file of plain tensors"),
    "truncated safetensors": (lambda f: cut(WEIGHTS, f), r"model\.safetensors: damaged weights"),
    "empty safetensors": (lambda f: (f / WEIGHTS).write_bytes(b""), "damaged weights"),
    "missing shard": (lose_shard, r"model-00002-of-00002\.safetensors: missing shard"),
    "truncated shard": (cut_shard, r"model-00001-of-00002\.safetensors: damaged weights"),
    "shard without a listed tensor": (empty_shard, r"lacks .* that model\.safetensors\.index"),
    "shard of another folder": (shard_elsewhere, r"names '\.\./x\.bin', a file of another folder"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), r"no model\.safetensors and no pytorch_model"),
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json: no such file"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "not readable as JSON"),
    "config of a list": (
        lambda f: (f / "config.json").write_text("[]"),
        "not readable as JSON of an object",
    ),
    "another architecture": (
        lambda f: configure(f, model_type="moe_llava_qwen"),
        r"model_type 'moe_llava_qwen' is none of the reference code's \(llava_phi, moe_llava_phi",
    ),
    "a stock Llava": (lambda f: configure(f, model_type="llava"), "use `medmoe convert llava`"),
    "another projector": (
        lambda f: configure(f, image_projector_type="linear"),
        "image_projector_type = 'linear': Input should be 'mlp2x_gelu'; nothing else can be",
    ),
    "scaled positions": (
        lambda f: configure(f, rope_scaling={"type": "linear", "factor": 2.0}),
        "rope_scaling = .*: Input should be null",
    ),
    "class token kept": (
        lambda f: configure(f, mm_vision_select_feature="cls_patch"),
        "mm_vision_select_feature = 'cls_patch': Input should be 'patch'",
    ),
    "no vision tower named": (
        lambda f: configure(f, mm_image_tower=None),
        "mm_image_tower is missing",
    ),
    "no size": (
        lambda f: configure(f, hidden_size=None),
        "hidden_size is missing",
    ),
    "a size in words": (
        lambda f: configure(f, num_hidden_layers="4"),
        "num_hidden_layers = '4': Input should be a valid integer",
    ),
    "a setting in words": (
        lambda f: configure(f, partial_rotary_factor="0.4"),
        r"partial_rotary_factor = '0\.4': Input should be a valid number",
    ),
    "not a number": (
        lambda f: configure(f, rope_theta=float("nan")),
        "rope_theta = nan: Input should be a finite number",
    ),
    "no epsilon": (
        lambda f: configure(f, layer_norm_eps=0.0),
        r"layer_norm_eps = 0\.0: Input should be greater than or equal to 0\.0",
    ),
    "a token beyond the vocabulary": (
        lambda f: configure(f, eos_token_id=512),
        r"eos_token_id \(512\) must not exceed 511",
    ),
    "layers without end": (
        lambda f: configure(f, num_hidden_layers=10**9),
        "num_hidden_layers = 1000000000: Input should be less than or equal to 1000;",
    ),
    "a tower without end": (
        lambda f: configure(f / "clip", hidden_size=10**9),
        "hidden_size = 1000000000: Input should be less than or equal to 100000;",
    ),
    "a tower of fewer layers": (
        lambda f: (
            configure(f / "clip", num_hidden_layers=1) or configure(f, mm_vision_select_layer=-3)
        ),
        "mm_vision_select_layer -3 is no layer of an encoder with 1",
    ),
    "heads that do not divide": (
        lambda f: configure(f, num_attention_heads=3, num_key_value_heads=2),
        r"self_attn\.dense\.weight is \(64, 64\), its config needs \(64, 63\)",
    ),
    "a head unlike the embedding it is tied to": (
        lambda f: configure(f, tie_word_embeddings=True),
        r"tie_word_embeddings is true, but lm_head\.weight differs",
    ),
    "pictures without mean": (
        lambda f: (f / "clip" / "preprocessor_config.json").write_text("{}"),
        "image_mean is missing",
    ),
    "an activation that is none": (
        lambda f: configure(f, hidden_act="gelu_newer"),
        r"no model can be made from it \(KeyError",
    ),
    "dense weights under a MoE config": (
        lambda f: write_reference(f, stage=2, config=reference_config("phi", 3)),
        r"missing: .*; \d+ unexpected: model\.layers\.0\.mlp\.fc1\.bias",
    ),
    "MoE weights under a dense config": (
        lambda f: configure(f, model_type="llava_phi"),
        r"8 missing: model\.layers\.0\.mlp\.fc1\.bias.*unexpected: .*deepspeed_moe",
    ),
    "no MoE part": (
        lambda f: configure(f, moe=None),
        "moe is missing, and a stage-3 checkpoint has it",
    ),
    "unequal experts": (moe(num_experts=[4, 2]), r"num_experts \(4, 2\) must be one number"),
    "residual MoE": (moe(use_residual=True), "use_residual = True: Input should be False"),
    "layers that are none": (moe(moe_layers_idx=[0, 4]), r"\[0, 4\] must name layers 0 to 3"),
    "other layers": (moe(moe_layers_idx=[0, 1]), r"missing: model\.layers\.1\..*unexpected"),
    "k too large": (moe(top_k_experts=5), r"top_k_experts \(5\) must lie between 1 and"),
    "no k": (moe(top_k_experts=0), r"top_k_experts \(0\) must lie between 1 and"),
    "tokenizer that runs code": (
        lambda f: (f / "tokenizer_config.json").write_text(
            '{"auto_map": {"AutoTokenizer": "x.Y"}}'
        ),
        r"tokenizer runs code of its own \(auto_map\), which is refused; put the tokenizer\.json",
    ),
    "broken tokenizer": (
        lambda f: (f / "tokenizer.json").write_text("{}"),
        "its tokenizer cannot be read",
    ),
    "tower of another kind": (
        lambda f: (f / "clip" / "config.json").write_text('{"model_type": "siglip_vision_model"}'),
        "model_type 'siglip_vision_model' is no CLIP",
    ),
    "tower of another size": (
        lambda f: configure(f / "clip", image_size=64),
        r"position_embedding\.weight is \(17, 32\), its config needs \(65, 32\)",
    ),
}


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def assert_refused(folder: Path, tmp_path: Path, match: str, **keywords: Any) -> None:
    """Refused in one line of exit code 2, with nothing at a new DST and an older one untouched."""
    older = tmp_path / "older"
    older.mkdir(exist_ok=True)
    (older / MANIFEST).write_text("{}")
    before = content(older)
    for destination in (tmp_path / "new", older):
        with pytest.raises(MedMoeError, match=match) as caught:
            convert_reference(folder, destination, **keywords)
        assert caught.value.exit_code == 2
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()
    assert content(older) == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_whole_checkpoint_is_refused(
    name: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    damage, message = REFUSED[name]
    damage(source)
    assert_refused(source, tmp_path, message)
    assert not (tmp_path / "EVIL").exists()


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path / "gone", tmp_path, r"gone/config\.json: no such file")


def test_a_checkpoint_without_any_tower_says_what_to_give(tmp_path: Path) -> None:
    large = "openai/clip-vit-large-patch14-336"
    folder = without_tower(tmp_path / "bare", config={"mm_image_tower": large})
    assert_refused(folder, tmp_path, r"holds no vision tower.*--vision-tower DIR")
    configure(folder, mm_image_tower="somewhere/else")
    assert_refused(folder, tmp_path, r"'somewhere/else' is no folder.*--vision-tower DIR")
    assert_refused(folder, tmp_path, "no such folder", vision_tower=tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    assert_refused(folder, tmp_path, r"config\.json: no such file", vision_tower=tmp_path / "empty")


def test_a_tower_folder_with_missing_weights_is_refused(tmp_path: Path) -> None:
    folder = without_tower(tmp_path / "bare")
    lost = "vision_model.encoder.layers.1.mlp.fc1.weight"
    state = {name: torch.ones(s) for name, s in tower_shapes().items() if name != lost}
    write_tower(folder / "clip", state)
    assert_refused(folder, tmp_path, rf"1 missing: {TOWER}{lost}")


def bad_router(tensors: dict[str, Tensor]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        save_file(tensors, folder / "router.safetensors")
        return folder / "router.safetensors"

    return write


ROUTERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "width": (lambda f: router_file(f, width=32), r"fc1\.weight is \(4, 32\), .* needs \(4, 64\)"),
    "experts": (
        lambda f: router_file(f, experts=6),
        r"fc1\.bias is \(6,\), .* needs \(4,\), fc1\.weight is \(6, 64\), .* needs \(4, 64\)",
    ),
    "depth": (lambda f: router_file(f, depth=4), r"holds fc1\.bias.*up to fc3"),
    "names": (bad_router({"weight": torch.ones(4, 64)}), r"holds weight; a router file holds fc1"),
    "no bias": (bad_router({"fc1.weight": torch.ones(4, 64)}), r"1 missing: fc1\.bias"),
    "more": (
        bad_router(
            {"fc1.weight": torch.ones(4, 64), "fc1.bias": torch.ones(4), "x": torch.ones(1)}
        ),
        "1 unexpected: x",
    ),
    "NaN": (
        bad_router({"fc1.weight": torch.full((4, 64), torch.nan), "fc1.bias": torch.ones(4)}),
        r"not finite .*: fc1\.weight",
    ),
    "missing": (lambda f: f / "gone.pth", r"gone\.pth: no such file"),
}


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("name", ROUTERS)
def test_a_router_that_does_not_fit_is_refused(name: str, stage: int, tmp_path: Path) -> None:
    if (name, stage) == ("experts", 2):
        return  # stage 2 has no number of experts yet: the router says it
    write, message = ROUTERS[name]
    folder = write_reference(tmp_path / "source", "phi", stage)
    routers = tmp_path / "routers"
    routers.mkdir()
    assert_refused(folder, tmp_path, message, router=write(routers))


def test_a_folder_with_other_files_is_not_written_over(source: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"holds files but no MANIFEST\.json"):
        convert_reference(source, tmp_path / "thesis")
    with pytest.raises(CheckpointError, match=r"holds files but no MANIFEST\.json"):
        convert_reference(source, source)
