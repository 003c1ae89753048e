"""SmolLM2-Instruct (135 M, 360 M and 1.7 B): Llama's architecture, tied embeddings, ChatML."""

from __future__ import annotations

from medmoe.backbones.spec import LanguageBackbone
from medmoe.backbones.templates import chatml_template

_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def _smollm2(
    name: str, size: str, revision: str, shape: tuple[int, int, int, int, int], theta: float
) -> LanguageBackbone:
    width, ffn, layers, heads, key_value_heads = shape
    return LanguageBackbone(
        name=name,
        hub_id=f"HuggingFaceTB/SmolLM2-{size}-Instruct",
        revision=revision,
        model_type="llama",
        config={
            "vocab_size": 49152,
            "hidden_size": width,
            "intermediate_size": ffn,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": key_value_heads,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
        },
        chat_template=chatml_template(_SYSTEM),
    )


_SMALL, _MIDDLE, _LARGE = (
    "12fd25f77366fa6b3b4b768ec3050bf629380bac",
    "a10cc1512eabd3dde888204e902eca88bddb4951",
    "31b70e2e869a7173562077fd711b654946d38674",
)
SMOLLM2_135M = _smollm2("smollm2_135m", "135M", _SMALL, (576, 1536, 30, 9, 3), 100_000.0)
SMOLLM2_360M = _smollm2("smollm2_360m", "360M", _MIDDLE, (960, 2560, 32, 15, 5), 100_000.0)
SMOLLM2_1_7B = _smollm2("smollm2_1_7b", "1.7B", _LARGE, (2048, 8192, 24, 32, 32), 130_000.0)
