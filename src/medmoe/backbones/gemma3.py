"""Gemma 3 270M (base): gated GELU FFN between two norms, embeddings scaled by √640 and tied.

Every sixth layer attends to everything, the others to the last 512 tokens. It was pretrained and
never instructed, so its prompt is our own.
"""

from __future__ import annotations

from medmoe.backbones.spec import LanguageBackbone
from medmoe.backbones.templates import question_template

GEMMA3_270M = LanguageBackbone(
    name="gemma3_270m",
    hub_id="google/gemma-3-270m",
    revision=None,
    model_type="gemma3_text",
    config={
        "vocab_size": 262144,
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,  # wider than hidden_size / num_attention_heads
        "max_position_embeddings": 32768,
        "sliding_window": 512,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    },
    chat_template=question_template("<bos>", "<eos>"),
)
