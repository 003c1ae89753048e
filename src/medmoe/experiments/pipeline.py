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
from medmoe.backbones.spec import LanguageBackbone, VisionBackbone
from medmoe.config.schema import DemoSpec, ModelSpec, PhaseName, StepPlan
from medmoe.data.pixels import PixelTable, normalise, pixel_table
from medmoe.data.schema import Record
from medmoe.data.tokenize import ConversationTokenizer, train_tokenizer
from medmoe.data.wording import question_text
from medmoe.experiments.corpus import Corpus, unique_images
from medmoe.model.build import build_dense, build_processor
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.model.upcycle import moe_config, upcycle
from medmoe.training.packed import PhaseContext
from medmoe.training.phase0_encoder import train_encoder
from medmoe.training.phase0_language import train_language_model
from medmoe.training.phase1_alignment import train_alignment
from medmoe.training.phase2_instruction import train_instruction, train_sft
from medmoe.training.phase2_router import choose_labelled, train_router
from medmoe.training.phase3_moe import train_moe
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
        processor = _processor(corpus, spec, vision, language)
        table = pixel_table(corpus.images(), processor.image_processor)
        encoder, phases["phase0_encoder"] = _encoder(
            corpus, vision, processor, table, spec, plan, seed, progress
        )
        features, blank = _encode(encoder, table, vision)
        words, phases["phase0_language"] = _language_model(
            corpus, language, processor, spec, plan, seed, progress
        )
    dense = build_dense(encoder, words, processor.tokenizer, vision, seed)
    context = _context(dense, corpus, processor, features, table, spec, plan, seed, progress)
    with watch.time("phase1"):
        phases["phase1_alignment"] = train_alignment(context)
    with watch.time("phase2"):
        phases["phase2_instruction"] = train_instruction(context)
    with watch.time("router"):
        config = moe_config(
            dense.config,
            model.moe_layers,
            model.domains,
            model.num_experts_per_tok,
            model.router_layers,
        )
        labelled = choose_labelled(
            unique_images(corpus.train), model.domains, spec.router_images, seed
        )
        router, phases["phase2_router"] = train_router(context, config, labelled)
    moe = upcycle(
        dense,
        moe_layers=model.moe_layers,
        domains=model.domains,
        num_experts_per_tok=model.num_experts_per_tok,
        init=model.upcycle_init,
        router=router,
        router_layers=model.router_layers,
    )
    with watch.time("phase3"):
        phases["phase3_moe"] = train_moe(context.with_model(moe))
    sft = copy.deepcopy(dense)
    with watch.time("sft"):
        phases["sft"] = train_sft(context.with_model(sft))
    return Trained(moe, sft, processor, features, table.rows, blank, phases, dict(watch.seconds))


def _processor(
    corpus: Corpus, spec: DemoSpec, vision: VisionBackbone, language: LanguageBackbone
) -> Any:
    texts = (f"user: {question_text(r)} assistant: {r.answer}" for r in corpus.train)
    tokenizer = train_tokenizer(texts, spec.vocab_size)
    return build_processor(tokenizer, vision, language.chat_template)


def _encoder(
    corpus: Corpus,
    vision: VisionBackbone,
    processor: Any,
    table: PixelTable,
    spec: DemoSpec,
    plan: StepPlan,
    seed: int,
    progress: Progress,
) -> tuple[Any, PhaseResult]:
    captions: dict[str, list[Record]] = defaultdict(list)
    for record in corpus.train:
        if record.task == "caption":
            captions[record.image.id].append(record)
    dataset = {record.image.id: record.dataset for record in corpus.train}
    images = [
        image
        for image in unique_images(corpus.train)
        for _ in range(corpus.repeats.get(dataset[image.id], 1))
    ]
    return train_encoder(
        vision,
        images,
        captions,
        table,
        processor.tokenizer,
        spec.phases["phase0_encoder"],
        plan.steps["phase0_encoder"],
        seed,
        progress,
    )


def _language_model(
    corpus: Corpus,
    language: LanguageBackbone,
    processor: Any,
    spec: DemoSpec,
    plan: StepPlan,
    seed: int,
    progress: Progress,
) -> tuple[Any, PhaseResult]:
    conversations = ConversationTokenizer(processor, image_tokens=1)
    texts = [conversations.text_only(question_text(r), r.answer) for r in corpus.train]
    return train_language_model(
        language,
        texts,
        processor.tokenizer,
        spec.phases["phase0_language"],
        plan.steps["phase0_language"],
        seed,
        progress,
    )


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


@torch.no_grad()
def _encode(encoder: Any, table: PixelTable, vision: VisionBackbone) -> tuple[Tensor, Tensor]:
    """Return the frozen encoder's features of all images, and of a uniform grey one."""

    def states(pixel_values: Tensor) -> Tensor:
        device = next(encoder.parameters()).device
        out = encoder.eval()(pixel_values.to(device), output_hidden_states=True).hidden_states
        chosen: Tensor = out[vision.select_layer].cpu()
        return chosen[:, 1:] if vision.select_strategy == "default" else chosen

    parts = [
        states(table.normalised(torch.arange(start, min(start + 128, len(table.pixels)))))
        for start in range(0, len(table.pixels), 128)
    ]
    grey = torch.full((1, *table.pixels.shape[1:]), 0.5)
    return torch.cat(parts), states(normalise(grey, table.mean, table.std))
