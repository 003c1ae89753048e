"""What a training run takes: `medmoe train --plan`, and how far it is while it runs.

A plan has phases, weights, steps, memory and time, without training anything. Weights are counted
on the meta device, so real sizes cost no memory. Memory is that of
`medmoe.training.memory`, which `medmoe cost` shows too; time is an estimate by `_flops`. The
plan says what they leave out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from medmoe.config.phases import PHASE_TABLE
from medmoe.config.schema import PhaseName
from medmoe.config.train_schema import TrainSpec
from medmoe.data.bad_rows import BadRows, Policy
from medmoe.data.schema import images_of
from medmoe.errors import ConfigError, DataError
from medmoe.experiments.data import TrainData, read_data, steps_of
from medmoe.experiments.plan import phases_of
from medmoe.experiments.recipe import Recipe
from medmoe.model.blueprint import config_of_moe, dense_twin, recipe_config
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.model.pretrained import check_sources, vision_of
from medmoe.training.lora import attach_lora
from medmoe.training.memory import (
    TrainingMemory,
    backbone_memory,
    router_memory,
    training_memory,
)
from medmoe.training.phases.phase2_router import TOKENS_KEPT, RouterTraining, choose_labelled
from medmoe.training.trainable import set_trainable

#: Tokens that one question with its answer is taken to have, a caption, and a conversation.
_QUESTION_TOKENS, _CAPTION_TOKENS, _CONVERSATION_TOKENS = 32, 96, 256
#: Share of a question's tokens that are its answer. Captions are answers, instructions may be.
_ANSWER_SHARE = 0.25
#: Share of the measured or published matrix-product speed that training is taken to reach.
_UTILISATION = 0.4
#: What `--hardware` names -> memory in bytes, dense bfloat16 operations per second (published).
#: A card of 24 GB is taken to be an RTX 3090, as fast as the slowest of those the paper can mean.
GPUS = {
    "24GB": (24e9, 71e12),
    "A100": (80e9, 312e12),
    "H100": (80e9, 989e12),
    "H200": (141e9, 989e12),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """What the estimates of one phase rest on.

    Attributes:
        total, trainable: Numbers of weights.
        flops: Operations of a step.
    """

    total: int
    trainable: int
    flops: float


def estimate(
    recipe: Recipe,
    phases: Sequence[str],
    root: Path | None,
    seed: int,
    *,
    allow_outside: bool = False,
    on_bad_row: Policy = "fail",
    hardware: str | None = None,
) -> dict[str, Any]:
    """Return the plan as one JSON object: ``phases`` by name, and ``notes`` on the estimates.

    Args:
        phases: Those to plan; all of the recipe where empty.
        root: Folder of the data, None where there is none: then steps follow from the recipe's
            ``samples``.
        allow_outside: Let a table name pictures outside its folder.
        on_bad_row: Whether rows that cannot be used are left out.
        hardware: Count and GPU to plan for, e.g. ``8x24GB``; this machine where None.

    Raises:
        ConfigError: There is no such phase or hardware, or the folder of a backbone cannot serve.
    """
    spec, chosen = recipe.spec, phases_of(recipe, phases)
    devices, room, speed = _machine(hardware, spec.run.precision)
    given = [p for p in spec.pretrained() if getattr(spec.model, f"{p}_source") is not None]
    notes = check_sources(spec.model, given)
    data: TrainData | None = None
    try:
        bad = BadRows(on_bad_row)
        data = read_data(
            spec, chosen, root, seed, clean=False, allow_outside=allow_outside, bad=bad
        )
    except DataError as error:
        notes.append(f"steps follow from the recipe's samples, since {error}")
    rows = {}
    for phase in chosen:
        rows[phase] = _row(spec, phase, data, seed, devices, speed)
        if rows[phase]["memory_gib"] > room / 2**30:
            fix = "shard it (run.sharding), or compute less at once (run.gradient_accumulation)"
            notes.append(f"{phase} does not fit into {room / 2**30:.0f} GiB: {fix}")
    notes += _notes(speed, hardware)
    return {"description": spec.description, "phases": rows, "notes": notes}


def _row(
    spec: TrainSpec,
    phase: PhaseName,
    data: TrainData | None,
    seed: int,
    devices: int,
    speed: float,
) -> dict[str, Any]:
    shape, values = phase_shape(spec, phase, data), spec.phases[phase]
    samples = samples_of(spec, phase, data, seed)
    labelled = samples or 0
    if phase == "phase2_router" and data is not None:
        labelled += len(data.router_test())
    steps = steps_of(values, samples or 0) if samples or values.steps else None
    features = _kept_features(spec, phase, data)
    # A checkpoint has what trains and AdamW's two moments in float32.
    saved = 12 * spec.run.keep * shape.trainable
    saved += shape.total * (2 if spec.run.save_dtype == "bf16" else 4)
    return {
        "trains": list(PHASE_TABLE[phase].trains[values.trains]),
        "trainable": shape.trainable,
        "frozen": shape.total - shape.trainable,
        "samples": samples,
        "steps": steps,
        "features_gib": round(features / 2**30, 4),
        "disk_gib": round((features + saved) / 2**30, 4),
        "memory_gib": round(memory_bytes(spec, phase, labelled, devices) / 2**30, 2),
        "pflop": None if steps is None else round(steps * shape.flops / 1e15, 3),
        "seconds": None if steps is None else round(steps * shape.flops / speed, 1),
    }


def _machine(hardware: str | None, precision: str) -> tuple[int, float, float]:
    """Return devices, the bytes of each, and the operations per second they are taken to reach."""
    if hardware is None:
        return 1, math.inf, matmul_speed(precision)
    count, _, name = hardware.partition("x")
    if not count.isdecimal() or int(count) == 0 or name not in GPUS:
        raise ConfigError(
            f"--hardware {hardware!r} must read COUNTxGPU, e.g. 8x24GB; GPU: {', '.join(GPUS)}"
        )
    room, peak = GPUS[name]
    return int(count), room, _UTILISATION * int(count) * peak


def _kept_features(spec: TrainSpec, phase: PhaseName, data: TrainData | None) -> int:
    """Return the bytes that the kept features of a phase's pictures take on the disk."""
    values = spec.phases[phase]
    if data is None or not values.keep_features or PHASE_TABLE[phase].backbone or spec.model.blind:
        return 0
    vision = vision_of(spec.model)
    numbers = (vision.image_size // vision.patch_size) ** 2 * int(vision.config["hidden_size"])
    return 4 * numbers * values.views * len(data.images(phase))


def memory_bytes(spec: TrainSpec, phase: PhaseName, labelled: int = 0, devices: int = 1) -> int:
    """Return the memory of a step on each device: weights, gradients, two moments, activations.

    Args:
        labelled: Images of ``phase2_router``, taught and tested, whose hidden states are all held.
    """
    row = step_memory(spec, phase, devices)
    # As `training/trainer.py` has it: an encoder with its heads is not checkpointed.
    checkpointing = spec.run.gradient_checkpointing and not PHASE_TABLE[phase].whole_batch
    shares = 1 if spec.run.sharding == "none" else devices
    held = row.weights // (1 if spec.run.sharding == "zero2" else shares)
    held += (row.gradients + row.optimizer) // shares
    held += row.checkpointed if checkpointing else row.activations
    if phase == "phase2_router":
        width = _config(spec, phase).text_config.hidden_size
        held += 4 * labelled * len(spec.model.moe_layers) * TOKENS_KEPT * width
    return held


def step_memory(spec: TrainSpec, phase: PhaseName, devices: int = 1) -> TrainingMemory:
    """Return the memory of the part of a phase's batch that a device computes at once.

    Of a batch of questions as if no two were about one image, which takes most.
    """
    values, autocast = spec.phases[phase], spec.run.precision == "bf16"
    batch = max(1, values.batch_size // (spec.run.gradient_accumulation * devices))
    if PHASE_TABLE[phase].backbone:
        build, inputs = _backbone(spec, phase, batch)
        return backbone_memory(phase, build, inputs, autocast)
    config = _config(spec, phase)
    if phase == "phase2_router":
        assert spec.router is not None
        return router_memory(config, torch.float32, per_layer=spec.router.per_layer)
    context = _tokens(spec, phase)
    answers = math.ceil((context - config.image_seq_length) * _answer_share(spec, phase))
    rows = training_memory(
        config,
        phase,
        torch.float32,
        batch,
        context,
        (values.lora.rank,) if values.lora else (),
        trains="paper" if values.lora else values.trains,
        answers=batch * answers if spec.run.answers_only else None,
        autocast=autocast,
        bits=values.lora.bits if values.lora else None,
    )
    return rows[-1]


def matmul_speed(precision: str) -> float:
    """Return the operations per second that training is taken to reach on this machine."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # CPUs without bfloat16 units would measure their emulation of it.
    dtype = torch.bfloat16 if precision == "bf16" and device == "cuda" else torch.float32
    side = 8192 if device == "cuda" else 768
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    timer = Timer("a @ a", globals={"a": matrix}, num_threads=torch.get_num_threads())
    return _UTILISATION * 2 * side**3 / min(timer.timeit(1).median for _ in range(5))


def phase_shape(spec: TrainSpec, phase: PhaseName, data: TrainData | None = None) -> Shape:
    """Return the sizes of what a phase trains, counted on the meta device."""
    with torch.device("meta"):
        model = _meta_model(spec, phase)
    # A new expert stands beside the model while it trains: here it is one of the others.
    like = "phase3_moe" if phase == "phase4_expert" else phase
    counts = set_trainable(model, like, spec.phases[phase].trains)
    total = counts.trainable + counts.frozen
    return Shape(total, counts.trainable, _flops(spec, phase, model, data))


def _flops(spec: TrainSpec, phase: PhaseName, model: Any, data: TrainData | None) -> float:
    """Return the operations of a step of a model whose trained weights are marked.

    2 a weight and token forward, 2 more where that is computed anew, 2 backward to reach what
    trains, 2 more for trained weights; attention, over the full square, as weights that train.
    Words are looked up, and the head may run on answers only.
    """
    values, run, sample = spec.phases[phase], spec.run, _tokens(spec, phase)
    tokens, shares, square, encoded = float(values.batch_size * sample), {}, 0, 0.0
    if isinstance(model, MedMoeForConditionalGeneration):
        config, text = model.config, model.config.text_config
        image = config.image_seq_length
        images = values.batch_size - _shared(spec, phase, data)
        tokens -= (values.batch_size - images) * image
        answers = values.batch_size * (sample - image) * _answer_share(spec, phase) / tokens
        head = "embed_tokens." if text.tie_word_embeddings else "lm_head."
        shares = {"vision_tower.": 0.0, head: answers if run.answers_only else 1.0, ".embed_": 0.0}
        if config.moe_layers:
            shares[".mlp.experts."] = config.num_experts_per_tok / config.num_experts
        square = 2 * sample * text.hidden_size * text.num_hidden_layers
        if not values.keep_features:
            tower = sum(p.numel() for p in model.model.vision_tower.parameters())
            encoded = 2.0 * tower * images * image * config.image_pool**2
    passed = trained = float(square)
    for name, weight in model.named_parameters():
        share = next((share for piece, share in shares.items() if piece in name), 1.0)
        passed += share * weight.numel()
        trained += share * weight.numel() * weight.requires_grad
    again = 2 if run.gradient_checkpointing and PHASE_TABLE[phase].recomputes else 0
    return tokens * ((4 + again) * passed + 2 * trained) + encoded


def _shared(spec: TrainSpec, phase: PhaseName, data: TrainData | None) -> float:
    """Return how many images fewer than questions a step reads, as some share one."""
    values = spec.phases[phase]
    if data is None or values.batch_of == "images" or not (records := data.records(phase)):
        return 0.0
    counts = Counter(record.first_images for record in records).values()
    rows = sum(math.ceil(count / values.max_questions) for count in counts)
    # Between two parts of a batch the questions of an image are parted.
    parts = min(spec.run.gradient_accumulation, values.batch_size)
    return (values.batch_size - parts) * (1 - rows / len(records))


def _tokens(spec: TrainSpec, phase: PhaseName) -> int:
    """Return the tokens that one sample of a phase is taken to have."""
    image = vision_of(spec.model).image_tokens
    if PHASE_TABLE[phase].leaves == "encoder":  # as a convolution uses a weight at every place
        build, inputs = _backbone(spec, phase, 1)
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            (encoder := build())(**inputs())
        return int(counter.get_total_flops() // (2 * sum(p.numel() for p in encoder.parameters())))
    if phase == "phase0_language":
        return 2 * _QUESTION_TOKENS
    if phase == "phase2_router":
        return len(spec.model.moe_layers) * TOKENS_KEPT
    text, tasks = _QUESTION_TOKENS, spec.tasks(phase)
    if spec.phases[phase].batch_of == "images":
        text *= spec.phases[phase].max_questions
    elif "caption" in tasks:
        text = _CAPTION_TOKENS if len(tasks) == 1 else _CONVERSATION_TOKENS
    return min(spec.max_length, image + text)


def _answer_share(spec: TrainSpec, phase: PhaseName) -> float:
    return 1.0 if "caption" in spec.tasks(phase) else _ANSWER_SHARE


def _meta_model(spec: TrainSpec, phase: PhaseName) -> nn.Module:
    if PHASE_TABLE[phase].backbone:
        backbone: nn.Module = _backbone(spec, phase, 1)[0]()
        return backbone
    config = _config(spec, phase)
    if phase == "phase2_router":
        assert spec.router is not None
        return RouterTraining(config, spec.router.loss, spec.router.per_layer)
    model = MedMoeForConditionalGeneration(config)
    if lora := spec.phases[phase].lora:
        attach_lora(model, lora, seed=0)
    return model


def _config(spec: TrainSpec, phase: PhaseName) -> MedMoeConfig:
    """Return the configuration of the model that a phase trains, or whose router it trains."""
    dense = dense_twin(recipe_config(spec.model, spec.vocab_size))
    routed = phase == "phase2_router" or PHASE_TABLE[phase].leaves == "moe"
    return config_of_moe(dense, spec.model_of(phase)) if routed else dense


def _backbone(
    spec: TrainSpec, phase: PhaseName, batch: int
) -> tuple[Callable[[], Any], Callable[[], dict[str, Tensor]]]:
    """Return what makes a backbone, and what makes a batch of its phase 0."""
    if PHASE_TABLE[phase].leaves == "encoder":
        vision = vision_of(spec.model)
        config = AutoConfig.for_model(vision.model_type, **vision.config)
        shape = (batch, 3, vision.image_size, vision.image_size)
        return partial(AutoModel.from_config, config), lambda: {"pixel_values": torch.empty(shape)}

    def texts() -> dict[str, Tensor]:
        ids = torch.zeros(batch, _tokens(spec, phase), dtype=torch.int64)
        return {"input_ids": ids, "labels": ids}

    config = recipe_config(spec.model, spec.vocab_size).text_config
    return partial(AutoModelForCausalLM.from_config, config), texts


def samples_of(spec: TrainSpec, phase: PhaseName, data: TrainData | None, seed: int) -> int | None:
    """Return the samples of one epoch: counted where the data is there, else the paper's."""
    values, router = spec.phases[phase], spec.router
    if phase == "phase2_router" and router is not None:
        if data is None:
            return router.labels
        images = images_of(data.records(phase))
        return len(choose_labelled(images, spec.model.domains, router.labels, seed))
    if data is None or not data.records(phase):
        return values.samples
    return data.samples(phase)


def _notes(speed: float, hardware: str | None) -> list[str]:
    where = f"published for {hardware}" if hardware else "measured here"
    return [
        f"time: {_UTILISATION:.0%} of the matrix-product speed {where} "
        f"({speed / _UTILISATION / 1e9:,.0f} GFLOP/s), {_QUESTION_TOKENS} tokens a question "
        f"({_CAPTION_TOKENS} a caption, {_CONVERSATION_TOKENS} a conversation), every sample as "
        "full as max_questions allows; encoding images whose features are kept is not counted",
        "memory: of each process; kept features of the images, the loader's "
        "batches and tensors that live shorter than a layer's pass are not counted",
    ]
