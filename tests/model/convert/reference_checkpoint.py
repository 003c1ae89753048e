"""Tiny random checkpoints in the reference code's layout, written without any code of ours.

Names and shapes are spelt out here as the reference's key listings have them, so that a fault in
our table of names cannot hide in a checkpoint made by that same table.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Family = Literal["phi", "stablelm"]
State = dict[str, Tensor]
FAMILIES: tuple[Family, ...] = ("phi", "stablelm")
HIDDEN, FFN, LAYERS, HEADS, VOCAB, EXPERTS, MOE_LAYERS = 64, 128, 4, 4, 512, 4, (0, 2)
WEIGHTS = "model.safetensors"
TOWER = "model.image_tower.image_tower."
CLIP: dict[str, Any] = {
    "architectures": ["CLIPVisionModel"],
    "model_type": "clip_vision_model",
    "hidden_act": "quick_gelu",
    "hidden_size": 32,
    "image_size": 32,
    "intermediate_size": 64,
    "layer_norm_eps": 1e-05,
    "num_attention_heads": 4,
    "num_channels": 3,
    "num_hidden_layers": 3,
    "patch_size": 8,
    "projection_dim": 16,
}
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def _linear(name: str, rows: int, columns: int, bias: bool) -> dict[str, tuple[int, ...]]:
    weight: dict[str, tuple[int, ...]] = {f"{name}.weight": (rows, columns)}
    return weight | ({f"{name}.bias": (rows,)} if bias else {})


def _norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def _ffn(name: str, family: Family) -> dict[str, tuple[int, ...]]:
    if family == "phi":
        return _linear(f"{name}.fc1", FFN, HIDDEN, True) | _linear(f"{name}.fc2", HIDDEN, FFN, True)
    shapes = _linear(f"{name}.gate_proj", FFN, HIDDEN, False)
    shapes |= _linear(f"{name}.up_proj", FFN, HIDDEN, False)
    return shapes | _linear(f"{name}.down_proj", HIDDEN, FFN, False)


def _layer(i: int, family: Family, moe: bool) -> dict[str, tuple[int, ...]]:
    name = f"model.layers.{i}"
    shapes: dict[str, tuple[int, ...]] = {}
    for part in ("q_proj", "k_proj", "v_proj"):
        shapes |= _linear(f"{name}.self_attn.{part}", HIDDEN, HIDDEN, True)
    if family == "phi":
        shapes |= _linear(f"{name}.self_attn.dense", HIDDEN, HIDDEN, True)
    else:
        shapes |= _linear(f"{name}.self_attn.o_proj", HIDDEN, HIDDEN, False)
        shapes |= _norm(f"{name}.post_attention_layernorm", HIDDEN)
    shapes |= _norm(f"{name}.input_layernorm", HIDDEN)
    if not moe:
        return shapes | _ffn(f"{name}.mlp", family)
    shapes |= _linear(f"{name}.mlp.deepspeed_moe.gate.wg", EXPERTS, HIDDEN, True)
    for e in range(EXPERTS):
        shapes |= _ffn(f"{name}.mlp.deepspeed_moe.experts.deepspeed_experts.{e}", family)
    return shapes | _ffn(f"{name}.mlp.meta_moe", family)


def tower_shapes() -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the tiny CLIP, as its own folder has them."""
    width, inner = CLIP["hidden_size"], CLIP["intermediate_size"]
    root = "vision_model"
    shapes: dict[str, tuple[int, ...]] = {
        f"{root}.embeddings.class_embedding": (width,),
        f"{root}.embeddings.patch_embedding.weight": (width, 3, 8, 8),
        f"{root}.embeddings.position_embedding.weight": (17, width),
    }
    shapes |= _norm(f"{root}.pre_layrnorm", width) | _norm(f"{root}.post_layernorm", width)
    for i in range(CLIP["num_hidden_layers"]):
        name = f"{root}.encoder.layers.{i}"
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes |= _linear(f"{name}.self_attn.{part}", width, width, True)
        shapes |= _linear(f"{name}.mlp.fc1", inner, width, True)
        shapes |= _linear(f"{name}.mlp.fc2", width, inner, True)
        shapes |= _norm(f"{name}.layer_norm1", width) | _norm(f"{name}.layer_norm2", width)
    return shapes


def reference_shapes(family: Family, stage: int) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a whole checkpoint, vision tower included."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for i in range(LAYERS):
        shapes |= _layer(i, family, stage == 3 and i in MOE_LAYERS)
    shapes |= _norm("model.final_layernorm" if family == "phi" else "model.norm", HIDDEN)
    shapes |= {TOWER + name: shape for name, shape in tower_shapes().items()}
    shapes |= _linear("model.mm_projector.image_spatial_proj.0", HIDDEN, CLIP["hidden_size"], True)
    shapes |= _linear("model.mm_projector.image_spatial_proj.2", HIDDEN, HIDDEN, True)
    return shapes | {"lm_head.weight": (VOCAB, HIDDEN)}


def reference_state(family: Family, stage: int, seed: int = 0) -> State:
    """Return random tensors, norms and biases too, large enough that every part shows."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in reference_shapes(family, stage).items():
        scale = 1 / shape[-1] ** 0.5 if len(shape) > 1 else 0.2
        scale = (
            1.0 if "embed_tokens" in name else scale
        )  # or every answer is one token over and over
        noise = torch.randn(shape, generator=generator) * scale
        state[name] = 1 + noise if "norm" in name and name.endswith("weight") else noise
    return state


def reference_config(family: Family, stage: int, top_k: int = 1) -> dict[str, Any]:
    """Return a ``config.json`` with the fields that the reference writes."""
    config: dict[str, Any] = {
        "architectures": ["any"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "image_aspect_ratio": "pad",
        "image_projector_type": "mlp2x_gelu",
        "initializer_range": 0.02,
        "max_position_embeddings": 256,
        "mm_hidden_size": CLIP["hidden_size"],
        "mm_image_tower": "./clip",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_video_tower": None,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "model_type": f"{'moe_' if stage == 3 else ''}llava_{family}",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": HEADS,
        "rope_theta": 10000.0 if family == "phi" else 10000,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.37.0",
        "vocab_size": VOCAB,
    }
    if family == "phi":
        config |= {"hidden_act": "gelu_new", "layer_norm_eps": 1e-05, "partial_rotary_factor": 0.4}
        config |= {"attention_dropout": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
        config |= {"qk_layernorm": False, "rope_scaling": None}
    else:
        config |= {"hidden_act": "silu", "norm_eps": 1e-05, "rope_pct": 0.25, "use_qkv_bias": True}
    if stage == 3:
        config["moe"] = {
            "moe_enable": True,
            "moe_mode": "sparse",
            "moe_layers_idx": list(MOE_LAYERS),
            "num_experts": [EXPERTS] * len(MOE_LAYERS),
            "top_k_experts": top_k,
            "ep_size": 1,
            "use_residual": False,
            "router_aux_loss_coef": 0.0,
        }
    return config


def write_reference(
    folder: Path,
    family: Family = "phi",
    stage: int = 3,
    *,
    state: State | None = None,
    config: dict[str, Any] | None = None,
    top_k: int = 1,
) -> Path:
    """Write a checkpoint with its vision tower beside it; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    state = reference_state(family, stage) if state is None else state
    made = reference_config(family, stage, top_k) | (config or {})
    (folder / "config.json").write_text(json.dumps(made))
    save_file({k: t.contiguous() for k, t in state.items()}, folder / "model.safetensors")
    tower = {k.removeprefix(TOWER): t for k, t in state.items() if k.startswith(TOWER)}
    write_tower(folder / "clip", tower or {k: torch.ones(s) for k, s in tower_shapes().items()})
    return folder


def write_tower(folder: Path, state: State) -> Path:
    """Write a CLIP vision tower's folder."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CLIP))
    pictures = {"image_mean": MEAN, "image_std": STD, "crop_size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    save_file({k: t.contiguous() for k, t in state.items()}, folder / "model.safetensors")
    return folder


def change(folder: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    """Rewrite a checkpoint's weights."""
    state = load_file(folder / WEIGHTS)
    edit(state)
    save_file(state, folder / WEIGHTS)


def configure(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def shard(folder: Path, kind: str = "safetensors") -> list[Path]:
    """Split a checkpoint into two shards with an index; return the shards."""
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    whole = WEIGHTS if kind == "safetensors" else "pytorch_model.bin"
    stem, _, suffix = whole.partition(".")
    weight_map, paths = {}, []
    for number, names in enumerate((sorted(state)[::2], sorted(state)[1::2]), start=1):
        path = folder / f"{stem}-{number:05d}-of-00002.{suffix}"
        part = {name: state[name] for name in names}
        save_file(part, path) if kind == "safetensors" else torch.save(part, path)
        weight_map |= dict.fromkeys(names, path.name)
        paths.append(path)
    (folder / f"{whole}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return paths


def without_tower(folder: Path, **keywords: Any) -> Path:
    state = {n: t for n, t in reference_state("phi", 3).items() if not n.startswith(TOWER)}
    return write_reference(folder, state=state, **keywords)


def own_tower(folder: Path, scale: float = 1.0) -> Path:
    state = reference_state("phi", 3)
    tower = {n.removeprefix(TOWER): t * scale for n, t in state.items() if n.startswith(TOWER)}
    return write_tower(folder, tower)


def router_file(folder: Path, width: int = 64, depth: int = 1, experts: int = 4) -> Path:
    generator = torch.Generator().manual_seed(3)
    state = {}
    for i in range(1, depth + 1):
        rows = experts if i == depth else width
        state[f"fc{i}.weight"] = torch.randn(rows, width, generator=generator)
        state[f"fc{i}.bias"] = torch.randn(rows, generator=generator)
    path = folder / f"router{width}-{depth}-{experts}.pth"
    torch.save(state, path)
    return path
