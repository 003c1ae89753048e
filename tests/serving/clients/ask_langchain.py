"""LangChain's client, run by `test_clients` in a Python that has it: ADDRESS PICTURE."""

import base64
import json
import sys
from pathlib import Path
from typing import Any, Literal

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Closed(BaseModel):
    """Whether there is one."""

    answer: Literal["yes", "no"]


address, picture = sys.argv[1:]
image = base64.b64encode(Path(picture).read_bytes()).decode()
parts: list[Any] = [
    {"type": "text", "text": "Is there a mass?"},
    {"type": "image", "base64": image, "mime_type": "image/png"},
]
asked = [HumanMessage(parts)]
how: dict[str, Any] = {"base_url": address, "api_key": "none", "model": "tiny", "max_retries": 0}
chat, responses = ChatOpenAI(**how), ChatOpenAI(**how, use_responses_api=True)
told = {
    "chat": chat.invoke(asked).text,
    "streamed": "".join(piece.text for piece in chat.stream(asked)),
    "responses": responses.invoke(asked).text,
    "responses_streamed": "".join(piece.text for piece in responses.stream(asked)),
    "chosen": chat.with_structured_output(Closed).invoke(asked).answer,
}
assert told["chosen"] == responses.with_structured_output(Closed).invoke(asked).answer
sys.stdout.write(json.dumps(told))
