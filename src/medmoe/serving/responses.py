"""OpenAI's responses, made of chat: a request becomes a chat request, its answer a response.

Nothing is kept, so that a conversation is sent whole, and there are no tools.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from medmoe.serving.schema import ChatBody, read_chat

_TEXT = {"format": "response_format", "verbosity": "verbosity", "text": "text"}


def read_response(data: bytes) -> ChatBody:
    """Return the body of a request for a response.

    Raises:
        ProblemError: As with `read_chat`, in its names of the fields.
    """
    return read_chat(data, _as_chat)


def _as_chat(given: dict[str, Any]) -> dict[str, Any]:
    items, text = given.pop("input", []), given.pop("text", {})
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    if isinstance(items, list):
        items = [_message(item) for item in items]
        if words := given.pop("instructions", ""):
            items.insert(0, {"role": "system", "content": words})
    for key, value in text.items() if isinstance(text, dict) else [("text", text)]:
        given[_TEXT.get(key, f"text.{key}")] = value
    match given.get("response_format"):
        case {"type": "json_schema", **schema}:
            given["response_format"] = {"json_schema": schema}
    if "max_output_tokens" in given:
        given["max_completion_tokens"] = given.pop("max_output_tokens")
    return given | {"messages": items, "stream_options": {"include_usage": True}}


def _message(item: Any) -> Any:
    if not isinstance(item, dict):
        return item
    if item.get("type", "message") != "message":
        return {"role": item["type"]}  # of a tool, which is then named
    content = item.get("content", [])
    parts = [_part(part) for part in content] if isinstance(content, list) else content
    return {"role": item.get("role"), "content": parts}


def _part(part: Any) -> Any:
    match part:
        case {"type": "input_text" | "output_text", "text": text}:
            return {"type": "text", "text": text}
        case {"type": "input_image", "image_url": url}:
            return {"type": "image_url", "image_url": url}
        case {"type": "input_image" | "input_file", **file}:
            return {"type": "file", "file": {k: v for k, v in file.items() if k != "detail"}}
    return part


def _response(chat: dict[str, Any], status: str, *output: dict[str, Any]) -> dict[str, Any]:
    used = chat.get("usage")
    cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
    return {
        "id": f"resp_{chat['id'][9:]}", "object": "response", "created_at": chat["created"],
        "status": status, "model": chat["model"], "output": output, "error": None,
        "incomplete_details": cut, "instructions": None, "metadata": {}, "temperature": None,
        "top_p": None, "tools": [], "tool_choice": "none", "parallel_tool_calls": False,
        "store": False, "medmoe": chat.get("medmoe"),
        "usage": used and {
            "input_tokens": used["prompt_tokens"], "output_tokens": used["completion_tokens"],
            "total_tokens": used["total_tokens"],
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        },
    }  # fmt: skip


def _item(chat: dict[str, Any], status: str, *parts: dict[str, Any]) -> dict[str, Any]:
    name = f"msg_{chat['id'][9:]}"
    return {
        "id": name, "type": "message", "role": "assistant", "status": status, "content": parts,
    }  # fmt: skip


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def whole(chat: dict[str, Any]) -> dict[str, Any]:
    """Return a chat answer as a response."""
    choice = chat["choices"][0]
    status = "completed" if choice["finish_reason"] == "stop" else "incomplete"
    return _response(chat, status, _item(chat, status, _text(choice["message"]["content"])))


async def events(chunks: AsyncGenerator[dict[str, Any]]) -> AsyncGenerator[bytes]:
    """Yield the events of a response from the chunks of a chat answer."""
    count, text, all_of = 0, "", dict[str, Any]()

    def event(kind: str, **more: Any) -> bytes:
        nonlocal count
        content = {"type": kind, "sequence_number": count, **more}
        count += 1
        return f"event: {kind}\ndata: {json.dumps(content, allow_nan=False)}\n\n".encode()

    async with aclosing(chunks):
        async for chunk in chunks:
            if "error" in chunk:
                yield event("error", **chunk, **chunk["error"] | {"type": "error"})
                return
            if not all_of:
                began, item = _response(chunk, "in_progress"), _item(chunk, "in_progress")
                at = {"item_id": item["id"], "output_index": 0, "content_index": 0}
                yield event("response.created", response=began)
                yield event("response.in_progress", response=began)
                yield event("response.output_item.added", output_index=0, item=item)
                yield event("response.content_part.added", **at, part=_text(""))
            all_of |= chunk
            for choice in chunk["choices"][:1]:
                if new := choice["delta"].get("content"):
                    text += new
                    yield event("response.output_text.delta", **at, delta=new, logprobs=[])
                end = choice["finish_reason"]
    all_of["choices"] = [{"message": {"content": text}, "finish_reason": end}]
    response = whole(all_of)
    (item,) = response["output"]
    yield event("response.output_text.done", **at, text=text, logprobs=[])
    yield event("response.content_part.done", **at, part=item["content"][0])
    yield event("response.output_item.done", output_index=0, item=item)
    yield event(f"response.{response['status']}", response=response)
