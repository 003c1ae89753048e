"""The conversation formats of the language models, as Jinja chat templates.

Each format puts a message's images first, then its words, and renders an answered conversation as
the open one (with ``add_generation_prompt``) followed by the answer and the token that ends it: a
model is trained on exactly what it is asked with.
"""

from __future__ import annotations

# What a message says, given as a string or as parts.
_CONTENT = """\
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{ '<image>\\n' }}{%- endif -%}
{%- endfor -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
"""

_PLAIN = """\
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' %}{{ SYSTEM }}{% endif -%}
{%- if message['role'] == 'assistant' %}ASSISTANT:{{ ' ' }}
{%- elif message['role'] == 'user' %}USER:{{ ' ' }}{% endif -%}
CONTENT
{%- if message['role'] == 'assistant' %}{{ END }}{% else %}{{ ' ' }}{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}ASSISTANT:{%- endif -%}
"""

_QUESTION = """\
{{- START -}}
{%- for message in messages -%}
{%- if not loop.first %}{{ '\\n' }}{% endif -%}
{%- if message['role'] == 'assistant' %}Answer:{{ ' ' }}
{%- elif message['role'] == 'user' %}Question:{{ ' ' }}{% endif -%}
CONTENT
{%- if message['role'] == 'assistant' %}{{ END }}{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '\\nAnswer:' }}{%- endif -%}
"""

# The line break stands before a message, not after it, so that an answer's last token is its end.
_CHATML = """\
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}{{ SYSTEM }}{%- endif -%}
{%- if not loop.first -%}{{ '\\n' }}{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' and loop.last -%}{{ OPENING }}{%- endif -%}
CONTENT
{{- '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '\\n<|im_start|>assistant\\n' + OPENING }}{%- endif -%}
"""

_LLAMA3 = """\
{{- '<|begin_of_text|>' -}}
{%- for message in messages -%}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}
CONTENT
{{- '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""

# A template of words only: it is given each message as one text, the image's placeholder in it.
_IMAGES_FIRST = """\
{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- set text -%}
CONTENT
{%- endset -%}
{%- set flat.messages = flat.messages + [{'role': message['role'], 'content': text}] -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""

ASSISTANT_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. "
)

#: How Qwen3 begins an answer when it is not to think: an empty thought.
NO_THINKING = "<think>\n\n</think>\n\n"


def chat_template(end: str, system: str = "") -> str:
    r"""Return a template giving ``{system}USER: <image>\n{question} ASSISTANT: {answer}{end}``.

    Args:
        end: The token that ends an answer.
        system: Opening text, with its trailing space.
    """
    return _filled(_PLAIN, SYSTEM=system, END=end)


def chatml_template(system: str = "", opening: str = "") -> str:
    r"""Return ChatML: ``<|im_start|>user\n<image>\n{question}<|im_end|>``, then the answer.

    Args:
        system: What a system message says where the conversation has none; empty for no message.
        opening: What stands before the answer, e.g. `NO_THINKING`.
    """
    first = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return _filled(_CHATML, SYSTEM=first, OPENING=opening)


def with_images(template: str) -> str:
    """Return a language model's own template, which knows words only, with images before them."""
    return _filled(_IMAGES_FIRST) + template


def question_template(start: str, end: str) -> str:
    r"""Return ``{start}Question: <image>\n{question}\nAnswer: {answer}{end}``.

    For a model that was never instructed: it goes on with what reads like an exercise.
    """
    return _filled(_QUESTION, START=start, END=end)


def llama3_template() -> str:
    """Return the header format of Llama 3.

    Differs from Meta's own template: without the system message that holds today's date, since a
    prompt that changes by the day gives answers that cannot be reproduced.
    """
    return _filled(_LLAMA3)


def _filled(template: str, **texts: str) -> str:
    """Return a template with its words in capitals replaced by quoted texts."""
    for name, text in texts.items():
        template = template.replace(name, repr(text))
    return template.replace("CONTENT\n", _CONTENT)
