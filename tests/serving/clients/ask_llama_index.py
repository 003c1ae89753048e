"""LlamaIndex's client, run by `test_clients` in a Python that has it: ADDRESS PICTURE."""

import json
import sys
from pathlib import Path
from typing import Any, Literal

from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.core.prompts import ChatPromptTemplate
from llama_index.llms.openai_like import OpenAILike, OpenAILikeResponses
from pydantic import BaseModel


class Closed(BaseModel):
    """Whether there is one."""

    answer: Literal["yes", "no"]


address, picture = sys.argv[1:]
image = ImageBlock(image=Path(picture).read_bytes(), image_mimetype="image/png")
asked = [ChatMessage(role="user", blocks=[TextBlock(text="Is there a mass?"), image])]
how: dict[str, Any] = {
    "model": "tiny", "api_base": address, "api_key": "none", "is_chat_model": True,
    "context_window": 256, "max_retries": 0,
}  # fmt: skip
chat = OpenAILike(**how, should_use_structured_outputs=True)
responses = OpenAILikeResponses(**how)
told = {
    "chat": chat.chat(asked).message.content,
    "streamed": list(chat.stream_chat(asked))[-1].message.content,
    "responses": responses.chat(asked).message.content,
    "responses_streamed": "".join(piece.delta for piece in responses.stream_chat(asked)),
    "chosen": chat.structured_predict(Closed, ChatPromptTemplate(message_templates=asked)).answer,
}
sys.stdout.write(json.dumps(told))
