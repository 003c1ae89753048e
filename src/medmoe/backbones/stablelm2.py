"""StableLM-2-1.6B: SwiGLU FFN without bias, partial rotary, query-key-value biases."""

from __future__ import annotations

from medmoe.backbones.spec import LanguageBackbone
from medmoe.backbones.templates import ASSISTANT_SYSTEM, chat_template

STABLELM2 = LanguageBackbone(
    name="stablelm2_1_6b",
    hub_id="stabilityai/stablelm-2-1_6b",
    revision=None,
    model_type="stablelm",
    config={
        "vocab_size": 100352,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "use_qkv_bias": True,
        "partial_rotary_factor": 0.25,
        "bos_token_id": 100257,
        "eos_token_id": 100257,
    },
    chat_template=chat_template("<|endoftext|>", ASSISTANT_SYSTEM),
)
