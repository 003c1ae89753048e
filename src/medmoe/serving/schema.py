"""Requests as the official OpenAI client sends them, checked strictly.

What is neutral for a server that decodes greedily is taken (``seed``, ``temperature``, …); what it
cannot do (tools, several choices, log-probabilities, …) is refused by name, never ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medmoe.data.intake.display import Plane
from medmoe.serving.json_body import read_json
from medmoe.serving.problems import ProblemError

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
Frame = Annotated[int, Field(ge=1, le=2**31 - 1)]
Zero = Annotated[float, Field(ge=0, le=0)]
Number = Annotated[float, Field(ge=-1e9, le=1e9)]


class TextPart(BaseModel):
    """Words of a message."""

    model_config = _STRICT
    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    """A picture as a data URL; addresses are refused."""

    model_config = _STRICT
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(BaseModel):
    """A picture inside the request."""

    model_config = _STRICT
    type: Literal["image_url"]
    image_url: ImageUrl


class FileName(BaseModel):
    """A picture that was uploaded before; a name of the client's is dropped."""

    model_config = _STRICT
    file_id: str | None = None
    file_data: str | None = None
    filename: str | None = None


class FilePart(BaseModel):
    """A picture by the id of its upload, or as a data URL in `file_data`."""

    model_config = _STRICT
    type: Literal["file"]
    file: FileName


Part = Annotated[TextPart | ImagePart | FilePart, Field(discriminator="type")]


class Message(BaseModel):
    """One message of the conversation."""

    model_config = _STRICT
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(max_length=64)] | None = None
    name: str | None = None
    refusal: None = None


class StreamOptions(BaseModel):
    """What the end of a streamed answer tells."""

    model_config = _STRICT
    include_usage: bool = False
    include_obfuscation: bool | None = None


class Options(BaseModel):
    """The field ``medmoe`` of a chat request, which OpenAI's interface does not have.

    Attributes:
        evidence: Also explain the answer (alternatives, regions, counterfactuals); takes seconds.
        window: Center and width, or a CT preset's name, for DICOM and NIfTI.
        frame: Frame or slice, from 1.
        plane: Of a NIfTI volume, by default that of its acquisition.
    """

    model_config = _STRICT
    evidence: bool = False
    window: str | Annotated[list[Number], Field(min_length=2, max_length=2)] | None = None
    frame: Frame | None = None
    plane: Plane | None = None


class ChatBody(BaseModel):
    """The body of `POST /v1/chat/completions`."""

    model_config = _STRICT
    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logprobs: Literal[False] | None = None
    stop: Annotated[list[str], Field(max_length=0)] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    medmoe: Options = Options()


def read_chat(data: bytes) -> ChatBody:
    """Return the body of a chat request.

    Raises:
        ProblemError: It is not as `ChatBody` says; the first fault is named.
    """
    content = read_json(data)
    try:
        return ChatBody.model_validate(content)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        # Keys are the client's own words: they are cut, and never repeated beyond the schema's.
        place = ".".join(str(part)[:40] for part in fault["loc"])[:120] or None
        code = "unknown_parameter" if fault["type"] == "extra_forbidden" else "bad_parameter"
        named = place if code == "bad_parameter" else "a field that this server does not know"
        message = f"{named or 'the body'}: {fault['msg'].lower()}"
        raise ProblemError(400, code, message, param=place) from None
