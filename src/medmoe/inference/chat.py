"""Conversations about pictures, answered token by token: streamed, batched, stopped any time.

`ChatBatch` decodes several conversations together. Between two tokens rows join and leave, so that
nobody waits for the longest answer of others, and a row that is left costs nothing from the next
token on. Decoding is greedy; a row's tokens are those that `MedMoe.answer` gives. What it does not
do: queues, threads, deadlines (see `medmoe.serving.local_engine`), sampling.

Shapes: B rows, S padded length, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig

from medmoe.data.tokenize import ConversationTokenizer
from medmoe.errors import ConfigError
from medmoe.inference.answer import Answer, Routing
from medmoe.inference.engine import MedMoe, room_for
from medmoe.inference.kept import Prefix, digests

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One contribution to a conversation, in plain words."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A conversation to go on with.

    Attributes:
        turns: Of user and assistant in turn; the first and the last are the user's.
        image: The picture that it is about, as `open_picture` gives it; None for words only.
        further: Further pictures, each with the turn before whose words it stands, in order.
        stop: Texts that end the answer, none empty: it is cut before the first of them.
        options: The answer is the likeliest of these; none: it is in free words.
        logprobs: Whether the last piece tells of each token.
    """

    turns: tuple[Turn, ...]
    image: Image.Image | None = None
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()
    further: tuple[tuple[int, Image.Image], ...] = ()
    options: tuple[str, ...] = ()
    logprobs: bool = False

    @property
    def images(self) -> tuple[Image.Image, ...]:
        """All pictures, in the order in which they stand."""
        first = () if self.image is None else (self.image,)
        return (*first, *(image for _, image in self.further))

    def __post_init__(self) -> None:
        """Refuse turns that make no conversation.

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
        if self.options and (self.image is None or len(self.turns) > 1):
            raise ConfigError("options need one question about a picture; leave other turns out")


@dataclass(frozen=True, slots=True)
class ChatChunk:
    """A piece of an answer; all pieces' texts together are the answer's.

    Attributes:
        finish: With the last piece: ``stop``, or ``length`` where the answer was cut.
        answer: With the last piece.
        prompt_tokens: With the last piece, as ``completion_tokens``: the image's are counted in.
        tokens: With the last piece, where asked for: all of the answer's, and how log-probable.
    """

    text: str
    finish: Finish | None = None
    answer: Answer | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tokens: tuple[tuple[str, float], ...] = ()


@dataclass(eq=False, slots=True)
class ChatRow:
    """A conversation that is ready to be decoded: its prompt, its picture, and what was said.

    Attributes:
        features: (N, P, D_vision) of the pictures, None without one.
        routings: Of the pictures.
        pictures: A digest of each.
    """

    ids: tuple[int, ...]
    features: Tensor | None
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    said: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    shown: str = ""
    routings: tuple[Routing | None, ...] = ()
    pictures: tuple[bytes, ...] = ()
    logprobs: bool = False


def stream_chat(engine: MedMoe, request: ChatRequest) -> Generator[ChatChunk]:
    """Answer one conversation, piece by piece; closing the iterator stops it.

    Raises:
        ConfigError: The conversation does not fit the model.
    """
    features = engine.pictures.features(request.images)
    batch = ChatBatch(engine)
    batch.join([prepare(request, features, engine.tokenizer, engine.limit)])
    while batch.rows:
        yield from (chunk for _, chunk in batch.step())


def prepare(
    request: ChatRequest,
    features: Tensor | None,
    tokenizer: ConversationTokenizer,
    limit: int | None,
) -> ChatRow:
    """Return a conversation as a row; its answer may be as long as there is room for.

    Args:
        features: (N, P, D_vision) of its pictures, as `MedMoe.encode` gives them.
        limit: Tokens that the model reads at most.

    Raises:
        ConfigError: It is longer than the model can read.
    """
    turns = [(turn.role, turn.text) for turn in request.turns]
    further = [turn for turn, _ in request.further]
    ids = tokenizer.conversation(turns, with_image=request.image is not None, further=further)
    room = room_for(request.max_new_tokens, len(ids), limit)
    return ChatRow(ids, features, room, request.stop, logprobs=request.logprobs)


def take_token(row: ChatRow, token: int, log_prob: float, tokenizer: Any) -> ChatChunk:
    """Take one more token and its log-probability into a row; return what the answer gains."""
    row.log_probs.append(log_prob)
    if ended := token == tokenizer.eos_token_id:
        finish: Finish | None = "stop"
    else:
        row.said.append(token)
        finish = "length" if len(row.said) >= row.max_new_tokens else None
    text = tokenizer.decode(row.said, skip_special_tokens=True).lstrip()
    cut = min((place for stop in row.stop if (place := text.find(stop)) >= 0), default=None)
    if cut is not None:
        text, finish = text[:cut], "stop"
    elif finish is None:
        text = text[: len(text) - _held_back(text, row.stop)]
    text = text.rstrip()
    if finish is None:
        # Half of a character of several bytes is not shown: the next token completes it.
        new = "" if text.endswith("\ufffd") else text[len(row.shown) :]
        row.shown += new
        return ChatChunk(new)
    first, *others = row.routings or (None,)
    cut_off = finish == "length"
    answer = Answer(text, math.exp(sum(row.log_probs)), first, cut_off, tuple(others))
    told = zip(map(tokenizer.decode, row.said), row.log_probs, strict=False)
    tokens = tuple(told) if row.logprobs else ()
    said = len(row.said) + ended
    return ChatChunk(text[len(row.shown) :], finish, answer, len(row.ids), said, tokens)


def _held_back(text: str, stop: Sequence[str]) -> int:
    """Return how many characters at the end of a text may turn out to begin a stop string."""
    return max(
        (n for each in stop for n in range(1, len(each)) if text.endswith(each[:n])), default=0
    )


def token_biases(config: GenerationConfig) -> dict[int, float]:
    """Return what is added to the logits of single tokens, as `fit_answer_bias` keeps it."""
    return {tokens[0]: float(bias) for tokens, bias in config.sequence_bias or ()}


class ChatBatch:
    """Conversations that are decoded together.

    Args:
        engine: Its model is used by one batch at a time, and by nothing else meanwhile.
    """

    def __init__(self, engine: MedMoe) -> None:
        self.rows: list[ChatRow] = []
        self._engine = engine
        self._cache: Any = None
        self._kept = engine.prefixes
        self._mask = torch.empty(0)  # (B, S)
        self._logits = torch.empty(0)  # (B, V), of each row's next token
        self._biases = token_biases(engine.model.generation_config)

    @torch.inference_mode()
    def join(self, rows: Sequence[ChatRow]) -> None:
        """Read the prompts of rows, and answer them from the next step on.

        Rows with and without a picture may join together. What was read before is taken over, and
        a picture that several of them are about is read once.
        """
        pictures = {row: digests(row.features) for row in rows}
        known = {row: self._kept.longest(row.ids, pictures[row]) for row in rows}
        # One row of each picture goes first; the others take over what it has read of it.
        of_picture = {pictures[row]: row for row in reversed(rows)}
        first = [r for r in rows if known[r].ids or not pictures[r] or of_picture[pictures[r]] is r]
        for part in self._parts(first, known):
            self._join(part, known, pictures)
        rest = [row for row in rows if row not in first]
        known = {row: self._kept.longest(row.ids, pictures[row]) for row in rest}
        for part in self._parts(rest, known):
            self._join(part, known, pictures)

    def _parts(
        self, rows: Sequence[ChatRow], known: Mapping[ChatRow, Prefix]
    ) -> Iterator[list[ChatRow]]:
        """Yield rows that can be read together: with and without new pictures, or a known part.

        Of rows with a known part one's padding stands between two parts of it. Where that does not
        fit into a sliding window each is read by itself, and has none.
        """
        groups: dict[tuple[bool, bool], list[ChatRow]] = {}
        for row in rows:
            new = row.features is not None and len(row.features) > len(known[row].pictures)
            groups.setdefault((new, bool(known[row].ids)), []).append(row)
        for (_, begun), group in groups.items():
            starts = [len(known[row].ids) for row in group]
            tails = [len(row.ids) - n for row, n in zip(group, starts, strict=True)]
            longest = max(starts) + max(tails) + max(row.max_new_tokens for row in group)
            if begun and not self._engine.reads_apart(longest):
                yield from ([row] for row in group)
            else:
                yield group

    @torch.inference_mode()
    def step(self) -> list[tuple[ChatRow, ChatChunk]]:
        """Say one more token of every row; a row that has ended leaves.

        Returns:
            For each row its new text, where there is some, and at its end what goes with it.
        """
        logits = self._logits.float().clone()
        for token, bias in self._biases.items():
            logits[:, token] += bias
        log_probs = logits.log_softmax(-1)
        best, tokens = log_probs.max(-1)
        chunks: list[tuple[ChatRow, ChatChunk]] = []
        going: list[int] = []
        tokenizer = self._engine.processor.tokenizer
        for place, (row, token, log_prob) in enumerate(
            zip(self.rows, tokens.tolist(), best.tolist(), strict=True)
        ):
            chunk = take_token(row, token, log_prob, tokenizer)
            if chunk.text or chunk.finish:
                chunks.append((row, chunk))
            if chunk.finish is None:
                going.append(place)
            else:
                self._keep_read(place, len(row.ids) + len(row.said))
        self._keep(going)
        if going:
            self._forward(tokens[going])
        return chunks

    @torch.inference_mode()
    def leave(self, rows: Sequence[ChatRow]) -> None:
        """Stop answering rows."""
        self._keep([place for place, row in enumerate(self.rows) if row not in rows])

    def _join(
        self,
        rows: list[ChatRow],
        known: Mapping[ChatRow, Prefix],
        pictures: Mapping[ChatRow, tuple[bytes, ...]],
    ) -> None:
        """Read the prompts of rows behind what is known of each, and put them in the batch."""
        engine, device = self._engine, self._engine.model.device
        ids, read = engine.left_padded([row.ids[len(known[row].ids) :] for row in rows])
        cache = engine.new_cache()
        before = _take_over([known[row] for row in rows], cache).to(device)
        mask = torch.cat([before, read], dim=1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, before.shape[1] :]
        new = [row.features[len(known[row].pictures) :] for row in rows if row.features is not None]
        vision = torch.cat(new).to(device) if any(map(len, new)) else None
        with engine.routed(ids, vision, experts=True) as routings:
            logits = engine.read(ids, vision, mask, positions, cache)
        told = iter(routings)
        for row in rows:
            before_it = known[row].routings
            row.routings = (*before_it, *islice(told, len(pictures[row]) - len(before_it)))
            row.pictures = pictures[row]
        self._take_in(rows, cache, mask, logits)
        for place, row in enumerate(rows, len(self.rows) - len(rows)):
            if len(known[row].pictures) < len(row.pictures):
                self._keep_read(place, len(row.ids) - 1)

    def _keep_read(self, place: int, tokens: int) -> None:
        """Keep what was read of a row, up to so many tokens."""
        row = self.rows[place]
        columns = self._mask[place].nonzero()[:tokens, 0]
        states = tuple(
            (layer.keys[place, :, columns][None], layer.values[place, :, columns][None])
            for layer in self._cache.layers
        )
        ids = (*row.ids, *row.said)[: len(columns)]
        pictured = getattr(self._cache, "pictured", None)
        chosen = None if pictured is None else pictured[place : place + 1]
        self._kept.keep(Prefix(ids, row.pictures, row.routings, states, chosen))

    def _take_in(self, rows: list[ChatRow], cache: Any, mask: Tensor, logits: Tensor) -> None:
        """Put rows that have been read beside those that are there."""
        if not self.rows:
            self.rows, self._cache, self._mask, self._logits = rows, cache, mask, logits
            return
        length = max(self._mask.shape[1], mask.shape[1])
        for mine, new in zip(self._cache.layers, cache.layers, strict=True):
            mine.keys = torch.cat([_widened(mine.keys, length), _widened(new.keys, length)])
            mine.values = torch.cat([_widened(mine.values, length), _widened(new.values, length)])
        if hasattr(cache, "pictured"):
            self._cache.pictured = torch.cat([self._cache.pictured, cache.pictured])
        self._mask = torch.cat([_left_padded(self._mask, length), _left_padded(mask, length)])
        self._logits = torch.cat([self._logits, logits])
        self.rows = self.rows + rows

    def _keep(self, places: list[int]) -> None:
        """Drop all rows but those at some places, and the columns that only they needed."""
        if len(places) == len(self.rows):
            return
        self.rows = [self.rows[place] for place in places]
        if not places:
            self._cache, self._mask, self._logits = None, torch.empty(0), torch.empty(0)
            return
        index = torch.tensor(places, device=self._mask.device)
        self._mask, self._logits = self._mask[index], self._logits[index]
        unused = int((self._mask.sum(0) == 0).long().cumprod(0).sum())
        self._mask = self._mask[:, unused:]
        for layer in self._cache.layers:
            layer.keys = layer.keys[index, :, unused:]
            layer.values = layer.values[index, :, unused:]
        if hasattr(self._cache, "pictured"):
            self._cache.pictured = self._cache.pictured[index]

    def _forward(self, tokens: Tensor) -> None:
        positions = self._mask.sum(-1, keepdim=True)
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        self._logits = self._engine.read(tokens[:, None], None, self._mask, positions, self._cache)


def _take_over(known: Sequence[Prefix], cache: Any) -> Tensor:
    """Put what is known of each row into an empty cache; return its mask (B, S), left-padded."""
    length = max(len(prefix.ids) for prefix in known)
    for number, states in enumerate(zip(*(prefix.states for prefix in known), strict=True)):
        keys, values = (
            torch.cat([_widened(s, length) for s in kind]) for kind in zip(*states, strict=True)
        )
        cache.update(keys, values, number)
    if chosen := [prefix.pictured for prefix in known if prefix.pictured is not None]:
        cache.pictured = torch.cat(chosen)
    mask = [[0] * (length - len(prefix.ids)) + [1] * len(prefix.ids) for prefix in known]
    return torch.tensor(mask, dtype=torch.long).reshape(len(known), length)


def _widened(states: Tensor, length: int) -> Tensor:
    """Return cached states (B, heads, S, width), padded on the left to a length."""
    return torch.nn.functional.pad(states, (0, 0, length - states.shape[2], 0))


def _left_padded(mask: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(mask, (length - mask.shape[1], 0))
