"""Every registered backbone as a tiny random model: its architecture, its prompt, its end token."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image
from tests.model.tiny import TEXTS, randomise
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.utils.chat_template_utils import render_jinja_template

from medmoe.backbones.registry import language_backbone, vision_backbone
from medmoe.backbones.spec import VisionBackbone
from medmoe.data.tokenize import train_tokenizer
from medmoe.model.build import build_dense, build_processor
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.model.processing_medmoe import MedMoeProcessor

DEPTH, MOE_LAYERS = 3, (0, 2)


def rendered(template: str, question: str, answer: str | None = None) -> str:
    """Return a conversation about one image as a template has it; open without an answer."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    texts, _ = render_jinja_template(
        conversations=[messages], chat_template=template, add_generation_prompt=answer is None
    )
    return str(texts[0])


def end_token(template: str) -> str:
    """Return the token with which a template ends an answer."""
    found = re.search(r"answer(<[^<>]+>)$", rendered(template, "q", "answer"))
    assert found
    return found.group(1)


def small_vision(name: str) -> VisionBackbone:
    """Return a vision backbone of the same kind, tiny."""
    vision = vision_backbone(name)
    if vision.model_type == "efficientnet_lite":  # small as it is, but for the picture
        # 2 × 2 cells, and so many of its own that a pooled one differs.
        size = 2 * vision.patch_size
        return replace(vision, config=vision.config | {"image_size": size}, image_size=size)
    # As at real size: SigLIP2's 384 px are not a multiple of its patches, the others' are.
    size = 32 if vision.image_size % vision.patch_size == 0 else 34
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": size,
        "patch_size": 8,
    }
    return replace(vision, config=vision.config | shape, image_size=size, patch_size=8)


@lru_cache
def processor_of(language: str, vision: str) -> MedMoeProcessor:
    template = language_backbone(language).chat_template
    tokenizer = train_tokenizer(TEXTS, 320)
    markers = sorted(set(re.findall(r"<\|[^<>|]+\|>", template)))
    tokenizer.add_special_tokens({"extra_special_tokens": markers})
    tokenizer.add_special_tokens({"eos_token": end_token(template)})
    return build_processor(tokenizer, small_vision(vision), template)


def small_language(name: str, tokenizer: Any) -> dict[str, Any]:
    """Return the settings of a language model of the same architecture, tiny."""
    values = dict(language_backbone(name).config)
    grouped = values["num_key_value_heads"] < values["num_attention_heads"]
    values |= {
        "vocab_size": len(tokenizer) + 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 2,
        "num_key_value_heads": 1 if grouped else 2,
        "max_position_embeddings": 256,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if "head_dim" in values:  # Qwen3's heads are wider than the hidden size divided by their number
        real = language_backbone(name).config
        wide = real["head_dim"] > real["hidden_size"] // real["num_attention_heads"]
        values["head_dim"] = 24 if wide else 16
    return values


def small_dense(language: str, vision: str) -> MedMoeForConditionalGeneration:
    """Return a dense model of two registered backbones, tiny and random."""
    tokenizer, backbone = processor_of(language, vision).tokenizer, small_vision(vision)
    text = AutoConfig.for_model(
        language_backbone(language).model_type, **small_language(language, tokenizer)
    )
    states = AutoConfig.for_model(backbone.model_type, **backbone.config)
    return build_dense(
        randomise(AutoModel.from_config(states), seed=3),
        randomise(AutoModelForCausalLM.from_config(text), seed=1),
        tokenizer,
        backbone,
        seed=4,
    ).eval()


def picture(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 52, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def chat(question: str, image: Image.Image | None) -> list[dict[str, Any]]:
    """Return a conversation with one open question, as users of transformers write it."""
    content: list[dict[str, Any]] = [{"type": "text", "text": question}]
    if image is not None:
        content.insert(0, {"type": "image", "image": image})
    return [{"role": "user", "content": content}]


def inputs_of(processor: MedMoeProcessor, question: str, image: Image.Image | None) -> Any:
    return processor.apply_chat_template(
        chat(question, image),
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        return_tensors="pt",
    )
