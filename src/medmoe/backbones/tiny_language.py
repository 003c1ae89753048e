"""A StableLM of about two million weights, trained from scratch where no weights can be had."""

from __future__ import annotations

from medmoe.backbones.spec import LanguageBackbone
from medmoe.backbones.templates import chat_template

TINY_STABLELM = LanguageBackbone(
    name="tiny_stablelm",
    hub_id=None,
    revision=None,
    model_type="stablelm",
    config={
        "hidden_size": 160,
        "intermediate_size": 448,
        "num_hidden_layers": 4,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "max_position_embeddings": 512,
        "use_qkv_bias": True,
        # The square root of 1 / hidden_size. At transformers' 0.02, which suits many times the
        # width, attention starts all but even: yes/no questions were learned late, or by luck.
        "initializer_range": 0.08,
        "partial_rotary_factor": 0.5,
    },
    chat_template=chat_template("</s>"),
)
