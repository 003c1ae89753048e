"""What `medmoe train --plan` says a step needs, against what the real step takes at most.

A phase is really trained for a few steps (the product's Trainer, AdamW, accumulation), while the
profiler notes every allocation of torch; the plan's bytes are divided by their highest sum. Of a
model of the demo's size and of one of about 100 M weights, on the CPU.
"""

from __future__ import annotations

import multiprocessing
from itertools import accumulate
from typing import Any

import torch
from support.timing import options
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig

from medmoe.config.schema import PhaseName, PhaseSpec, Trains
from medmoe.config.train_schema import LoraSpec
from medmoe.data.collate import Packed, PackingCollator
from medmoe.data.tokenize import Segment
from medmoe.model.blueprint import dense_twin
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.training.context import PhaseRun, RunSettings
from medmoe.training.lora import attach_lora
from medmoe.training.memory import training_memory
from medmoe.training.schedule import Schedule
from medmoe.training.trainer import run_phase

#: Width, width of an FFN, layers, vocabulary; patches of an image, questions behind it.
SIZES = {"2 M": (128, 344, 4, 600, 64, 4), "100 M": (640, 2560, 10, 16_000, 144, 4)}
QUESTION, ANSWER = 32, 8
STEPS, BATCH, RANK = 2, 4, 8  # the second step has AdamW's states from the start
PHASES: tuple[tuple[PhaseName, Trains], ...] = (
    ("phase1_alignment", "paper"),
    ("phase2_instruction", "paper"),
    ("phase3_moe", "paper"),
    ("phase3_moe", "lora"),
)
WAYS = {
    "float32": RunSettings(),
    "float32, 2 parts": RunSettings(gradient_accumulation=2),
    "float32, 2 parts, checkpointing": RunSettings(
        gradient_accumulation=2, gradient_checkpointing=True
    ),
    "bf16, 2 parts": RunSettings(gradient_accumulation=2, precision="bf16"),
    "bf16, 2 parts, checkpointing": RunSettings(
        gradient_accumulation=2, precision="bf16", gradient_checkpointing=True
    ),
}


def configuration(size: str) -> MedMoeConfig:
    """Return a MoE model's configuration: experts in every second layer."""
    width, ffn, layers, vocabulary, patches, _ = SIZES[size]
    text = AutoConfig.for_model(
        "stablelm",
        hidden_size=width,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        vocab_size=vocabulary,
    )
    vision = AutoConfig.for_model(
        "clip_vision_model",
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8 * round(patches**0.5),
        patch_size=8,
    )
    return MedMoeConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_index=vocabulary - 1,
        image_seq_length=patches,
        moe_layers=list(range(0, layers, 2)),
        domains=["ct", "mri", "pathology", "xray"],
        num_experts_per_tok=1,
    )


def real(
    config: MedMoeConfig, size: str, phase: PhaseName, trains: Trains, way: RunSettings
) -> int:
    """Train a few steps and return the most bytes that torch held at once."""
    *_, patches, questions = SIZES[size]
    torch.manual_seed(0)
    model = MedMoeForConditionalGeneration(config)
    held: int = sum(parameter.nbytes for parameter in model.parameters())
    segment = Segment(tuple(range(QUESTION)), ANSWER)
    sample = Packed(0, (config.image_token_id,) * patches, (segment,) * questions)
    features = torch.randn(1, patches, config.vision_config.hidden_size)
    spec = PhaseSpec(
        learning_rate=1e-5, batch_size=BATCH, warmup_ratio=0.0, weight_decay=0.0,
        max_grad_norm=1.0, trains=trains,
    )  # fmt: skip
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        if trains == "lora":
            attach_lora(model, LoraSpec(rank=RANK, alpha=RANK), 0)
        schedule: Schedule[Any] = Schedule(lambda *_: sample, BATCH, STEPS * BATCH, 1)
        run = PhaseRun(phase=phase, spec=spec, steps=STEPS, seed=1, progress=silent, settings=way)
        run_phase(run, model, schedule, PackingCollator(features, 0))
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    more: int = max(accumulate(event.nbytes() for event in events))
    return held + more


def planned(
    config: MedMoeConfig, size: str, phase: PhaseName, trains: Trains, way: RunSettings
) -> int:
    """Return the bytes of the plan."""
    *_, patches, questions = SIZES[size]
    part = BATCH // way.gradient_accumulation
    row = training_memory(
        config, phase, torch.float32, part, patches + questions * QUESTION,
        (RANK,) if trains == "lora" else (),
        answers=part * questions * ANSWER, autocast=way.precision == "bf16",
    )[-1]  # fmt: skip
    return row.sharded() if way.gradient_checkpointing else row.total


def silent(*_: Any) -> None:
    """Report progress to nobody."""


def main() -> None:
    values = options(__doc__.splitlines()[0])
    # A process for each: what one leaves behind would be freed, and counted, in the next.
    forked = multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1)
    for size in list(SIZES)[: 1 if values.quick else None]:
        moe = configuration(size)
        small = size == "2 M"  # the large one in some ways only: it takes minutes
        for phase, trains in PHASES if small else PHASES[:3]:
            config = moe if phase == "phase3_moe" else dense_twin(moe)
            for name, way in list(WAYS.items())[: None if small else 2]:
                plan = planned(config, size, phase, trains, way)
                most = forked.apply(real, (config, size, phase, trains, way))
                title = f"{size} {phase}{' lora' * (trains == 'lora')}, {name}"
                print(
                    f"{title:<62}{plan / 2**20:8.0f} MiB planned {most / 2**20:8.0f} real"
                    f"{plan / most:6.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
