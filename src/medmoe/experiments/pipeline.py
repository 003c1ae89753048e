"""All phases in one process, from pictures and words to a dense, an SFT and a MoE model."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from medmoe.backbones.registry import language_backbone, vision_backbone
from medmoe.backbones.spec import VisionBackbone
from medmoe.config.phases import PHASE_TABLE
from medmoe.config.schema import DemoSpec, ModelSpec, PhaseName, StepPlan
from medmoe.data.pixels import PixelTable, normalise, pixel_table
from medmoe.data.tokenize import ConversationTokenizer, train_tokenizer
from medmoe.data.wording import turns_of
from medmoe.experiments.demo_corpus import Corpus, unique_images
from medmoe.model.blueprint import config_of_moe
from medmoe.model.build import build_dense, build_processor
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.model.upcycle import upcycle
from medmoe.training.context import PhaseContext, PhaseRun, Progress
from medmoe.training.features import encode_images, selected_states
from medmoe.training.packed import train_packed
from medmoe.training.phases.phase0_encoder import train_encoder
from medmoe.training.phases.phase0_language import train_language_model
from medmoe.training.phases.phase2_router import choose_labelled, fit_router
from medmoe.training.phases.router_states import labelled_states
from medmoe.training.settings import RunSettings
from medmoe.training.trainer import PhaseResult


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

    def run(phase: PhaseName) -> dict[str, Any]:
        # The recorded results were trained so; the other way differs in rounding.
        settings = RunSettings(answers_only=False)
        values = {"phase": phase, "spec": spec.phases[phase], "steps": plan.steps[phase]}
        return {**values, "seed": seed, "progress": progress, "settings": settings}

    def context(phase: PhaseName, trained: MedMoeForConditionalGeneration) -> PhaseContext:
        tasks = PHASE_TABLE[phase].tasks
        return PhaseContext(
            **run(phase),
            model=trained,
            processor=processor,
            tokenizer=ConversationTokenizer(processor, dense.config.image_seq_length),
            features=features,
            rows=table.rows,
            records=[record for record in corpus.train if record.task in tasks],
            repeats=corpus.repeats,
            max_questions=plan.max_questions,
        )

    with watch.time("phase0"):
        texts = (
            " ".join(
                f"user: {question} assistant: {answer}" for question, answer in turns_of(record)
            )
            for record in corpus.train
        )
        tokenizer = train_tokenizer(texts, spec.vocab_size)
        processor = build_processor(tokenizer, vision, language.chat_template)
        table = pixel_table(corpus.images(), processor.image_processor)
        encoder, phases["phase0_encoder"] = train_encoder(
            PhaseRun(**run("phase0_encoder")),
            vision,
            corpus.train,
            corpus.repeats,
            table,
            processor.tokenizer,
        )
        features = encode_images(encoder, table, vision)
        blank = _blank(encoder, table, vision)
        words, phases["phase0_language"] = train_language_model(
            PhaseRun(**run("phase0_language")), language, corpus.train, processor
        )
    dense = build_dense(encoder, words, processor.tokenizer, vision, seed)
    with watch.time("phase1"):
        phases["phase1_alignment"] = train_packed(context("phase1_alignment", dense))
    with watch.time("phase2"):
        phases["phase2_instruction"] = train_packed(context("phase2_instruction", dense))
    with watch.time("router"):
        config = config_of_moe(dense.config, model)
        labelled = choose_labelled(
            unique_images(corpus.train), model.domains, spec.router_images, seed
        )
        of_router = context("phase2_router", dense)
        states = labelled_states(of_router, config, labelled)
        router, phases["phase2_router"] = fit_router(of_router, config, states)
    moe = upcycle(
        dense,
        moe_layers=model.moe_layers,
        domains=model.domains,
        num_experts_per_tok=model.num_experts_per_tok,
        init=model.upcycle_init,
        router=router,
        router_layers=model.router_layers,
        meta_expert=model.meta_expert,
    )
    with watch.time("phase3"):
        phases["phase3_moe"] = train_packed(context("phase3_moe", moe))
    sft = copy.deepcopy(dense)
    with watch.time("sft"):
        phases["sft"] = train_packed(context("sft", sft))
    return Trained(moe, sft, processor, features, table.rows, blank, phases, dict(watch.seconds))


@torch.no_grad()
def _blank(encoder: Any, table: PixelTable, vision: VisionBackbone) -> Tensor:
    """Return the features (1, P, D_vision) of a uniform grey picture, for the control."""
    grey = torch.full((1, *table.pixels.shape[1:]), 0.5)
    return selected_states(encoder.eval(), normalise(grey, table.mean, table.std), vision)
