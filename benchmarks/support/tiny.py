"""Models of recipes with random weights and few words, and phantom questions to ask them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from medmoe.backbones.registry import language_backbone, vision_backbone
from medmoe.config.load import check, recipe
from medmoe.config.schema import ModelSpec
from medmoe.data.phantom import read_phantom
from medmoe.data.schema import Record, question_text
from medmoe.data.tokenize import ConversationTokenizer, train_tokenizer
from medmoe.model.build import build_dense, build_processor
from medmoe.model.upcycle import upcycle
from medmoe.training.phases.phase0_language import new_language_model

_OF_THE_VOCABULARY = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Tiny:
    """Both models, their processor, questions, and each image's pixels and features."""

    dense: Any
    moe: Any
    processor: Any
    tokenizer: ConversationTokenizer
    records: list[Record]
    features: Tensor
    pixels: Tensor
    rows: dict[str, int]


def tiny(images: int, model: str = "tiny") -> Tiny:
    """Return the models of a recipe and all questions about some phantom images."""
    spec = check(ModelSpec, recipe("models", model), model)
    vision, language = vision_backbone(spec.vision_encoder), language_backbone(spec.language_model)
    shape = {k: v for k, v in language.config.items() if k not in _OF_THE_VOCABULARY}
    language = replace(language, config=shape)
    records = [
        r for r in read_phantom("train", images, seed=7, size=vision.image_size) if r.task == "vqa"
    ]
    texts = [f"user: {question_text(r)} assistant: {r.answer}" for r in records]
    processor = build_processor(train_tokenizer(texts, 600), vision, language.chat_template)
    torch.manual_seed(0)
    tower = AutoModel.from_config(AutoConfig.for_model(vision.model_type, **vision.config))
    words = new_language_model(language, processor.tokenizer, 0)
    dense = build_dense(tower, words, processor.tokenizer, vision, 0).eval()
    moe = upcycle(
        dense,
        moe_layers=spec.moe_layers,
        domains=spec.domains,
        num_experts_per_tok=spec.num_experts_per_tok,
    ).eval()
    tokens = dense.config.image_seq_length
    rows = {name: row for row, name in enumerate(dict.fromkeys(r.image.id for r in records))}
    pixels = torch.randn(len(rows), 3, vision.image_size, vision.image_size)
    with torch.no_grad():
        features = dense.model.encode_images(pixels)
    conversations = ConversationTokenizer(processor, tokens)
    return Tiny(dense, moe, processor, conversations, records, features, pixels, rows)
