"""`medmoe convert reference`: a checkpoint of the paper's reference code becomes a model of ours.

Stage 3 (MoE) and stage 2 (dense), Phi and StableLM. Every tensor is accounted for: what is missing,
left over or misshapen is refused, but for what the reference is known to do: it drops phi-2's
``lm_head.bias`` (filled with zeros) and may write buffers that are no weights (dropped, listed).
Its top-2 draws noise at evaluation; the converted model makes the noiseless choice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medmoe.errors import CheckpointError, ConfigError
from medmoe.model.build import build_processor, pair_config
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.convert.conversion import (
    NO_PROCESSOR,
    Conversion,
    Converted,
    config_of,
    empty_model,
    written,
)
from medmoe.model.convert.reference_config import ReferenceConfig, parse_config
from medmoe.model.convert.reference_keys import Shape, assembled, is_by_product, reference_names
from medmoe.model.convert.source import check_tensors, read_tensors, read_weights, shown
from medmoe.model.convert.tokens import read_tokenizer
from medmoe.model.convert.tower import Tower, find_tower
from medmoe.model.locate import read_json
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.model.processing_medmoe import MedMoeProcessor
from medmoe.model.upcycle import upcycle

_HEAD, _HEAD_BIAS, _EMBEDDING = "lm_head.weight", "lm_head.bias", "model.embed_tokens.weight"
_ROUTER, _OUR_ROUTER = ".mlp.deepspeed_moe.gate.", ".mlp.gate."
MAX_DEPTH = 3


@dataclass(frozen=True, slots=True)
class RouterFile:
    """A checked router file: its state dict as `upcycle` takes it, its path, E and its depth."""

    path: Path
    state: dict[str, Tensor]
    experts: int
    depth: int


def load_reference(
    source: Path,
    *,
    vision_tower: Path | None = None,
    router: Path | None = None,
    top_k: int | None = None,
) -> Converted:
    """Return a reference checkpoint as a model of ours, in memory and in evaluation mode.

    The model keeps the dtype of the checkpoint's language model; its routers are float32.

    Args:
        source: Folder with ``config.json`` and the weights.
        vision_tower: Folder of the vision tower, where the checkpoint does not hold it.
        router: Router file (``fc1.weight`` (E, D), ``fc1.bias`` (E), …) for every MoE layer. With a
            stage-2 checkpoint it makes the model that stage 3 starts from.
        top_k: k of the top-k routing in place of the checkpoint's.

    Raises:
        CheckpointError: The source is not a whole reference checkpoint, or the router does not
            fit it.
        ConfigError: ``top_k`` does not fit.
    """
    config = parse_config(read_json(source / "config.json"), source / "config.json")
    file = None if router is None else read_router(router, config)
    k = _checked_top_k(config, file, top_k)
    weights = read_weights(source)
    tower = find_tower(source, config, weights.tensors, vision_tower)
    tokenizer = read_tokenizer(source, config.vocab_size)
    processor = None
    if tokenizer is not None:
        processor = build_processor(tokenizer, tower.vision, config.backbone.chat_template)
    with config_of(source):
        depth = 1 if file is None else file.depth
        model = empty_model(model_config(config, tower, processor, k, depth))
    tensors, filled, dropped = _settled(weights.tensors, model.config, tower, file)
    notes = _load(model, tensors, file, source)
    if config.moe is None and file is not None:
        model = _start_of_stage_3(model, file, k)
        notes.append(_STARTED)
    layers = tuple(model.config.moe_layers or ())
    moe: dict[str, Any] = {
        "moe_layers": layers,
        "domains": tuple(model.config.domains or ()),
        "num_experts_per_tok": k,
        "router": f"from {file.path}, the same in every MoE layer" if file else _OWN_ROUTER,
    }
    account = Conversion(
        source=str(source),
        kind=f"reference {config.model_type}",
        files=weights.files,
        tensors=len(weights.tensors),
        vision_tower=tower.origin,
        processor=NO_PROCESSOR if processor is None else "with the tokenizer of the folder",
        filled=filled,
        dropped=dropped,
        notes=(*notes, *([_UNKNOWN_DOMAINS] if layers else [])),
        **(moe if layers else {}),
    )
    return Converted(model.eval(), processor, account)


def convert_reference(source: Path, destination: Path, **options: Any) -> Conversion:
    """Write what `load_reference` makes of a source, with its options, as a model directory."""
    return written(destination, lambda: load_reference(source, **options))


_UNKNOWN_DOMAINS = (
    "which modality each domain expert stands for is not recorded by the reference: they are named "
    "expert_0, expert_1, ... in the order of the router's rows"
)
_OWN_ROUTER = "from the checkpoint"
_STARTED = (
    "stage 2 with a router: made into the model that stage 3 starts from, every second layer with "
    "all of its experts and the meta expert copies of the FFN (the paper)"
)


def read_router(path: Path, config: ReferenceConfig) -> RouterFile:
    """Return a router file that fits a checkpoint.

    Args:
        path: ``.safetensors``, or a pickle of plain tensors (``.pth``).
        config: Gives D, and for stage 3 also E.

    Raises:
        CheckpointError: The file holds another set of tensors, another width, or non-finite values.
    """
    state = {name: tensor.float() for name, tensor in read_tensors(path).items()}
    depth = sum(re.fullmatch(r"fc\d+\.weight", name) is not None for name in state)
    last = state.get(f"fc{depth}.weight")
    if not 1 <= depth <= MAX_DEPTH or last is None or last.dim() == 0:
        raise CheckpointError(
            f"{path}: holds {shown(sorted(state)) or 'nothing'}; a router file holds fc1.weight "
            f"and fc1.bias, up to fc{MAX_DEPTH}"
        )
    width = config.hidden_size
    experts = config.num_experts or last.shape[0]
    wanted: dict[str, Shape] = {}
    for i in range(1, depth + 1):
        rows = experts if i == depth else width
        wanted |= {f"fc{i}.weight": (rows, width), f"fc{i}.bias": (rows,)}
    check_tensors(path, state, wanted, "the checkpoint's config")
    return RouterFile(path, state, experts, depth)


def _checked_top_k(config: ReferenceConfig, file: RouterFile | None, top_k: int | None) -> int:
    """Return k of the model to make (1 for a dense one, where it means nothing)."""
    experts = config.num_experts or (file.experts if file else 0)
    if top_k is None:
        top_k = config.moe.top_k_experts if config.moe else 1
    elif not experts:
        raise ConfigError(
            f"--top-k {top_k}: a stage-2 checkpoint has no experts to choose from; leave it out"
        )
    if experts and not 1 <= top_k <= experts:
        raise ConfigError(
            f"top-k ({top_k}) must lie between 1 and the number of experts ({experts}); "
            "use --top-k 1"
        )
    return top_k


def model_config(
    config: ReferenceConfig,
    tower: Tower,
    processor: MedMoeProcessor | None,
    top_k: int,
    router_layers: int = 1,
) -> MedMoeConfig:
    """Return our configuration of a reference checkpoint.

    Args:
        processor: Gives the image token's id; without one it is the first id beyond the
            vocabulary, so that no row of the vocabulary is taken.
    """
    text = config.text
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    if processor is not None:
        text |= {key: getattr(processor.tokenizer, key) for key in ids}
    moe: dict[str, Any] = {}
    if config.moe is not None:
        moe = {
            "moe_layers": list(config.moe.moe_layers_idx),
            "domains": _expert_names(config.num_experts),
            "num_experts_per_tok": top_k,
            "router_layers": router_layers,
        }
    return pair_config(
        tower.config,
        text,
        tower.vision,
        image_token_index=text["vocab_size"] if processor is None else processor.image_token_id,
        lm_head_bias=config.backbone.lm_head_bias,
        **{key: text[key] for key in ids},
        **moe,
    )


def wanted_shapes(model: MedMoeForConditionalGeneration) -> dict[str, Shape]:
    """Return what a reference checkpoint of a model must hold: its names and shapes."""
    return {
        key: shape
        for name, tensor in model.state_dict().items()
        for key, shape in reference_names(name, tuple(tensor.shape))
    }


def _settled(
    tensors: Mapping[str, Tensor], config: MedMoeConfig, tower: Tower, file: RouterFile | None
) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[str, ...]]:
    """Return the tensors to load, and what was filled in and dropped on the way."""
    kept = {name: tensor for name, tensor in tensors.items() if not is_by_product(name)}
    dropped = [f"{name} (computed, no weight)" for name in sorted(tensors.keys() - kept.keys())]
    dropped += tower.dropped
    kept |= tower.weights or {}
    filled = []
    if config.lm_head_bias and _HEAD_BIAS not in kept and _HEAD in kept:
        kept[_HEAD_BIAS] = torch.zeros(kept[_HEAD].shape[:1], dtype=kept[_HEAD].dtype)
        filled.append(f"{_HEAD_BIAS} (zeros: the reference drops phi-2's)")
    if config.tie_word_embeddings and _EMBEDDING in kept:
        table = kept[_EMBEDDING]
        if _HEAD in kept and not torch.equal(kept[_HEAD], table):
            raise CheckpointError(
                f"tie_word_embeddings is true, but {_HEAD} differs from {_EMBEDDING}; set it to "
                "false in the checkpoint's config.json to keep both"
            )
        kept[_HEAD] = table
    if file is not None and config.moe_layers:
        replaced = sorted(name for name in kept if _ROUTER in name)
        dropped += [f"{name} (replaced by {file.path})" for name in replaced]
        kept = {name: tensor for name, tensor in kept.items() if name not in replaced}
    return kept, tuple(filled), tuple(dropped)


def _load(
    model: MedMoeForConditionalGeneration,
    tensors: Mapping[str, Tensor],
    file: RouterFile | None,
    source: Path,
) -> list[str]:
    """Put checked tensors into an empty model, in one dtype; return what is to be noted."""
    shapes = wanted_shapes(model)
    if file is not None:
        shapes = {name: shape for name, shape in shapes.items() if _ROUTER not in name}
        shapes = {name: shape for name, shape in shapes.items() if _OUR_ROUTER not in name}
    check_tensors(source, tensors, shapes, "its config")
    dtype = tensors[_EMBEDDING].dtype
    state: dict[str, Tensor] = {}
    for name, like in model.state_dict().items():
        _, is_router, part = name.rpartition(_OUR_ROUTER)
        if is_router and file is not None:
            state[name] = file.state[part].clone()
        else:  # the router decides in float32 whatever the model's dtype
            state[name] = assembled(name, like, tensors).to(torch.float32 if is_router else dtype)
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()
    other = sorted({str(tensor.dtype) for tensor in tensors.values()} - {str(dtype)})
    return [f"{', '.join(other)} tensors were cast to {dtype}"] if other else []


def _start_of_stage_3(
    dense: MedMoeForConditionalGeneration, file: RouterFile, top_k: int
) -> MedMoeForConditionalGeneration:
    return upcycle(
        dense,
        moe_layers=range(0, dense.config.text_config.num_hidden_layers, 2),
        domains=_expert_names(file.experts),
        num_experts_per_tok=top_k,
        router=file.state,
        router_layers=file.depth,
    )


def _expert_names(count: int) -> list[str]:
    """Return names for domain experts whose modality nobody recorded."""
    return [f"expert_{i}" for i in range(count)]
