"""Each family's prompt, word for word."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from medmoe.backbones.registry import LANGUAGE_BACKBONES, language_backbone

ASKED: dict[str, Any] = {
    "role": "user",
    "content": [{"type": "text", "text": "Why?"}, {"type": "image"}],
}
SMOLLM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
OPEN = {
    "qwen3_0_6b": "<|im_start|>user\n<image>\nWhy?<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "smollm2_360m": f"<|im_start|>system\n{SMOLLM}<|im_end|>\n"
    "<|im_start|>user\n<image>\nWhy?<|im_end|>\n<|im_start|>assistant\n",
    "llama3_2_1b": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
    "<image>\nWhy?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma3_270m": "<bos>Question: <image>\nWhy?\nAnswer:",
}
#: What an answer begins with, beyond the open prompt.
BEGIN = {"gemma3_270m": " "}
END = {
    "qwen3_0_6b": "<|im_end|>",
    "smollm2_360m": "<|im_end|>",
    "llama3_2_1b": "<|eot_id|>",
    "gemma3_270m": "<eos>",
}


def rendered(name: str, messages: list[dict[str, Any]], ask: bool) -> str:
    texts, _ = render_jinja_template(
        conversations=[messages],
        chat_template=language_backbone(name).chat_template,
        add_generation_prompt=ask,
    )
    return str(texts[0])


@pytest.mark.parametrize("name", OPEN)
def test_prompts_are_pinned(name: str) -> None:
    assert rendered(name, [ASKED], True) == OPEN[name]
    answered = [ASKED, {"role": "assistant", "content": "So."}]
    assert rendered(name, answered, False) == OPEN[name] + BEGIN.get(name, "") + "So." + END[name]


@pytest.mark.parametrize("name", LANGUAGE_BACKBONES)
def test_an_answered_prompt_begins_as_the_open_one(name: str) -> None:
    answered = [ASKED, {"role": "assistant", "content": [{"type": "text", "text": "So."}]}]
    assert rendered(name, answered, False).startswith(rendered(name, [ASKED], True))


@pytest.mark.parametrize("name", LANGUAGE_BACKBONES)
def test_the_image_stands_once_and_before_the_question(name: str) -> None:
    text = rendered(name, [ASKED], True)
    assert text.count("<image>\nWhy?") == text.count("<image>") == 1


def test_a_second_turn_follows_and_only_the_last_answer_opens_with_a_thought() -> None:
    turns = [ASKED, {"role": "assistant", "content": "So."}, {"role": "user", "content": "And?"}]
    assert rendered("qwen3_0_6b", turns, True) == (
        "<|im_start|>user\n<image>\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n"
        "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


@pytest.mark.parametrize("name", ["smollm2_135m", "qwen3_1_7b", "llama3_2_1b"])
def test_a_system_message_of_ones_own_takes_the_place_of_the_default(name: str) -> None:
    text = rendered(name, [{"role": "system", "content": "Be brief."}, ASKED], True)
    assert text.count("Be brief.") == text.count("system") == 1
    assert "SmolLM" not in text
