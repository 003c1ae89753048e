"""Requests as the official OpenAI client sends them, checked strictly.

What is neutral for a server that decodes greedily is taken (``seed``, ``temperature``, …), and so
is every field that is null or asks for nothing. What clients send by themselves (penalties, tools
that may be used, …) is left out and named in a warning; all else is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError
from pydantic_core import PydanticCustomError

from medmoe.data.intake.display import Plane
from medmoe.serving.json_body import read_json
from medmoe.serving.problems import ProblemError

Frame = Annotated[int, Field(ge=1, le=2**31 - 1)]
Number = Annotated[float, Field(ge=-1e9, le=1e9)]
Tokens = Annotated[int, Field(ge=1, le=2**63 - 1)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
#: What this server cannot do, and the values by which a client does not ask for it.
_BODY: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("audio", "conversation", "prediction", "previous_response_id",
                     "web_search_options"), ()),
    **dict.fromkeys(("function_call", "tool_choice"), ("none", "auto")),
    **dict.fromkeys(("chat_template_kwargs", "logit_bias"), ({},)),
    "background": (False,), "modalities": (["text"],), "skip_special_tokens": (True,),
    "top_logprobs": (0,),
}  # fmt: skip
#: What clients send by themselves: left out, with a warning unless it asks for nothing.
IGNORED: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("functions", "include", "tools"), ([],)),
    **dict.fromkeys(("frequency_penalty", "presence_penalty"), (0,)),
    **dict.fromkeys(("repeat_penalty", "repetition_penalty"), (1,)),
    **dict.fromkeys(("keep_alive", "mirostat", "mirostat_eta", "mirostat_tau", "num_batch",
                     "num_ctx", "num_gpu", "num_keep", "num_thread", "repeat_last_n", "tfs_z",
                     "typical_p", "use_mlock", "use_mmap"), ()),
    "parallel_tool_calls": (True, False), "reasoning": ({},), "store": (False,),
    "reasoning_effort": ("none", "medium"), "service_tier": ("auto", "default"),
    "think": (False,), "truncation": ("disabled",), "verbosity": ("medium",),
}  # fmt: skip
_MESSAGE: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("audio", "function_call", "tool_call_id"), ()),
    **dict.fromkeys(("annotations", "tool_calls"), ([],)),
    **dict.fromkeys(("reasoning_content", "refusal"), ("",)),
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(_Strict):
    """Words of a message."""

    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    """A picture as a data URL; addresses are refused."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(_Strict):
    """A picture inside the request."""

    type: Literal["image_url"]
    image_url: Annotated[
        ImageUrl, BeforeValidator(lambda given: {"url": given} if isinstance(given, str) else given)
    ]


class FileName(_Strict):
    """A picture that was uploaded before; a name of the client's is dropped."""

    file_id: str | None = None
    file_data: str | None = None
    filename: str | None = None


class FilePart(_Strict):
    """A picture by the id of its upload, or as a data URL in `file_data`."""

    type: Literal["file"]
    file: FileName


Part = Annotated[TextPart | ImagePart | FilePart, Field(discriminator="type")]


def _parts(given: Any) -> Any:
    """Return what a message says as its parts."""
    return [{"type": "text", "text": given}] if isinstance(given, str) else given


def _list(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


class Message(_Strict):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], Field(max_length=64), BeforeValidator(_parts)] = []
    name: str | None = None


class StreamOptions(_Strict):
    """What the end of a streamed answer tells."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class Options(_Strict):
    """The field ``medmoe`` of a chat request, which OpenAI's interface does not have.

    Attributes:
        evidence: Also explain the answer (alternatives, regions, counterfactuals); takes seconds.
        window: Center and width, or a CT preset's name, for DICOM and NIfTI.
        frame: Frame or slice, from 1.
        plane: Of a NIfTI volume, by default that of its acquisition.
    """

    evidence: bool = False
    window: str | Annotated[list[Number], Field(min_length=2, max_length=2)] | None = None
    frame: Frame | None = None
    plane: Plane | None = None

    def view(self) -> dict[str, Any]:
        """Return what is to be shown of a file, as `open_picture` takes it."""
        window = tuple(self.window) if isinstance(self.window, list) else self.window
        return {"window": window, "frame": self.frame, "plane": self.plane}


def _options(given: Any) -> dict[str, str]:
    """Return what a response format lets the model choose among, with the JSON of each."""
    if given == {"type": "text"}:
        return {}
    try:
        schema, key = given["json_schema"]["schema"], None
        parts, words = schema.get("$defs", {}), {"true": "yes", "false": "no"}
        if "properties" in schema:
            ((key, schema),) = schema["properties"].items()
        schema = parts.get(schema.get("$ref", "").removeprefix("#/$defs/"), schema)
        values = (True, False) if schema.get("type") == "boolean" else schema["enum"]
        plain = all(isinstance(one, str | int | float) for one in values)
        said = {
            words.get(json.dumps(one), str(one)): json.dumps(
                one if key is None else {key: one}, ensure_ascii=False
            )
            for one in values
        }
        if plain and 2 <= len(said) == len(values) <= 64 and all(map(str.strip, said)):
            return said
    except (LookupError, TypeError, ValueError, AttributeError):
        pass
    raise PydanticCustomError(
        "no_options", 'send {"type": "text"}, or a json_schema that leaves one enum of 2 to 64 '
        "values or one boolean open, alone or as the one property of an object",
    )  # fmt: skip


class ChatBody(_Strict):
    """The body of `POST /v1/chat/completions`; what of it was left out is in ``_ignored``."""

    _ignored: list[str] = PrivateAttr([])
    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    stop: Annotated[list[Stop], Field(max_length=4), BeforeValidator(_list)] = []
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: int | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=8)] = 1
    logprobs: bool = False
    response_format: Annotated[dict[str, str], BeforeValidator(_options, dict[str, Any])] = {}
    seed: int | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = None
    medmoe: Options = Options()


def read_chat(data: bytes, as_chat: Callable[[dict[str, Any]], Any] = dict) -> ChatBody:
    """Return the body of a chat request, which `as_chat` makes of another interface's.

    Raises:
        ProblemError: It is not as `ChatBody` says; the first fault is named.
    """
    content, ignored = _without_nulls(read_json(data)), list[str]()
    if isinstance(content, dict):
        content = as_chat(content)
        ignored += _asked_for(content, IGNORED)
        _leave_out(content, _BODY, "")
        turns = content.get("messages")
        for number, turn in enumerate(turns if isinstance(turns, list) else ()):
            if isinstance(turn, dict):
                _leave_out(turn, _MESSAGE, f"messages.{number}.")
    try:
        body = ChatBody.model_validate(content)
        body._ignored = ignored
        return body
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        # Not the kind of a part, which pydantic puts behind its number. Keys are the client's own
        # words: they are cut, and what is not to be printed is escaped.
        where = fault["loc"][:4] + fault["loc"][4 + (fault["loc"][2:3] == ("content",)) :]
        place = ".".join(ascii(part).strip("'")[:40] for part in where)[:120] or None
        unknown = fault["type"] == "extra_forbidden"
        message = "this server does not know that field" if unknown else fault["msg"][:300].lower()
        code = "unknown_parameter" if unknown else "bad_parameter"
        raise ProblemError(400, code, f"{place or 'the body'}: {message}", param=place) from None


def _without_nulls(value: Any) -> Any:
    """Return a value in whose objects nothing is null: null asks for nothing."""
    if isinstance(value, list):
        return [_without_nulls(part) for part in value]
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return value


def _leave_out(content: dict[str, Any], neutral: Mapping[str, tuple[Any, ...]], at: str) -> None:
    """Take the fields that ask for nothing out of an object.

    Raises:
        ProblemError: One asks for something; it and its value are named.
    """
    for key, value in _asked_for(content, neutral).items():
        fix = f", or send {json.dumps(neutral[key][0])}" if neutral[key] else ""
        raise ProblemError(
            400, "bad_parameter", f"{at}{key}: this server cannot do what "
            f"{json.dumps(value)[:60]} asks for; leave it out{fix}", param=f"{at}{key}",
        )  # fmt: skip


def _asked_for(content: dict[str, Any], neutral: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """Take some fields out of an object; return those that ask for something."""
    taken = {key: content.pop(key) for key in [key for key in content if key in neutral]}
    # `True` equals 1 in Python, not in JSON.
    return {
        key: value
        for key, value in taken.items()
        if all(value != n or isinstance(value, bool) != isinstance(n, bool) for n in neutral[key])
    }
