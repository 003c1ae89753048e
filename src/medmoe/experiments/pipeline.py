"""All phases in one process, from pictures and words to a dense, an SFT and a MoE model."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from medmoe.backbones.registry import language_backbone, vision_backbone
from medmoe.config.schema import DemoSpec, ModelSpec, PhaseName, StepPlan
from medmoe.data.pixels import PixelTable, pixel_table
from medmoe.data.tokenize import ConversationTokenizer
from medmoe.experiments.demo_corpus import Corpus, unique_images
from medmoe.experiments.stages import (
    config_of_moe,
    encode_blank,
    stand_in_processor,
    train_stand_in_encoder,
    train_stand_in_language,
    upcycled,
)
from medmoe.model.build import build_dense
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.training.features import encode_images
from medmoe.training.packed import PhaseContext
from medmoe.training.phases.phase1_alignment import train_alignment
from medmoe.training.phases.phase2_instruction import train_instruction, train_sft
from medmoe.training.phases.phase2_router import choose_labelled, train_router
from medmoe.training.phases.phase3_moe import train_moe
from medmoe.training.settings import RunSettings
from medmoe.training.trainer import PhaseResult, Progress


@dataclass(slots=True)
class Trained:
    """What training leaves.

    Attributes:
        moe: The Med-MoE model after phase 3.
        sft: The dense phase-2 model fine-tuned on the same data for the same steps.
        features: (N, P, D_vision) float32: all images of the corpus, encoded once.
        rows: Row of each image id in ``features``.
        blank: (1, P, D_vision) float32: a uniform grey picture, for the control.
        phases: Counts and learning curve of each phase.
        seconds: Wall time of each part.
    """

    moe: MedMoeForConditionalGeneration
    sft: MedMoeForConditionalGeneration
    processor: Any
    features: Tensor
    rows: dict[str, int]
    blank: Tensor
    phases: dict[PhaseName, PhaseResult]
    seconds: dict[str, float]


@dataclass(slots=True)
class _Stopwatch:
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start


def train_all(
    corpus: Corpus, model: ModelSpec, spec: DemoSpec, plan: StepPlan, seed: int, progress: Progress
) -> Trained:
    """Run every phase in order: 0 (stand-in backbones), 1, 2, router, 3, and the SFT twin."""
    vision, language = (
        vision_backbone(model.vision_encoder),
        language_backbone(model.language_model),
    )
    watch = _Stopwatch()
    phases: dict[PhaseName, PhaseResult] = {}
    with watch.time("phase0"):
        processor = stand_in_processor(corpus.train, spec.vocab_size, vision, language)
        table = pixel_table(corpus.images(), processor.image_processor)
        encoder, phases["phase0_encoder"] = train_stand_in_encoder(
            corpus.train,
            corpus.repeats,
            vision,
            processor.tokenizer,
            table,
            spec.phases["phase0_encoder"],
            plan.steps["phase0_encoder"],
            seed,
            progress,
        )
        features = encode_images(encoder, table, vision)
        blank = encode_blank(encoder, table, vision)
        words, phases["phase0_language"] = train_stand_in_language(
            corpus.train,
            language,
            processor,
            spec.phases["phase0_language"],
            plan.steps["phase0_language"],
            seed,
            progress,
        )
    dense = build_dense(encoder, words, processor.tokenizer, vision, seed)
    context = _context(dense, corpus, processor, features, table, spec, plan, seed, progress)
    with watch.time("phase1"):
        phases["phase1_alignment"] = train_alignment(context)
    with watch.time("phase2"):
        phases["phase2_instruction"] = train_instruction(context)
    with watch.time("router"):
        config = config_of_moe(dense.config, model)
        labelled = choose_labelled(
            unique_images(corpus.train), model.domains, spec.router_images, seed
        )
        router, phases["phase2_router"] = train_router(context, config, labelled)
    moe = upcycled(dense, model, router)
    with watch.time("phase3"):
        phases["phase3_moe"] = train_moe(context.with_model(moe))
    sft = copy.deepcopy(dense)
    with watch.time("sft"):
        phases["sft"] = train_sft(context.with_model(sft))
    return Trained(moe, sft, processor, features, table.rows, blank, phases, dict(watch.seconds))


def _context(
    dense: MedMoeForConditionalGeneration,
    corpus: Corpus,
    processor: Any,
    features: Tensor,
    table: PixelTable,
    spec: DemoSpec,
    plan: StepPlan,
    seed: int,
    progress: Progress,
) -> PhaseContext:
    return PhaseContext(
        model=dense,
        processor=processor,
        tokenizer=ConversationTokenizer(processor, dense.config.image_seq_length),
        features=features,
        rows=table.rows,
        records=corpus.train,
        repeats=corpus.repeats,
        specs=dict(spec.phases),
        steps=dict(plan.steps),
        max_questions=plan.max_questions,
        seed=seed,
        progress=progress,
        # The recorded results were trained so; the other way differs in rounding.
        settings=RunSettings(answers_only=False),
    )
