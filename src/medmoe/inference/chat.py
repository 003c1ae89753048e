"""A conversation about one image: its turns, and the answer to the last of them, word by word.

`stream_chat` answers one conversation, greedily, and gives each piece of text as soon as it can no
longer change; closing it ends the answer before the next token. For a conversation of one turn it
gives the very tokens, confidence and routing of `MedMoe.answer`. It does no batching: that is a
server's matter.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image

from medmoe.errors import ConfigError
from medmoe.inference.answer import Answer, Routing, read_routings
from medmoe.inference.engine import MedMoe
from medmoe.routing.trace import record_routing

#: What a tokenizer writes for a sign whose bytes have not all come yet.
_UNFINISHED = "\ufffd"


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side said."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A conversation to go on with.

    Attributes:
        turns: User and assistant by turns; the first and the last are the user's.
        image: Upright RGB, as `open_picture` gives it; it stands before the first turn.
        max_new_tokens: Longest answer.
    """

    turns: tuple[Turn, ...]
    image: Image.Image | None = None
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        """Refuse what is no conversation.

        Raises:
            ConfigError: It has no question to answer, or the sides do not take turns.
        """
        roles = [turn.role for turn in self.turns]
        if len(roles) % 2 == 0 or roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
            raise ConfigError(
                f"the turns are {', '.join(roles) or 'none'}; user and assistant must take turns, "
                "and the user be first and last"
            )
        if not all(turn.text.strip() for turn in self.turns):
            raise ConfigError("a turn of the conversation is empty; leave it out or fill it")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens ({self.max_new_tokens}) must be at least 1")


@dataclass(frozen=True, slots=True)
class ChatChunk:
    """A piece of an answer.

    Attributes:
        finish: With the last piece: ``stop`` where the model ended by itself, ``length`` where the
            longest answer cut it.
        answer: With the last piece: the whole of it, its confidence and routing.
    """

    text: str
    finish: Literal["stop", "length"] | None = None
    answer: Answer | None = None


def stream_chat(engine: MedMoe, request: ChatRequest) -> Generator[ChatChunk]:
    """Answer the last turn of a conversation, greedily.

    Raises:
        ConfigError: The conversation is longer than the model can read.
        ImageError: The image cannot be used.
    """
    features = engine.encode([request.image]) if request.image is not None else None
    turns = [(turn.role, turn.text) for turn in request.turns]
    prompt = engine.tokenizer.conversation(turns, with_image=features is not None)
    _check_length(engine, len(prompt) + request.max_new_tokens)
    tokenizer: Any = engine.processor.tokenizer
    ids, shown, log_probability = [], "", 0.0
    finish: Literal["stop", "length"] = "length"
    out, routing = _prefill(engine, prompt, features)
    while True:
        log_probs = out.logits[0, -1].float().log_softmax(-1)
        token = int(log_probs.argmax())
        log_probability += float(log_probs[token])
        if token == tokenizer.eos_token_id:
            finish = "stop"
            break
        ids.append(token)
        if len(ids) == request.max_new_tokens:
            break
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        if len(text) > len(shown) and not text.endswith(_UNFINISHED):
            yield ChatChunk(text[len(shown) :] if shown else text.lstrip())
            shown = text
        out = _step(engine, token, out.past_key_values)
    text = str(tokenizer.decode(ids, skip_special_tokens=True))
    rest = text[len(shown) :] if shown else text.lstrip()
    confidence = float(torch.tensor(log_probability, dtype=torch.float64).exp())
    yield ChatChunk(rest.rstrip(), finish, Answer(text.strip(), confidence, routing))


def _check_length(engine: MedMoe, length: int) -> None:
    most = getattr(engine.model.config.text_config, "max_position_embeddings", None)
    if most is not None and length > most:
        raise ConfigError(
            f"the conversation and its answer need {length} tokens, the model reads at most "
            f"{most}; begin anew or ask for a shorter answer"
        )


@torch.no_grad()
def _prefill(
    engine: MedMoe, prompt: tuple[int, ...], features: torch.Tensor | None
) -> tuple[Any, Routing | None]:
    """Return the model's output on the prompt, and where its router sends the image."""
    model = engine.model
    inner: Any = model.model
    ids = torch.tensor([prompt], device=model.device)
    vision = None if features is None else features.to(model.device)
    routed = bool(model.config.moe_layers) and vision is not None
    with record_routing(model, keep="counts") if routed else nullcontext() as trace:
        if trace is not None:
            trace.token_mask = ids == engine.processor.image_token_id
        embeds = inner.embed(ids, vision)
        out = model(inputs_embeds=embeds, use_cache=True, logits_to_keep=1)
    if trace is None:
        return out, None
    return out, read_routings(trace, 1, engine.domains, evidence=True)[0]


@torch.no_grad()
def _step(engine: MedMoe, token: int, cache: Any) -> Any:
    """Return the model's output on one more token."""
    ids = torch.tensor([[token]], device=engine.model.device)
    return engine.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
