"""The language models: the paper's, small instructed ones, and one trained from scratch.

Adding one = one entry here. The numbers of `_shape` are width, FFN width, layers, heads and
key-value heads. All but Phi-2 have gated FFNs without bias.
"""

from __future__ import annotations

from typing import Any

from medmoe.backbones.spec import LanguageBackbone
from medmoe.backbones.templates import (
    ASSISTANT_SYSTEM,
    NO_THINKING,
    chat_template,
    chatml_template,
    llama3_template,
    question_template,
)


def _shape(*sizes: int) -> dict[str, Any]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return dict(zip((*names, "num_key_value_heads"), sizes, strict=True))


#: Plain GELU FFN with biases, attention and FFN in parallel, a head with bias.
PHI2 = LanguageBackbone(
    "phi2_2_7b",
    "microsoft/phi-2",
    "ef382358ec9e382308935a992d908de099b64c23",
    "phi",
    _shape(2560, 10240, 32, 32, 32)
    | {"vocab_size": 51200, "max_position_embeddings": 2048, "hidden_act": "gelu_new"}
    | {"partial_rotary_factor": 0.4, "resid_pdrop": 0.1}
    | {"bos_token_id": 50256, "eos_token_id": 50256},
    chat_template("<|endoftext|>", ASSISTANT_SYSTEM),
    lm_head_bias=True,
)
STABLELM2 = LanguageBackbone(
    "stablelm2_1_6b",
    "stabilityai/stablelm-2-1_6b",
    None,
    "stablelm",
    _shape(2048, 5632, 24, 32, 32)
    | {"vocab_size": 100352, "max_position_embeddings": 4096}
    | {"use_qkv_bias": True, "partial_rotary_factor": 0.25}
    | {"bos_token_id": 100257, "eos_token_id": 100257},
    chat_template("<|endoftext|>", ASSISTANT_SYSTEM),
)


def _qwen3(name: str, hub_id: str, revision: str, width: int, ffn: int) -> LanguageBackbone:
    """Return a Qwen3, asked without thinking: an answer begins with an empty thought."""
    config = _shape(width, ffn, 28, 16, 8) | {
        "vocab_size": 151936,
        "head_dim": 128,  # wider than hidden_size / num_attention_heads
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "tie_word_embeddings": True,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    }
    template = chatml_template(opening=NO_THINKING)
    return LanguageBackbone(name, hub_id, revision, "qwen3", config, template)


def _smollm2(size: str, revision: str, theta: float, *shape: int) -> LanguageBackbone:
    """Return a SmolLM2-Instruct: Llama's architecture and ChatML."""
    name = f"smollm2_{size.lower().replace('.', '_')}"
    hub_id = f"HuggingFaceTB/SmolLM2-{size}-Instruct"
    config = _shape(*shape) | {
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    return LanguageBackbone(name, hub_id, revision, "llama", config, chatml_template(system))


_LLAMA3_2_1B = LanguageBackbone(
    "llama3_2_1b",
    "meta-llama/Llama-3.2-1B-Instruct",
    "9213176726f574b556790deb65791e0c5aa438b6",
    "llama",
    _shape(2048, 8192, 16, 32, 8)
    | {
        "vocab_size": 128256,
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
    llama3_template(),
)
#: Its FFN stands between two norms, and its embeddings are scaled by √640. Every sixth layer
#: attends to everything, the others to the last 512 tokens. Never instructed: the prompt is ours.
_GEMMA3_270M = LanguageBackbone(
    "gemma3_270m",
    "google/gemma-3-270m",
    "9b0cfec892e2bc2afd938c98eabe4e4a7b1e0ca1",
    "gemma3_text",
    _shape(640, 2048, 18, 4, 1)
    | {
        "vocab_size": 262144,
        "head_dim": 256,  # wider than hidden_size / num_attention_heads
        "max_position_embeddings": 32768,
        "sliding_window": 512,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    },
    question_template("<bos>", "<eos>"),
)
#: About two million weights, trained from scratch where no weights can be had.
TINY_STABLELM = LanguageBackbone(
    "tiny_stablelm",
    None,
    None,
    "stablelm",
    _shape(160, 448, 4, 5, 5)
    | {"max_position_embeddings": 512, "use_qkv_bias": True, "partial_rotary_factor": 0.5}
    # The square root of 1 / hidden_size. At transformers' 0.02, which suits many times the
    # width, attention starts all but even: yes/no questions were learned late, or by luck.
    | {"initializer_range": 0.08},
    chat_template("</s>"),
)

LANGUAGE_BACKBONES = {
    entry.name: entry
    for entry in (
        PHI2,
        STABLELM2,
        _qwen3(
            "qwen3_0_6b", "Qwen/Qwen3-0.6B", "c1899de289a04d12100db370d81485cdf75e47ca", 1024, 3072
        ),
        _qwen3(
            "qwen3_1_7b", "Qwen/Qwen3-1.7B", "70d244cc86ccca08cf5af4e1e306ecf908b1ad5e", 2048, 6144
        ),
        _smollm2(
            "135M", "12fd25f77366fa6b3b4b768ec3050bf629380bac", 100_000.0, 576, 1536, 30, 9, 3
        ),
        _smollm2(
            "360M", "a10cc1512eabd3dde888204e902eca88bddb4951", 100_000.0, 960, 2560, 32, 15, 5
        ),
        _smollm2(
            "1.7B", "31b70e2e869a7173562077fd711b654946d38674", 130_000.0, 2048, 8192, 24, 32, 32
        ),
        _LLAMA3_2_1B,
        _GEMMA3_270M,
        TINY_STABLELM,
    )
}
