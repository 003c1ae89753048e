"""Qwen3 (0.6 B and 1.7 B): SwiGLU without bias, normed queries and keys, tied embeddings.

Asked without thinking: an answer begins with an empty thought, as Qwen's own template has it.
"""

from __future__ import annotations

from medmoe.backbones.spec import LanguageBackbone
from medmoe.backbones.templates import NO_THINKING, chatml_template


def _qwen3(name: str, hub_id: str, revision: str, width: int, ffn: int) -> LanguageBackbone:
    return LanguageBackbone(
        name=name,
        hub_id=hub_id,
        revision=revision,
        model_type="qwen3",
        config={
            "vocab_size": 151936,
            "hidden_size": width,
            "intermediate_size": ffn,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,  # wider than hidden_size / num_attention_heads
            "max_position_embeddings": 40960,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
            "tie_word_embeddings": True,
            "bos_token_id": 151643,
            "eos_token_id": 151645,
        },
        chat_template=chatml_template(opening=NO_THINKING),
    )


QWEN3_0_6B = _qwen3(
    "qwen3_0_6b", "Qwen/Qwen3-0.6B", "c1899de289a04d12100db370d81485cdf75e47ca", 1024, 3072
)
QWEN3_1_7B = _qwen3(
    "qwen3_1_7b", "Qwen/Qwen3-1.7B", "70d244cc86ccca08cf5af4e1e306ecf908b1ad5e", 2048, 6144
)
