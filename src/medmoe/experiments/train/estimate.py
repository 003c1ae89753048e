"""`medmoe train --plan`: phases, weights, steps, memory and time, without training anything.

Weights are counted on the meta device, so real sizes cost no memory. Memory and time are estimates
by the formulas in `memory_bytes` and `step_flops`; the plan says what they leave out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from medmoe.backbones.registry import language_backbone, vision_backbone
from medmoe.config.schema import PhaseName
from medmoe.config.train_schema import TrainPhaseSpec, TrainSpec
from medmoe.errors import ConfigError, DataError
from medmoe.experiments.stages import config_of_moe
from medmoe.experiments.train.data import TASKS, TrainData, read_data, steps_of
from medmoe.experiments.train.recipe import Recipe
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.cost import activated_parameters
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.training.lora import attach_lora
from medmoe.training.phases.phase2_router import RouterTraining, choose_labelled
from medmoe.training.phases.router_states import TOKENS_KEPT
from medmoe.training.trainable import TRAINABLE, set_trainable

#: Tokens that one question with its answer is taken to have.
_QUESTION_TOKENS = 32
#: Share of the measured matrix-product speed that training is taken to reach.
_UTILISATION = 0.4
#: Bytes of activations per token, layer and hidden unit in bfloat16: attention and norms, one FFN.
_ATTENTION_BYTES, _FFN_BYTES = 15, 19


@dataclass(frozen=True, slots=True)
class Shape:
    """What the estimates of one phase rest on.

    Attributes:
        total, trainable, activated: Numbers of weights; a token passes the activated ones.
        tokens: Of one sample, image tokens included.
        layers, hidden, vocabulary: Of the language model.
        ffns: FFNs that a token passes in a layer, on average.
    """

    total: int
    trainable: int
    activated: int
    tokens: int
    layers: int
    hidden: int
    vocabulary: int
    ffns: float


def estimate(recipe: Recipe, phases: Sequence[str], root: Path | None, seed: int) -> dict[str, Any]:
    """Return the plan as one JSON object: ``phases`` by name, and ``notes`` on the estimates.

    Args:
        phases: Those to plan; all of the recipe where empty.
        root: Folder of the data, None where there is none: then steps follow from the recipe's
            ``samples``.

    Raises:
        ConfigError: A phase is not of the recipe.
    """
    spec = recipe.spec
    unknown = [name for name in phases if name not in spec.phases]
    if unknown:
        raise ConfigError(
            f"{unknown[0]!r} is no phase of {recipe.name}; its phases: {', '.join(spec.phases)}"
        )
    chosen = [phase for phase in spec.phases if not phases or phase in phases]
    notes = []
    data: TrainData | None = None
    try:
        data = read_data(spec, chosen, root, seed, clean=False)
    except DataError as error:
        notes.append(f"steps follow from the recipe's samples, since {error}")
    speed = matmul_speed(spec.run.precision)
    rows = {}
    for phase in chosen:
        shape = phase_shape(spec, phase)
        values = spec.phases[phase]
        samples = _samples(spec, phase, data, seed)
        steps = steps_of(values, samples or 0) if samples or values.steps else None
        flops = step_flops(shape, values.batch_size)
        rows[phase] = {
            "trains": list(TRAINABLE[phase][values.trains]),
            "trainable": shape.trainable,
            "frozen": shape.total - shape.trainable,
            "samples": samples,
            "steps": steps,
            "memory_gib": round(memory_bytes(shape, values, spec) / 2**30, 2),
            "seconds": None if steps is None else round(steps * flops / speed, 1),
        }
    return {"description": spec.description, "phases": rows, "notes": [*notes, *_notes(speed)]}


def memory_bytes(shape: Shape, values: TrainPhaseSpec, spec: TrainSpec) -> float:
    """Return the memory of a step: weights, gradients, AdamW's two moments, activations, logits.

    4 bytes a weight and 12 more a trained one (weights stay in float32); activations of one part of
    the batch: tokens x layers x hidden x (15 + 19 x FFNs a token passes) bytes in bfloat16, twice
    that in float32, 2 bytes with gradient checkpointing and one layer besides; logits and their
    gradient in float32 on one question's tokens in eight.
    """
    part = max(1, values.batch_size // spec.run.gradient_accumulation)
    size = 2 if spec.run.precision == "float32" else 1
    unit = part * shape.tokens * shape.hidden * size
    per_layer = unit * (_ATTENTION_BYTES + _FFN_BYTES * shape.ffns)
    activations = per_layer * shape.layers
    if spec.run.gradient_checkpointing:
        activations = per_layer + 2 * unit * shape.layers
    logits = 8 * part * shape.tokens / 8 * shape.vocabulary
    return 4 * shape.total + 12 * shape.trainable + activations + logits


def step_flops(shape: Shape, batch_size: int) -> float:
    """Return the operations of a step.

    2 a weight and token forward, 2 backward to reach what trains, 2 more for trained weights.
    """
    trained = min(shape.trainable, shape.activated)
    return float(batch_size * shape.tokens * (4 * shape.activated + 2 * trained))


def matmul_speed(precision: str) -> float:
    """Return the operations per second that training is taken to reach on this machine."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # CPUs without bfloat16 units would measure their emulation of it.
    dtype = torch.bfloat16 if precision == "bf16" and device == "cuda" else torch.float32
    side = 8192 if device == "cuda" else 768
    a = torch.randn(side, side, device=device, dtype=dtype)
    a @ a
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        b = a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    del b
    return _UTILISATION * 2 * side**3 / best


def phase_shape(spec: TrainSpec, phase: PhaseName) -> Shape:
    """Return the sizes of what a phase trains, counted on the meta device."""
    vision = vision_backbone(spec.model.vision_encoder)
    with torch.device("meta"):
        model = _meta_model(spec, phase)
    counts = set_trainable(model, phase, spec.phases[phase].trains)
    text = _text_config(spec)
    image = (vision.image_size // vision.patch_size) ** 2
    tokens = min(spec.max_length, image + spec.phases[phase].max_questions * _QUESTION_TOKENS)
    total = counts.trainable + counts.frozen
    activated, ffns = total, 1.0
    if phase == "phase3_moe" and isinstance(model, MedMoeForConditionalGeneration):
        activated = activated_parameters(model)
        extra = spec.model.num_experts_per_tok - (not spec.model.meta_expert)
        ffns += extra * len(spec.model.moe_layers) / text.num_hidden_layers
    if phase == "phase2_router":
        layers = len(spec.model.moe_layers)
        return Shape(total, total, total, layers * TOKENS_KEPT, 1, text.hidden_size, 0, 0.0)
    if phase == "phase0_encoder":
        config = vision.config
        layers, hidden = config["num_hidden_layers"], config["hidden_size"]
        return Shape(total, total, total, image + 1, layers, hidden, 0, 1.0)
    if phase == "phase0_language":
        tokens = 2 * _QUESTION_TOKENS
    frozen_vision = sum(p.numel() for n, p in model.named_parameters() if "vision_tower." in n)
    return Shape(
        total,
        counts.trainable,
        activated - frozen_vision,  # encoded once, not in every step
        tokens,
        text.num_hidden_layers,
        text.hidden_size,
        text.vocab_size,
        ffns,
    )


def _meta_model(spec: TrainSpec, phase: PhaseName) -> nn.Module:
    vision = vision_backbone(spec.model.vision_encoder)
    vision_config = AutoConfig.for_model(vision.model_type, **vision.config)
    text = _text_config(spec)
    if phase == "phase0_encoder":
        encoder: nn.Module = AutoModel.from_config(vision_config)
        return encoder
    if phase == "phase0_language":
        words: nn.Module = AutoModelForCausalLM.from_config(text)
        return words
    config = MedMoeConfig(
        vision_config=vision_config.to_dict(),
        text_config=text.to_dict(),
        image_token_index=text.vocab_size - 1,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=vision.select_layer,
        vision_feature_select_strategy=vision.select_strategy,
        tie_word_embeddings=text.tie_word_embeddings,
        lm_head_bias=language_backbone(spec.model.language_model).lm_head_bias,
    )
    if phase == "phase2_router":
        assert spec.router is not None
        moe = config_of_moe(config, spec.model)
        return RouterTraining(moe, spec.router.loss, spec.router.per_layer)
    if phase != "phase3_moe":
        return MedMoeForConditionalGeneration(config)
    model = MedMoeForConditionalGeneration(config_of_moe(config, spec.model))
    lora = spec.phases[phase].lora
    if lora is not None:
        attach_lora(model, lora, seed=0)
    return model


def _text_config(spec: TrainSpec) -> Any:
    backbone = language_backbone(spec.model.language_model)
    values = dict(backbone.config)
    if "vocab_size" not in values:
        values["vocab_size"] = spec.vocab_size
    return AutoConfig.for_model(backbone.model_type, **values)


def _samples(spec: TrainSpec, phase: PhaseName, data: TrainData | None, seed: int) -> int | None:
    """Return the samples of one epoch: counted where the data is there, else the paper's."""
    values, router = spec.phases[phase], spec.router
    if phase == "phase2_router" and router is not None:
        if data is None:
            return router.labels
        images = [record.image for record in data.records(phase)]
        unique = list({image.id: image for image in images}.values())
        return len(choose_labelled(unique, spec.model.domains, router.labels, seed))
    if data is None or not any(r.task in TASKS[phase] for r in data.records(phase)):
        return values.samples
    return data.samples(phase)


def _notes(speed: float) -> list[str]:
    return [
        f"time: {_UTILISATION:.0%} of the matrix-product speed measured here "
        f"({speed / _UTILISATION / 1e9:,.0f} GFLOP/s), {_QUESTION_TOKENS} tokens a question, every "
        "sample as full as max_questions allows; encoding the images is not counted",
        "memory: of one process that holds all of it; kept features of the images and the loader's "
        "batches are not counted",
    ]
