"""`POST /v1/chat/completions`: a conversation in, an answer out, whole or as a stream of events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from medmoe.data.images import Picture
from medmoe.data.intake.facts import ImageFacts
from medmoe.errors import MedMoeError
from medmoe.inference.answer import Answer, all_warnings, told_confidence
from medmoe.inference.chat import ChatChunk, ChatRequest, Turn
from medmoe.serving.chat_engine import no_evidence
from medmoe.serving.pictures import pictures_of
from medmoe.serving.problems import ProblemError, check_type, problem_of
from medmoe.serving.schema import ChatBody, Message, TextPart, read_chat
from medmoe.serving.service import Record, Service
from medmoe.serving.settings import NOTICE, ServerSettings
from medmoe.serving.transport import Stream

_SYSTEM = ("system", "developer")


@dataclass(slots=True)
class _Call:
    """One request, while it is answered."""

    service: Service
    id: str
    body: ChatBody
    request: ChatRequest
    pictures: tuple[Picture, ...]
    record: Record
    started: float
    ends: float  # by the event loop's clock
    warnings: list[str]
    created: int = field(default_factory=lambda: int(time.time()))


async def complete(
    service: Service,
    request: Request,
    read: Callable[[bytes], ChatBody] = read_chat,
    whole: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    events: Callable[[AsyncGenerator[dict[str, Any]]], AsyncGenerator[bytes]] | None = None,
) -> Response:
    """Answer a request that `medmoe.serving.service.Admission` let in.

    Another interface makes a chat request of its own, and its answer, or a stream's, of chat's.

    Raises:
        ProblemError: It is refused.
        MedMoeError: The same, by the engine or the decoder.
    """
    check_type(request, "application/json")
    data = await request.body()
    service.check_open()  # others came while its body did
    started = time.perf_counter()
    # Large bodies are mostly a picture: reading them would hold up everybody else.
    body = await asyncio.to_thread(read, data) if len(data) > 2**18 else read(data)
    call = await _call(service, request, body, started)
    told = {"x-medmoe-warning": "; ".join(call.warnings)} if call.warnings else {}
    if body.stream:
        first = await anext(rest := _chunks(call))  # a refusal is still a status
        return Stream((events or _lines)(_chunks_of(call, first, rest)), rest, headers=told)
    answer = await unless_left(request, _whole(call))
    call.record.answered()
    return JSONResponse(whole(answer), headers=told)


async def _call(service: Service, request: Request, body: ChatBody, started: float) -> _Call:
    if body.model != service.engine.facts.id:
        raise ProblemError(404, "model_not_found", "no such model; see /v1/models", param="model")
    if body.medmoe.evidence and not service.engine.explains:
        raise no_evidence()
    settings = service.settings
    turns, turn_of = turns_of(body.messages, settings)
    wanted = body.max_completion_tokens or body.max_tokens or settings.usual_new_tokens
    warnings = _warnings(body, wanted, settings)
    wanted = min(wanted, settings.max_new_tokens)
    most, view = service.engine.most_images, body.medmoe.view()
    sent, older = await asyncio.to_thread(pictures_of, body.messages, service.uploads, most)
    if older:
        warnings.append(f"{older} older images are left out: here at most {most} are read together")
    if len(sent) != 1 and any(wanted is not None for wanted in view.values()):
        raise ProblemError(
            400, "bad_window", "window, frame and plane need one image", param="medmoe"
        )  # fmt: skip
    if body.medmoe.evidence and (len(sent) > 1 or body.response_format):
        said = "evidence is on an answer in words about one image"
        raise ProblemError(400, "bad_parameter", said, param="medmoe")
    open_one = service.decoding.open
    pictures = [await open_one(source.data, hint=source.hint, **view) for _, source in sent]
    images = [picture.image for picture in pictures]
    # The first stands before the first words, as in training; the others before those sent along.
    further = [(turn_of[message], image) for (message, _), image in zip(sent, images, strict=True)]
    chat = ChatRequest(
        turns, images[0] if images else None, wanted, tuple(body.stop), tuple(further[1:]),
        tuple(body.response_format), body.logprobs,
    )  # fmt: skip
    record: Record = request.state.record
    record.image = service.image_hash(chat.images)
    name = request.state.request_id.replace("req-", "chatcmpl-")
    ends = request.state.ends
    return _Call(service, name, body, chat, tuple(pictures), record, started, ends, warnings)


def _warnings(body: ChatBody, wanted: int, settings: ServerSettings) -> list[str]:
    """Return what is done otherwise than a client may think."""
    warnings = []
    if body._ignored:
        warnings.append(f"ignored: {', '.join(body._ignored)}")
    if body.n > 1:
        warnings.append(f"n {body.n}: the choices are one answer, as decoding is greedy")
    if wanted > settings.max_new_tokens:
        warnings.append(f"max_tokens {wanted} is lowered to {settings.max_new_tokens}")
    if any(m.role in _SYSTEM and "".join(_words(m)).strip() for m in body.messages):
        warnings.append(
            "the system message is dropped: the model was trained without such words"
            if settings.drop_system
            else "the system message is read as the user's first words: the model was trained "
            "without such words, and its answer and confidence may be worse; leave it out"
        )
    return warnings


def _chunks(call: _Call) -> AsyncGenerator[ChatChunk]:
    left = max(call.ends - asyncio.get_running_loop().time(), 0.0)
    return call.service.stream(call.request, call.started, left)


async def _whole(call: _Call) -> dict[str, Any]:
    text, last = "", None
    async with aclosing(_chunks(call)) as chunks:
        async for last in chunks:
            text += last.text
    assert last is not None
    message = {
        "role": "assistant",
        "content": call.body.response_format.get(text, text),
        "refusal": None,
    }
    return _head(call, "chat.completion") | {
        "choices": _choices(call, last, message=message),
        "usage": _usage(last),
        "medmoe": await _behind(call, last.answer),
    }


async def _chunks_of(
    call: _Call, first: ChatChunk, rest: AsyncGenerator[ChatChunk]
) -> AsyncGenerator[dict[str, Any]]:
    """Yield the answer in chunks; an error after the first word is the last one."""
    head, written = _head(call, "chat.completion.chunk"), call.body.response_format

    def said(chunk: ChatChunk, **more: Any) -> dict[str, Any]:
        delta = more | {"content": written.get(chunk.text, chunk.text)}
        return head | {"choices": _choices(call, None, delta=delta)}

    try:
        yield said(first, role="assistant")
        last = first
        if first.finish is None:
            async for last in rest:
                if last.text:
                    yield said(last)
        await rest.aclose()  # the place is free while the answer is explained
        async with asyncio.timeout_at(call.ends):
            behind = await _behind(call, last.answer)
        yield head | {"choices": _choices(call, last, delta={}), "medmoe": behind}
        if call.body.stream_options and call.body.stream_options.include_usage:
            yield head | {"choices": [], "usage": _usage(last)}
        call.record.answered()  # before the last line: clients hang up at it
    except (MedMoeError, TimeoutError) as error:
        call.record.refused(error)
        yield problem_of(error).to_json()


async def _lines(chunks: AsyncGenerator[dict[str, Any]]) -> AsyncGenerator[bytes]:
    async with aclosing(chunks):
        async for chunk in chunks:
            yield f"data: {json.dumps(chunk, allow_nan=False)}\n\n".encode()
    yield b"data: [DONE]\n\n"


async def unless_left(request: Request, work: Any) -> Any:
    """Return what some work gives, and stop it when the client leaves."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ProblemError(499, "client_left", "the client left")
        return task.result()
    finally:
        for one in (task, leaving):
            one.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def _behind(call: _Call, answer: Answer | None) -> dict[str, Any]:
    """Return our extra field: what is behind the answer, and what it is not."""
    facts: list[ImageFacts | None] = [picture.facts for picture in call.pictures] or [None]
    routings = [answer.routing, *answer.further] if answer else []
    told: list[dict[str, Any]] = []
    for fact, routing in zip_longest(facts, routings):
        told.append({"routing": asdict(routing) if routing else None})
        told[-1]["picture"] = asdict(fact) if fact else None
    confidence = told_confidence(answer.confidence, *facts) if answer else None
    behind: dict[str, Any] = {
        "notice": NOTICE,
        "decoding": "greedy",
        "confidence": confidence,
        **told[0],
        "warnings": call.warnings + all_warnings(facts, routings),
    }
    if told[1:]:
        behind["further"] = told[1:]
    if answer and answer.options:
        behind["options"] = None if confidence is None else dict(answer.options)
    if call.body.medmoe.evidence:
        behind["evidence"] = None
        if call.pictures:
            question = call.request.turns[-1].text
            behind["evidence"] = await call.service.explain(call.pictures[0].image, question)
    return behind


def _head(call: _Call, kind: str) -> dict[str, Any]:
    model = call.service.engine.facts
    return {
        "id": call.id, "object": kind, "created": call.created, "model": model.id,
        "system_fingerprint": model.sha256[:16],
    }  # fmt: skip


def _choices(call: _Call, last: ChatChunk | None, **said: Any) -> list[dict[str, Any]]:
    """Return what was said as the choices; with the last piece why it ended, and each token."""
    tokens = [
        {"token": text, "logprob": log_prob, "bytes": list(text.encode()), "top_logprobs": []}
        for text, log_prob in (last.tokens if last else ())
    ]
    said["logprobs"] = {"content": tokens, "refusal": None} if tokens else None
    said["finish_reason"] = last.finish if last else None
    return [{"index": i} | said for i in range(call.body.n)]


def _usage(last: ChatChunk) -> dict[str, int]:
    return {
        "prompt_tokens": last.prompt_tokens,
        "completion_tokens": last.completion_tokens,
        "total_tokens": last.prompt_tokens + last.completion_tokens,
    }


def turns_of(
    messages: Sequence[Message], settings: ServerSettings
) -> tuple[tuple[Turn, ...], list[int]]:
    """Return the turns, and of each message the turn that its images stand in: one of the user's.

    What system messages say stands before the user's first words, or nowhere.

    The models are trained without system messages of a user's, so theirs are words like others.
    Messages of one role in a row are one turn, and so are those around an answer without a word;
    an image's place in its message does not matter, as it stands before the words.

    Raises:
        ProblemError: There are no words, too many, or the user is not first and last.
    """
    turns: list[tuple[str, list[str]]] = []
    before: list[str] = []
    turn_of: list[int] = []
    for message in messages:
        words = _words(message)
        if message.role in _SYSTEM:
            before += [] if settings.drop_system else words
        elif message.role == "assistant" and not "".join(words).strip():
            pass  # an answer without a word, sent back
        elif turns and turns[-1][0] == message.role:
            turns[-1][1].extend(words)
        else:
            turns.append((message.role, words))
        place = max(len(turns) - 1, 0)
        turn_of.append(place + place % 2)
    if not turns or turns[0][0] != "user" or turns[-1][0] != "user":
        raise _bad("bad_conversation", "the user's messages must be the first and the last")
    turns[0] = ("user", before + turns[0][1])
    joined = tuple(
        Turn("user" if role == "user" else "assistant", "\n".join(words)) for role, words in turns
    )
    _check(joined, settings)
    return joined, turn_of


def _check(turns: Sequence[Turn], settings: ServerSettings) -> None:
    if not turns[-1].text.strip():
        raise _bad("no_question", "the last message has no words; ask something")
    if len(turns) > settings.max_turns:
        raise _bad("too_many_turns", f"at most {settings.max_turns} turns; begin anew")
    length = sum(len(turn.text) for turn in turns)
    if length > settings.max_text:
        limit = f"{settings.max_text:,}"
        raise _bad(
            "prompt_too_long", f"{length:,} characters of text; at most {limit} are accepted"
        )


def _words(message: Message) -> list[str]:
    return [part.text for part in message.content if isinstance(part, TextPart)]


def _bad(code: str, message: str) -> ProblemError:
    return ProblemError(400, code, message, param="messages")
