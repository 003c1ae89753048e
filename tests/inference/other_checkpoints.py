"""Tiny random checkpoints of other people's classes, with their own processors, as folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from tests.model.convert.stock_llava import IMAGE_ID, stock, text_config
from tests.model.tiny import TEXTS, randomise
from transformers import (
    CLIPImageProcessorPil,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlavaProcessor,
)

from medmoe.data.tokenize import train_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role | upper }}: "
    "{% for part in message.content %}{{ '<image>' if part.type == 'image' else part.text }}"
    "{% endfor %}</s>{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
SIDE, PATCH = 32, 8


def tokenizer(*tokens: str) -> Any:
    made = train_tokenizer(TEXTS, 320)
    made.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": list(tokens)})
    return made


def llava(folder: Path) -> Path:
    """CLIP, a projector and Llama: every picture is sixteen tokens."""
    words = tokenizer("<image>")
    sizes = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    made = LlavaProcessor(
        CLIPImageProcessorPil(**sizes),
        words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    assert words.convert_tokens_to_ids("<image>") == IMAGE_ID
    return saved(stock("llama"), made, folder)


def idefics3(folder: Path) -> Path:
    """SigLIP-like tower, pixel shuffle and Llama: a picture's tokens stand between others."""
    around = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")
    words = tokenizer(*around)
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH,
    }  # fmt: skip
    config = Idefics3Config(
        vision_config=vision,
        text_config=text_config("llama"),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=words.pad_token_id,
    )
    pictures = transformers.Idefics3ImageProcessorPil(
        size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=False
    )
    made = Idefics3Processor(pictures, words, image_seq_len=4, chat_template=TEMPLATE)
    return saved(randomise(Idefics3ForConditionalGeneration(config), seed=9), made, folder)


def saved(model: Any, processor: Any, folder: Path) -> Path:
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
