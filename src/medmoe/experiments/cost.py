"""What a Med-MoE costs, beside its dense twin and LLaVA-Med-7B (the paper's Tables 8 and 13).

Everything is counted on shapes, without weights; `medmoe.experiments.measure` runs a trained model.
The paper's own figures stand beside ours where it has any. Its Table 13 was copied from a paper on
another model, and its training memory is that of one of eight GPUs under ZeRO-2.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from medmoe.backbones.vision import CLIP_LARGE_336
from medmoe.config.load import check, recipe, recipe_names
from medmoe.config.schema import ModelSpec, PhaseName
from medmoe.errors import ConfigError, one_of
from medmoe.model.blueprint import dense_twin, meta_model, recipe_config
from medmoe.model.build import pair_config
from medmoe.model.checkpoint import read_config
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.cost.flops import AnswerFlops, answer_flops, kv_cache_bytes
from medmoe.model.cost.parameters import Part, activated_parameters, count_by_part, load_bytes
from medmoe.model.locate import folder_of
from medmoe.training.memory import TrainingMemory, router_memory, training_memory

Size = tuple[torch.dtype, int, int]  # of the weights; prompts at once; tokens of each
#: An answer: all of the prompt but the image, and the tokens answered. Typical of the VQA sets.
QUESTION_TOKENS, ANSWER_TOKENS = 64, 32
LORA_RANK = 128  # the smaller of the paper's Table 7
PAPER_CONTEXT = 2048  # the paper's Table 11
PAPER_GPUS = 8
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_FIGURES = (
    "activated", "load_bytes", "training_bytes", "lora_training_bytes", "seconds_per_answer"
)  # fmt: skip
#: The paper's Table 8, and the activated sizes of its Table 1; LLaVA-Med trains in "more than".
PAPER_TABLE_8: dict[str, dict[str, Any]] = {
    name: {key: value for key, value in zip(_FIGURES, row, strict=True) if value is not None}
    for name, row in {
        "phi2_2_7b": (3.6e9, 13.4e9, 23e9, 13.5e9, 3),
        "stablelm2_1_6b": (2.0e9, 10.5e9, 12.5e9, 8e9, 3),
        "LLaVA-Med-7B": (7e9, 20e9, 24e9, None, 5),
    }.items()
}


@dataclass(frozen=True, slots=True)
class SystemCost:
    """Counts of one system.

    Attributes:
        parts: Weights by part.
        total, activated: Weights in all, and those that one token passes.
        kv_cache_bytes: At the batch and context of the report.
        training: One entry per phase and rank that applies to the system.
    """

    system: str
    total: int
    activated: int
    parts: dict[Part, int]
    load_bytes: int
    kv_cache_bytes: int
    flops: AnswerFlops
    training: list[TrainingMemory]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it, with the sums beside their parts."""
        training = [
            asdict(row)
            | {"total": row.total, "checkpointed_total": row.sharded()}
            | {f"zero2_{PAPER_GPUS}_devices": row.sharded(PAPER_GPUS)}
            for row in self.training
        ]
        return asdict(self) | {
            "flops": asdict(self.flops) | {"total": self.flops.total},
            "training": training,
        }


@dataclass(frozen=True, slots=True)
class CostReport:
    """The systems side by side, the model that was asked for first."""

    model: str
    dtype: str
    top_k: int | None
    batch: int
    context: int
    systems: list[SystemCost]
    paper: dict[str, dict[str, Any]] | None
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        systems = [system.to_dict() for system in self.systems]
        return {"version": 1} | asdict(replace(self, systems=[])) | {"systems": systems}


def cost_report(
    model: str,
    *,
    top_k: int | None = None,
    dtype: str | None = None,
    batch: int = 1,
    context: int | None = None,
) -> CostReport:
    """Count a model of a recipe or a folder, its dense twin and LLaVA-Med-7B.

    Args:
        model: Name of a recipe under ``recipes/models``, or a model folder.
        top_k: Domain experts per token; the model's own by default.
        dtype: A key of `DTYPES`; by default bfloat16, of a folder the one it was saved in.
        batch: Prompts at once, or conversations per training step.
        context: Tokens of prompt and answer; by default 2,048 or the model's longest.

    Raises:
        ConfigError: There is no such model, or a value does not fit it.
        CheckpointError: The folder's config.json is missing or damaged.
    """
    config, own_dtype = _config_of(model)
    config = _with_top_k(config, top_k)
    chosen = dtype or own_dtype
    length = _context_of(config, context)
    size = (DTYPES[chosen], batch, length)
    name = Path(model).name if Path(model).is_dir() else model
    systems = [_count(name, config, size, _training(config, size))]
    if config.moe_layers:
        twin = dense_twin(config)
        systems.append(_count("dense twin", twin, size, _tuning(twin, "sft", size)))
    llava = llava_med_config(CLIP_LARGE_336.image_size)
    their_size = (*size[:2], max(length, llava.image_seq_length + QUESTION_TOKENS))
    phase2 = _tuning(llava, "phase2_instruction", their_size)
    systems.append(_count("LLaVA-Med-7B", llava, size, phase2))
    return CostReport(
        model=model,
        dtype=chosen,
        top_k=config.num_experts_per_tok if config.moe_layers else None,
        batch=batch,
        context=length,
        systems=systems,
        paper={s.system: PAPER_TABLE_8[s.system] for s in systems if s.system in PAPER_TABLE_8}
        if model in PAPER_TABLE_8
        else None,
        notes=_notes(config),
    )


def llava_med_config(image_size: int) -> MedMoeConfig:
    """Return LLaVA-Med-7B's shape: LLaMA-7B, CLIP ViT-L/14, and our two-layer projector.

    Args:
        image_size: 336 as Med-MoE reads it, or 224 as LLaVA-Med 1.0 did (with a projector of one
            layer, 17 million weights less).
    """
    vision = replace(
        CLIP_LARGE_336,
        image_size=image_size,
        config=CLIP_LARGE_336.config | {"image_size": image_size},
    )
    llama = AutoConfig.for_model("llama")  # whose defaults are LLaMA-7B's
    return pair_config(
        AutoConfig.for_model(vision.model_type, **vision.config),
        llama.to_dict(),
        vision,
        image_token_index=llama.vocab_size - 1,
    )


def _count(
    name: str, config: MedMoeConfig, size: Size, training: list[TrainingMemory]
) -> SystemCost:
    model = meta_model(config)
    parts = count_by_part(model)
    return SystemCost(
        system=name,
        total=sum(parts.values()),
        activated=activated_parameters(model),
        parts=parts,
        load_bytes=load_bytes(model, size[0]),
        kv_cache_bytes=kv_cache_bytes(config, *size),
        flops=answer_flops(config, QUESTION_TOKENS, ANSWER_TOKENS),
        training=training,
    )


def _training(config: MedMoeConfig, size: Size) -> list[TrainingMemory]:
    """Return the memory of every phase of a Med-MoE, in order."""
    dense = dense_twin(config)
    found = training_memory(dense, "phase1_alignment", *size)
    found += _tuning(dense, "phase2_instruction", size)
    if config.moe_layers:
        found.append(router_memory(config, size[0]))
        found += _tuning(config, "phase3_moe", size)
    return found


def _tuning(config: MedMoeConfig, phase: PhaseName, size: Size) -> list[TrainingMemory]:
    return training_memory(config, phase, *size, (LORA_RANK,))


def _config_of(model: str) -> tuple[MedMoeConfig, str]:
    """Return the configuration of a recipe or a folder, and the dtype it is for."""
    names = recipe_names("models")
    if model in names:
        spec = check(ModelSpec, recipe("models", model), model)
        return recipe_config(spec, _trained_vocabulary(model)), "bfloat16"
    if Path(model).is_file():
        raise ConfigError(
            f"{model} is a file; cost reads the name of a model recipe ({', '.join(names)}) or the "
            "folder of a model"
        )
    if not Path(model).is_dir() and model.count("/") != 1:  # owner/name is a hub id
        raise ConfigError(f"{one_of(model, names, 'model')} (or give the folder of a model)")
    config = read_config(folder_of(model))
    own = str(config.dtype or "float32").removeprefix("torch.")
    return config, own if own in DTYPES else "float32"


def _trained_vocabulary(model: str) -> int | None:
    """Return the largest vocabulary that an experiment's recipe lets a model's tokenizer have."""
    recipes = (recipe("experiments", name) for name in recipe_names("experiments"))
    # A recipe that starts from pretrained backbones trains no tokenizer and names no size.
    sizes = [data.get("vocab_size") for data in recipes if data.get("model") == model]
    return max((size for size in sizes if size is not None), default=None)


def _with_top_k(config: MedMoeConfig, top_k: int | None) -> MedMoeConfig:
    if top_k is None:
        return config
    if not config.moe_layers:
        raise ConfigError("--top-k chooses among domain experts, and a dense model has none")
    if top_k > config.num_experts:
        raise ConfigError(
            f"--top-k {top_k} must not exceed the number of domains ({config.num_experts})"
        )
    changed: MedMoeConfig = MedMoeConfig.from_dict(
        config.to_dict() | {"num_experts_per_tok": top_k}
    )
    return changed


def _context_of(config: MedMoeConfig, context: int | None) -> int:
    longest = config.text_config.max_position_embeddings
    length = min(PAPER_CONTEXT, longest) if context is None else context
    if not config.image_seq_length < length <= longest:
        raise ConfigError(
            f"--context {length} must lie above the {config.image_seq_length} tokens of an image "
            f"and not above the {longest} positions of the language model"
        )
    return length


def _notes(config: MedMoeConfig) -> list[str]:
    small = answer_flops(llava_med_config(224), QUESTION_TOKENS, ANSWER_TOKENS).total
    notes = [
        "LLaVA-Med-7B is counted with the encoder at 336 px; version 1.0 read 224 px: "
        f"{small / 1e12:.2f} TFLOPs per answer."
    ]
    if config.lm_head_bias:
        notes.append(
            f"The head's bias ({config.text_config.vocab_size:,} weights) is counted; "
            "the reference code drops it."
        )
    return notes


def paper_lines(report: CostReport) -> list[tuple[str, str, str]]:
    """Return what the paper says beside what is counted, in units of 10⁹: (what, paper, counted).

    Training is that of the last phase, on one of the paper's GPUs under ZeRO-2.
    """
    rows = []
    for system in report.systems:
        paper = (report.paper or {}).get(system.system, {})
        rows += [
            (f"{system.system}: {what}", f"{paper[key] / 1e9:.1f}", f"{ours / 1e9:.1f}")
            for what, (key, ours) in counted(system).items()
            if key in paper
        ]
    return rows


def counted(system: SystemCost) -> dict[str, tuple[str, int]]:
    """Return what the paper has figures of: what, its key in `PAPER_TABLE_8`, and our count."""
    last = {row.lora_rank: row.sharded(PAPER_GPUS) for row in system.training}
    return {
        "activated weights": ("activated", system.activated),
        "load": ("load_bytes", system.load_bytes),
        "training": ("training_bytes", last[None]),
        "LoRA training": ("lora_training_bytes", last[LORA_RANK]),
    }
