"""One engine for asking, scoring and serving: `MedMoe.load(dir).answer(image, question)`.

An image is encoded once for all its questions, and read once by the language model where they are
asked together; questions are answered in batches. What it does not do: sampling, sessions, queues.

Shapes: N images, P patches, B prompts of a batch, S padded prompt length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache, LogitsProcessorList

import medmoe.model  # noqa: F401  (registers the experts' names on disk)
from medmoe.data.collate import IGNORE, Packed, pack_batch
from medmoe.data.images import open_image
from medmoe.data.schema import Pixels
from medmoe.data.tokenize import ConversationTokenizer, Segment
from medmoe.errors import ConfigError
from medmoe.inference.answer import Answer, ChosenTokens, Routing, read_check, read_routings
from medmoe.inference.kept import PictureCache, PrefixCache
from medmoe.model.checkpoint import load_model
from medmoe.model.cost.parameters import parameters_of
from medmoe.model.locate import EXPORT, find_model
from medmoe.model.modeling_medmoe import CACHE, MedMoeForConditionalGeneration
from medmoe.processes import own_gpu
from medmoe.routing.trace import record_routing

__all__ = ["Answer", "ImageInput", "MedMoe", "Routing"]

#: Answer tokens whose logits are held together.
_AT_ONCE = 256
#: Longest answers: to a set whose short answers a model has learned, and to any other question.
SHORT_ANSWER, LONG_ANSWER = 32, 512
#: Tokens that an answer has room for at least, unless fewer are asked for.
_ENOUGH = 64
ImageInput = Path | str | bytes | Pixels | Image.Image
#: What a question is about: an image, several in order, or none.
Shown = ImageInput | Sequence[ImageInput] | None
#: Rows of the images of a question, and its prompt.
Asked = tuple[tuple[int, ...], tuple[int, ...]]
#: The same rows, a question and the answers to it that are scored; and what is told of them.
Options = tuple[tuple[int, ...], str, tuple[str, ...]]
Scored = tuple[tuple[float, ...], tuple[Routing | None, ...]]


class MedMoe:
    """A model ready to answer.

    Attributes:
        explains: Whether `medmoe.inference.evidence` can look into it.

    Args:
        batch_size: Prompts answered together.
        max_new_tokens: Longest answer; shorter where the model can read no more.
    """

    explains = True

    def __init__(
        self,
        model: MedMoeForConditionalGeneration,
        processor: Any,
        *,
        batch_size: int = 64,
        max_new_tokens: int = SHORT_ANSWER,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.tokenizer = ConversationTokenizer(processor, model.config.image_seq_length)
        self.domains = tuple(model.config.domains or ())
        #: Tokens that the model reads at most, None where its config does not say.
        self.limit: int | None = getattr(model.config.text_config, "max_position_embeddings", None)
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        #: What conversations have shown and read, for those that come later.
        self.pictures = PictureCache(lambda images: self.encode(images))
        self.prefixes = PrefixCache(processor.image_token_id, model.config.image_seq_length)

    @classmethod
    def load(cls, directory: Path | str, *, dtype: str | None = None, **limits: int) -> Self:
        """Load a model directory, verified against its manifest; a GPU is used if there is one.

        Args:
            directory: As MODEL is named: see `medmoe.model.locate.find_model`.
            dtype: Of the weights, as of `load_model`.
            limits: ``batch_size`` and ``max_new_tokens``.

        Raises:
            CheckpointError: It is incomplete, altered or not a model.
        """
        folder = find_model(directory)
        if (folder / EXPORT).is_file():
            from medmoe.inference.exported import ExportedMedMoe

            return ExportedMedMoe.load(folder, dtype=dtype, **limits)  # type: ignore[return-value]
        model, processor = load_model(folder, dtype)
        if torch.cuda.is_available():
            model.to(own_gpu())
        return cls(model, processor, **limits)

    def parameters(self) -> dict[str, int]:
        """Return how many weights the model has, as `parameters_of`."""
        return parameters_of(self.model)

    def look_inside(self, what: str) -> None:
        """Refuse what looks into the model's modules where there are none.

        Raises:
            ConfigError: The model is exported.
        """
        if not self.explains:
            raise ConfigError(
                f"{what} looks into the model, which exported graphs do not allow; give the model "
                "that they were exported from"
            )

    def answer(self, image: Shown, question: str, *, evidence: bool = False) -> Answer:
        """Answer one question about an image (None: a question in words only).

        Args:
            image: A PNG, JPEG, DICOM or NIfTI file or its bytes, pixels (H, W) or (H, W, 3) uint8,
                or a PIL image, which is converted as a file is (see `medmoe.data.images`); a list
                of several, which stand before the question in its order.
            question: In plain words; an ``<image>`` in it is text.
            evidence: Also give the cheap part of the evidence: which expert took which share of
                the image, layer by layer (`medmoe.inference.evidence` gives all of it).

        Raises:
            ImageError: The image cannot be used.
            ConfigError: The question is longer than the model can read.
        """
        return self.answer_batch([(image, question)], evidence=evidence)[0]

    def answer_batch(
        self, questions: Sequence[tuple[Shown, str]], *, evidence: bool = False
    ) -> list[Answer]:
        """Answer questions about images, in order; one image used twice is encoded once."""
        shown: list[list[Any]] = [
            list(i) if isinstance(i, list | tuple) else [i] for i, _ in questions
        ]
        images = {id(one): one for own in shown for one in own if one is not None}
        places: dict[int, int] = {key: place for place, key in enumerate(images)}
        rows = [[places.get(id(one)) for one in own] or [None] for own in shown]
        further = [[(0, row) for row in own[1:] if row is not None] for own in rows]
        features = self.encode(list(images.values())) if images else None
        firsts, asked = [own[0] for own in rows], [question for _, question in questions]
        return self.answer_features(features, firsts, asked, further=further, experts=evidence)

    def prompt(
        self,
        question: str,
        earlier: Sequence[tuple[str, str]] = (),
        *,
        with_image: bool = True,
        further: Sequence[int] = (),
    ) -> tuple[int, ...]:
        """Return the ids of a question, as `ConversationTokenizer.prompt` does.

        Raises:
            ConfigError: It is longer than the model can read, its answer included.
        """
        ids = self.tokenizer.prompt(question, earlier, with_image=with_image, further=further)
        room_for(self.max_new_tokens, len(ids), self.limit)
        return ids

    def segment(self, question: str, answer: str, images: int = 1) -> Segment:
        """Return a question and its answer, as `ConversationTokenizer.segment` does.

        Raises:
            ConfigError: They are longer than the model can read.
        """
        segment = self.tokenizer.segment(question, answer, images)
        check_length(len(self.tokenizer.prefix(images)) + len(segment.ids), self.limit)
        return segment

    @torch.no_grad()
    def encode(self, images: Sequence[ImageInput]) -> Tensor:
        """Return the vision features (N, P, D_vision) of images."""
        size = self.batch_size
        parts = (images[start : start + size] for start in range(0, len(images), size))
        return torch.cat([self.encode_pixels(self.pixel_values(part)) for part in parts])

    def pixel_values(self, images: Sequence[ImageInput]) -> Tensor:
        """Return the squares (N, 3, H, W) that the vision encoder sees; its mean colour is 0."""
        pictures = [open_image(Path(im) if isinstance(im, str) else im) for im in images]
        pixels: Tensor = self.processor.image_processor(pictures, return_tensors="pt").pixel_values
        return pixels

    @torch.no_grad()
    def encode_pixels(self, pixel_values: Tensor) -> Tensor:
        """Return the vision features (N, P, D_vision) of what `pixel_values` gives."""
        encode, device = self.model.model.encode_images, self.model.device
        return torch.cat([encode(part.to(device)) for part in pixel_values.split(self.batch_size)])

    @torch.no_grad()
    def answer_features(
        self,
        features: Tensor | None,
        rows: Sequence[int | None],
        questions: Sequence[str],
        *,
        earlier: Sequence[Sequence[tuple[str, str]]] = (),
        further: Sequence[Sequence[tuple[int, int]]] = (),
        experts: bool = False,
    ) -> list[Answer]:
        """Answer questions about encoded images.

        Args:
            features: (N, P, D_vision), as `encode` gives them.
            rows: The image of each question, None for none.
            earlier: Of each question the turns before it, question and answer of each.
            further: Of each question its further images in order: the number of the turn before
                whose question an image stands, and its row.
            experts: Also say which expert took which share of the image, layer by layer.
        """
        none: list[Any] = [()] * len(rows)
        asked: list[Asked] = []
        for row, question, turns, more in zip(
            rows, questions, earlier or none, further or none, strict=True
        ):
            places = [turn for turn, _ in more]
            ids = self.prompt(question, turns, with_image=row is not None, further=places)
            asked.append((() if row is None else (row, *(other for _, other in more)), ids))
        different = list(dict.fromkeys(asked))  # what is asked twice is answered once
        answers: dict[Asked, Answer] = {}
        for batch in self._batches(different):
            given = self._generate(batch, features, experts)
            answers.update(zip(batch, given, strict=True))
        return [answers[one] for one in asked]

    @torch.no_grad()
    def scored_options(
        self,
        features: Tensor,
        rows: Sequence[int],
        questions: Sequence[str],
        options: Sequence[Sequence[str]],
        further: Sequence[Sequence[int]] = (),
    ) -> list[Scored]:
        """Return each option's summed log-likelihood as the answer to its question.

        Beside it where the router sent each of the question's images meanwhile.

        Args:
            further: Of each question the rows of its further images, in order.
        """
        shown = [(row, *more) for row, more in zip(rows, further or [()] * len(rows), strict=True)]
        asked: list[Options] = list(zip(shown, questions, map(tuple, options), strict=True))
        different = list(dict.fromkeys(asked))
        scored: dict[Options, Scored] = {}
        for start in range(0, len(different), self.batch_size):
            part = different[start : start + self.batch_size]
            scored.update(zip(part, self._scored(part, features), strict=True))
        return [scored[one] for one in asked]

    def _scored(self, asked: Sequence[Options], features: Tensor) -> list[Scored]:
        """Score the options of some questions, as one batch."""
        packed = []
        for (row, *more), question, choices in asked:
            count = 1 + len(more)
            segments = tuple(self.segment(question, option, count) for option in choices)
            packed.append(Packed(row, self.tokenizer.prefix(count), segments, tuple(more)))
        batch = pack_batch(packed, self.processor.tokenizer.pad_token_id)
        chosen = features[[row for sample in packed for row in sample.images]]
        log_likelihood, routings = self._token_log_likelihood(batch, chosen)
        sums, told = _segment_sums(packed, log_likelihood), iter(routings)
        own = [tuple(islice(told, len(sample.images))) for sample in packed]
        return list(zip(sums, own, strict=True))

    def new_cache(self) -> Any:
        """Return an empty key-value cache for `read`."""
        return DynamicCache()

    def read(
        self, ids: Tensor, vision: Tensor | None, mask: Tensor, positions: Tensor, cache: Any
    ) -> Tensor:
        """Read tokens behind those in a cache, which takes them in.

        Args:
            ids: (B, S), with one placeholder per patch of an image.
            vision: (N, P, D_vision), the images whose placeholders are among them, in order.
            mask: (B, the cache's tokens + S), 0 where padding stands.
            positions: (B, S).

        Returns:
            The logits (B, V) of the token that comes next.
        """
        out = self.model(
            inputs_embeds=self.model.model.embed(ids, vision),
            picture_tokens=ids == self.processor.image_token_id,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1]  # type: ignore[no-any-return]

    @contextmanager
    def routed(
        self, ids: Tensor, vision: Tensor | None, *, experts: bool
    ) -> Iterator[list[Routing | None]]:
        """Record where the routers send the images of the one batch that runs inside.

        Args:
            ids: Of the batch (B, S); the images' tokens are told by them.
            vision: The images' features (N, P, D_vision), None for a batch without images.
            experts: Also record which expert takes which share of an image, layer by layer.

        Yields:
            A list of N, or of B without images; afterwards it holds the routings, None each
            without router or image.
        """
        routings: list[Routing | None] = [None] * len(ids if vision is None else vision)
        if vision is None or not self.model.config.moe_layers:
            yield routings
            return
        with record_routing(self.model) as trace:
            trace.token_mask = ids == self.processor.image_token_id
            yield routings
        checks = read_check(self.model, vision)
        routings[:] = read_routings(trace, checks, self.domains, experts=experts)

    @torch.no_grad()
    def route(self, features: Tensor) -> list[Routing | None]:
        """Return the router's decision on encoded images, without asking anything."""
        if not self.model.config.moe_layers:
            return [None] * len(features)
        prefix = self.tokenizer.prefix()
        routings: list[Routing | None] = []
        for start in range(0, len(features), self.batch_size):
            part = features[start : start + self.batch_size].to(self.model.device)
            ids = torch.tensor([prefix] * len(part), device=self.model.device)
            positions = torch.arange(len(prefix), device=ids.device).expand_as(ids)
            with self.routed(ids, part, experts=True) as found:
                self.read(ids, part, torch.ones_like(ids), positions, self.new_cache())
            routings.extend(found)
        return routings

    def left_padded(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return prompts as ids and attention mask, each (B, S), on the model's device."""
        length, pad = max(map(len, prompts)), self.processor.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (length - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
        return ids.to(self.model.device), mask.to(self.model.device)

    def _batches(self, asked: Iterable[Asked]) -> Iterable[list[Asked]]:
        """Yield what is asked about one image, about several, and in words, of like length."""
        asked, longest = list(asked), dict[tuple[int, ...], int]()
        for rows, prompt in asked:
            longest[rows] = max(longest.get(rows, 0), len(prompt))
        for images in (1, 2, 0):
            group = [one for one in asked if min(len(one[0]), 2) == images]
            group.sort(key=lambda one: (longest[one[0]], one[0], len(one[1])))
            for start in range(0, len(group), self.batch_size):
                yield group[start : start + self.batch_size]

    def reads_apart(self, tokens: int) -> bool:
        """Return whether prompts may be read in two parts each, with padding between.

        Args:
            tokens: Of the longest, its answer included: it must lie within a sliding window, which
                counts padding.
        """
        text = self.model.config.text_config
        if "sliding_attention" not in (getattr(text, "layer_types", None) or ()):
            return True
        return tokens <= int(text.sliding_window)

    def _generate(
        self, batch: Sequence[Asked], features: Tensor | None, experts: bool
    ) -> list[Answer]:
        """Answer prompts, all about one image each, or about several, or in words only."""
        rows, prompts = [row for own, _ in batch for row in own], [prompt for _, prompt in batch]
        tokens = max(map(len, prompts)) + self.max_new_tokens
        shared = len(set(rows)) < len(rows) == len(batch)
        if features is not None and shared and self.reads_apart(tokens):
            return self._generate_shared(prompts, rows, features, experts)
        ids, mask = self.left_padded(prompts)
        vision = features[rows].to(self.model.device) if rows and features is not None else None
        with self.routed(ids, vision, experts=experts) as routings:
            shown = ids == self.processor.image_token_id
            embedded = self.model.model.embed(ids, vision)
            generated = self._generated(embedded, mask, picture_tokens=shown)
        told = iter(routings)
        own = [list(islice(told, max(1, len(images)))) for images, _ in batch]
        return list(map(_answer, *generated, own))

    def _generate_shared(
        self,
        prompts: Sequence[tuple[int, ...]],
        rows: Sequence[int],
        features: Tensor,
        experts: bool,
    ) -> list[Answer]:
        """Answer as `_generate` does; an image that several prompts are about is read once."""
        prefix, cache = self.tokenizer.prefix(), DynamicCache()
        images = list(dict.fromkeys(rows))
        ids = torch.tensor([prefix] * len(images), device=self.model.device)
        vision = features[images].to(self.model.device)
        with self.routed(ids, vision, experts=experts) as of_images:
            self.model(
                input_ids=ids, vision_features=vision, use_cache=True, logits_to_keep=1, cache=cache
            )
        places = [images.index(row) for row in rows]
        cache.batch_select_indices(torch.tensor(places, device=self.model.device))
        if hasattr(cache, "pictured"):
            cache.pictured = cache.pictured[places]
        tails, seen = self.left_padded([prompt[len(prefix) :] for prompt in prompts])
        ids = torch.cat([ids[places], tails], dim=1)
        mask = torch.cat([torch.ones_like(ids[:, : len(prefix)]), seen], dim=1)
        # What the cache holds is not embedded again: only its length counts.
        embedded = self.model.model.embed(ids, None)
        generated = self._generated(embedded, mask, **{CACHE: cache})
        return list(map(_answer, *generated, [[of_images[place]] for place in places]))

    def _generated(
        self, embedded: Tensor, mask: Tensor, **inputs: Any
    ) -> tuple[list[str], list[float], list[bool]]:
        """Return the answers to embedded prompts (B, S, D), their confidences, which were cut."""
        chosen, tokenizer = ChosenTokens(), self.processor.tokenizer
        sequences = self.model.generate(
            inputs_embeds=embedded,
            attention_mask=mask,
            max_new_tokens=room_for(self.max_new_tokens, mask.shape[1], self.limit),
            do_sample=False,
            logits_processor=LogitsProcessorList([chosen]),
            **inputs,
        )
        texts = tokenizer.batch_decode(sequences, skip_special_tokens=True)
        confidences, cut = chosen.told(sequences, [tokenizer.eos_token_id])
        stripped = [text.strip() for text in texts]
        return stripped, confidences, cut

    def _token_log_likelihood(
        self, batch: dict[str, Tensor], features: Tensor
    ) -> tuple[Tensor, Sequence[Routing | None]]:
        """Return (B, S), the log-probability of each answer's tokens, else 0, and N routings."""
        ids = batch["input_ids"].to(self.model.device)
        vision = features.to(self.model.device)
        with self.routed(ids, vision, experts=False) as routings:
            out = self.model(
                input_ids=ids,
                position_ids=batch["position_ids"].to(self.model.device),
                attention_mask=batch["attention_mask"].to(self.model.device),
                vision_features=vision,
                output_hidden_states=True,
                logits_to_keep=1,
            )
        # The head on answers only, some at a time: of all tokens, a large vocabulary fills memory.
        known = (batch["labels"] != IGNORE).to(ids.device)
        known[:, 0] = False
        states, tokens = out.hidden_states[-1][known.roll(-1, 1)], ids[known]
        of_answers = [
            self.model.lm_head(part).float().log_softmax(-1).gather(-1, token[:, None])[:, 0]
            for part, token in zip(states.split(_AT_ONCE), tokens.split(_AT_ONCE), strict=True)
        ]
        of_tokens = torch.zeros(ids.shape, device=ids.device)
        of_tokens[known] = torch.cat(of_answers)
        return of_tokens.cpu(), routings


def check_length(tokens: int, limit: int | None) -> None:
    """Refuse what is longer than a model can read: it would answer without having read it.

    Raises:
        ConfigError: As said.
    """
    if limit is not None and tokens > limit:
        raise ConfigError(
            f"the conversation and its answer need {tokens} tokens, the model reads at most "
            f"{limit}; begin anew, ask in fewer words, or for a shorter answer"
        )


def room_for(wanted: int, tokens: int, limit: int | None) -> int:
    """Return how long the answer to so many tokens may be: as wanted, or as there is room for.

    Raises:
        ConfigError: There is room for none, or for little of a long one.
    """
    check_length(tokens + min(wanted, _ENOUGH), limit)
    return wanted if limit is None else min(wanted, limit - tokens)


def _answer(text: str, confidence: float, cut: bool, routings: Sequence[Routing | None]) -> Answer:
    return Answer(text, confidence, routings[0], cut, tuple(routings[1:]))


def _segment_sums(packed: Sequence[Packed], log_likelihood: Tensor) -> Iterable[tuple[float, ...]]:
    """Yield the summed log-likelihood of every segment's answer, image by image."""
    for row, sample in enumerate(packed):
        sums, at = [], len(sample.prefix)
        for segment in sample.segments:
            at += len(segment.ids)
            sums.append(float(log_likelihood[row, at - segment.answer_length : at].sum()))
        yield tuple(sums)
