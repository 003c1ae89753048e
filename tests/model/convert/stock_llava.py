"""Tiny random Llava checkpoints of the stock class, and their folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.model.tiny import TEXTS, randomise, vision_tower
from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration

from medmoe.data.tokenize import train_tokenizer

VOCAB, IMAGE_ID = 330, 2  # the tiny tokenizer's <image>


def text_config(family: str, **values: Any) -> dict[str, Any]:
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
    }
    shape |= {"head_dim": 16} if family in ("llama", "qwen3") else {"partial_rotary_factor": 0.5}
    made: dict[str, Any] = AutoConfig.for_model(family, **shape | values).to_dict()
    return made


def stock(family: str, vision: Any = None, strategy: str = "default", **values: Any) -> Any:
    config = LlavaConfig(
        vision_config=(vision or vision_tower().config).to_dict(),
        text_config=text_config(family, **values),
        image_token_index=IMAGE_ID,
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=values.get("tie_word_embeddings", False),
    )
    return randomise(LlavaForConditionalGeneration(config), seed=8)


def saved(model: Any, folder: Path, *, processor: bool = False) -> Path:
    model.save_pretrained(folder)
    if processor:
        train_tokenizer(TEXTS, 320).save_pretrained(folder)
        settings = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder
