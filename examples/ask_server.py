"""Ask `medmoe serve` about a picture with OpenAI's client: a streamed answer, then a follow-up.

    medmoe serve runs/demo/model &
    python examples/ask_server.py http://127.0.0.1:8000/v1 runs/demo/examples/ct.png "Which organ?"

Needs `pip install openai`; the token of the server, if it has one, in $OPENAI_API_KEY.
Research use only, not a medical device.
"""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path
from typing import Any

import openai


def main(address: str, picture: str, question: str, follow_up: str = "Is it normal?") -> None:
    client = openai.OpenAI(base_url=address, api_key=os.environ.get("OPENAI_API_KEY", "none"))
    model = next(iter(client.models.list())).id
    image = base64.b64encode(Path(picture).read_bytes()).decode()
    # The server looks at the bytes: the type may be a general one.
    url = f"data:application/octet-stream;base64,{image}"
    first = [
        {"type": "text", "text": question},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    messages: list[Any] = [{"role": "user", "content": first}]
    answer = ""
    for chunk in client.chat.completions.create(model=model, messages=messages, stream=True):
        for choice in chunk.choices:
            answer += choice.delta.content or ""
            print(choice.delta.content or "", end="", flush=True)
    print()

    messages += [
        {"role": "assistant", "content": answer},
        {"role": "user", "content": follow_up},
    ]
    reply: Any = client.chat.completions.create(model=model, messages=messages)
    print(reply.choices[0].message.content)
    if (confidence := reply.medmoe["confidence"]) is not None:  # None about a flat picture
        print(f"confidence: {confidence:.2f} (not calibrated)")
    print(reply.medmoe["notice"])


if __name__ == "__main__":
    main(*sys.argv[1:])
