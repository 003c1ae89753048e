"""Phi-2 (2.7 B): plain GELU FFN with biases, attention and FFN in parallel, a head with bias."""

from __future__ import annotations

from medmoe.backbones.spec import LanguageBackbone
from medmoe.backbones.templates import ASSISTANT_SYSTEM, chat_template

PHI2 = LanguageBackbone(
    name="phi2_2_7b",
    hub_id="microsoft/phi-2",
    revision="ef382358ec9e382308935a992d908de099b64c23",
    model_type="phi",
    config={
        "vocab_size": 51200,
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "hidden_act": "gelu_new",
        "max_position_embeddings": 2048,
        "partial_rotary_factor": 0.4,
        "resid_pdrop": 0.1,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    },
    chat_template=chat_template("<|endoftext|>", ASSISTANT_SYSTEM),
    lm_head_bias=True,
)
