"""What the demonstration and `medmoe train` do between the phases: tokenizer, encoder, features."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from medmoe.backbones.spec import LanguageBackbone, VisionBackbone
from medmoe.config.schema import ModelSpec, PhaseSpec
from medmoe.data.pixels import PixelTable, normalise
from medmoe.data.schema import Record
from medmoe.data.tokenize import ConversationTokenizer, train_tokenizer
from medmoe.data.wording import turns_of
from medmoe.experiments.demo_corpus import unique_images
from medmoe.model.build import build_processor
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.model.upcycle import RouterState, moe_config, upcycle
from medmoe.training.features import selected_states
from medmoe.training.phases.phase0_encoder import train_encoder
from medmoe.training.phases.phase0_language import train_language_model
from medmoe.training.settings import RunSettings
from medmoe.training.trainer import PhaseResult, Progress


def stand_in_processor(
    records: Sequence[Record], vocab_size: int, vision: VisionBackbone, language: LanguageBackbone
) -> Any:
    """Return the processor of stand-in backbones, its tokenizer trained on the training texts."""
    texts = (
        " ".join(f"user: {question} assistant: {answer}" for question, answer in turns_of(record))
        for record in records
    )
    tokenizer = train_tokenizer(texts, vocab_size)
    return build_processor(tokenizer, vision, language.chat_template)


def train_stand_in_encoder(
    records: Sequence[Record],
    repeats: Mapping[str, int],
    vision: VisionBackbone,
    tokenizer: Any,
    table: PixelTable,
    spec: PhaseSpec,
    steps: int,
    seed: int,
    progress: Progress,
    settings: RunSettings | None = None,
) -> tuple[PreTrainedModel, PhaseResult]:
    """Return the vision encoder of phase 0, trained on the records' pictures."""
    captions: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.task == "caption":
            captions[record.image.id].append(record)
    dataset = {record.image.id: record.dataset for record in records}
    images = [
        image for image in unique_images(records) for _ in range(repeats.get(dataset[image.id], 1))
    ]
    return train_encoder(
        vision, images, captions, table, tokenizer, spec, steps, seed, progress, settings
    )


def train_stand_in_language(
    records: Sequence[Record],
    language: LanguageBackbone,
    processor: Any,
    spec: PhaseSpec,
    steps: int,
    seed: int,
    progress: Progress,
    settings: RunSettings | None = None,
) -> tuple[PreTrainedModel, PhaseResult]:
    """Return the language model of phase 0, trained on the records' texts without pictures."""
    conversations = ConversationTokenizer(processor, image_tokens=1)
    texts = [conversations.text_only(turns_of(record)) for record in records]
    return train_language_model(
        language, texts, processor.tokenizer, spec, steps, seed, progress, settings
    )


@torch.no_grad()
def encode_blank(encoder: Any, table: PixelTable, vision: VisionBackbone) -> Tensor:
    """Return the features (1, P, D_vision) of a uniform grey picture, for the control."""
    grey = torch.full((1, *table.pixels.shape[1:]), 0.5)
    return selected_states(encoder.eval(), normalise(grey, table.mean, table.std), vision)


def config_of_moe(dense: MedMoeConfig, model: ModelSpec) -> MedMoeConfig:
    """Return the configuration of a recipe's MoE model, made from that of its dense model."""
    return moe_config(
        dense,
        model.moe_layers,
        model.domains,
        model.num_experts_per_tok,
        model.router_layers,
        model.meta_expert,
    )


def upcycled(
    dense: MedMoeForConditionalGeneration,
    model: ModelSpec,
    router: RouterState | Sequence[RouterState] | None,
    seed: int = 0,
) -> MedMoeForConditionalGeneration:
    """Return the MoE model that a recipe's phase 3 starts from; ``seed`` draws a missing router."""
    return upcycle(
        dense,
        moe_layers=model.moe_layers,
        domains=model.domains,
        num_experts_per_tok=model.num_experts_per_tok,
        init=model.upcycle_init,
        router=router,
        router_layers=model.router_layers,
        meta_expert=model.meta_expert,
        seed=seed,
    )
