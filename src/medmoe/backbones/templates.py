"""The conversation format of the method's language models, as Jinja chat templates."""

from __future__ import annotations

_TEMPLATE = """\
{{%- for message in messages -%}}
{{%- if loop.first and message['role'] != 'system' %}}{system}{{% endif -%}}
{{%- if message['role'] == 'assistant' %}}ASSISTANT:{{{{ ' ' }}}}
{{%- elif message['role'] == 'user' %}}USER:{{{{ ' ' }}}}{{% endif -%}}
{{%- if message['content'] is string -%}}{{{{ message['content'] }}}}
{{%- else -%}}
{{%- for part in message['content'] -%}}
{{%- if part['type'] == 'image' -%}}{{{{ '<image>\\n' }}}}{{%- endif -%}}
{{%- endfor -%}}
{{%- for part in message['content'] -%}}
{{%- if part['type'] == 'text' -%}}{{{{ part['text'] }}}}{{%- endif -%}}
{{%- endfor -%}}
{{%- endif -%}}
{{%- if message['role'] == 'assistant' %}}{{{{ '{end}' }}}}{{% else %}}{{{{ ' ' }}}}{{% endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}ASSISTANT:{{%- endif -%}}
"""

ASSISTANT_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. "
)


def chat_template(end: str, system: str = "") -> str:
    r"""Return a template giving ``{system}USER: <image>\n{question} ASSISTANT: {answer}{end}``.

    Args:
        end: The token that ends an answer.
        system: Opening text, with its trailing space.
    """
    quoted = "{{ " + repr(system) + " }}" if system else ""
    return _TEMPLATE.format(system=quoted, end=end)
