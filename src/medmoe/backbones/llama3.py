"""Llama-3.2-1B-Instruct: SwiGLU without bias, grouped queries, tied embeddings."""

from __future__ import annotations

from medmoe.backbones.spec import LanguageBackbone
from medmoe.backbones.templates import llama3_template

LLAMA3_2_1B = LanguageBackbone(
    name="llama3_2_1b",
    hub_id="meta-llama/Llama-3.2-1B-Instruct",
    revision="9213176726f574b556790deb65791e0c5aa438b6",
    model_type="llama",
    config={
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": True,
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
    },
    chat_template=llama3_template(),
)
