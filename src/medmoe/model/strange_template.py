"""A chat template from elsewhere is rendered once in a process whose time and memory are bounded.

A template is a program: loops in loops, or a power of large numbers, hang whatever renders it.
"""

from __future__ import annotations

import subprocess
import sys

from medmoe.backbones.registry import LANGUAGE_BACKBONES
from medmoe.errors import CheckpointError

_SECONDS, _BYTES = 5, 2**31
_OUT_OF_MEMORY = 3
_PROGRAM = f"""
import resource, sys
for limit, most in ((resource.RLIMIT_CPU, {_SECONDS}), (resource.RLIMIT_AS, {_BYTES})):
    resource.setrlimit(limit, (most, most))
from transformers.utils.chat_template_utils import render_jinja_template
question = {{"role": "user", "content": [{{"type": "image"}}, {{"type": "text", "text": "why?"}}]}}
turns = [question, {{"role": "assistant", "content": "because"}}, question]
try:
    render_jinja_template(
        conversations=[turns], chat_template=sys.stdin.read(), add_generation_prompt=True
    )
except MemoryError:
    sys.exit({_OUT_OF_MEMORY})
except Exception:
    pass  # whoever renders it here will say what is wrong
"""


def check_template(template: str | None) -> None:
    """Refuse a chat template that takes too long, or too much memory; our own ones are known.

    Raises:
        CheckpointError: It needs more than 5 s of processor time, or 2 GiB.
    """
    ours = {backbone.chat_template for backbone in LANGUAGE_BACKBONES.values()}
    if not template or template in ours:
        return
    tried = subprocess.run(
        [sys.executable, "-c", _PROGRAM], input=template.encode(), capture_output=True, check=False
    )
    if tried.returncode < 0 or tried.returncode == _OUT_OF_MEMORY:
        raise CheckpointError(
            f"its chat template needs more than {_SECONDS} s or {_BYTES // 2**30} GiB to be "
            "rendered; give a model with another"
        )
