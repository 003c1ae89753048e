"""Conversations to token ids: one path for training, inference and scoring.

The prompt is the chat template's rendering, so a model is trained on exactly what it is asked with.
A prompt is cut after the last image token of its first turn: what stands before (the prefix) is the
same for all questions about one image, which is what packing rests on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import TokenizersBackend

from medmoe.data.schema import spoken
from medmoe.errors import ConfigError, DataError

_MAX_KEPT_PROMPTS = 50_000
PAD, END, IMAGE = "<pad>", "</s>", "<image>"


@dataclass(frozen=True, slots=True)
class Segment:
    """What stands after the image prefix: a question or a conversation, and where it is answered.

    Only answers, with their end tokens, are trained on.

    Attributes:
        answer_length: How many of them, at the end, are the last answer.
        earlier: First place of each earlier answer of a conversation, and the place after it.
        images: Rows of the images that stand among the ids, in order.
    """

    ids: tuple[int, ...]
    answer_length: int
    earlier: tuple[tuple[int, int], ...] = ()
    images: tuple[int, ...] = ()


class ConversationTokenizer:
    """Renders and tokenises conversations about images with a processor's template.

    Args:
        processor: Gives the chat template and the tokenizer.
        image_tokens: How many ``<image>`` tokens stand for one image.
    """

    def __init__(self, processor: Any, image_tokens: int) -> None:
        self._processor = processor
        self._tokenizer: Any = processor.tokenizer
        self._image_tokens = image_tokens
        self._image_id: int = processor.image_token_id
        self._prompts: dict[tuple[object, ...], tuple[int, ...]] = {}

    def prompt(
        self,
        question: str,
        earlier: Sequence[tuple[str, str]] = (),
        *,
        with_image: bool = True,
        further: Sequence[int] = (),
    ) -> tuple[int, ...]:
        """Return the ids of a whole prompt, the image as ``image_tokens`` placeholders.

        An ``<image>`` or an end token inside the question is text: its brackets are parted.

        Args:
            earlier: Question and answer of each turn before it.
            further: Of each further image the number of the turn before whose question it stands.
        """
        key = (question, tuple(earlier), with_image, tuple(further))
        if key not in self._prompts:
            if len(self._prompts) >= _MAX_KEPT_PROMPTS:  # a server is asked without end
                self._prompts.clear()
            asked = [*spoken(earlier), ("user", question)]
            places = [2 * turn for turn in further]
            self._prompts[key] = self.conversation(asked, with_image=with_image, further=places)
        return self._prompts[key]

    def prefix(self, images: int = 1) -> tuple[int, ...]:
        """Return the ids up to the last token of the first images: the same for every question."""
        ids = self.prompt("?", further=[0] * (images - 1))
        return ids[: self._prefix_length(ids)]

    def segment(self, question: str, answer: str | None, images: int = 1) -> Segment:
        """Return the ids after the prefix of so many images; ``answer`` None: the bare question."""
        prompt = self.prompt(question, further=[0] * (images - 1))
        tail = prompt[self._prefix_length(prompt) :]
        if answer is None:
            return Segment(tail, 0)
        ids = self._answer([("user", question)], answer)
        return Segment(tail + ids, len(ids))

    def segments(
        self, turns: Sequence[tuple[str, str]], further: Sequence[int] = ()
    ) -> tuple[Segment, ...]:
        """Return the ids after the prefix of a conversation in which every answer is trained on.

        Before each answer stand the ids that `conversation` gives for the turns so far: what a
        model is asked with when the conversation is held. That is one segment, unless a template
        renders what was said otherwise later on (Qwen3 drops the thought of earlier answers):
        then a further segment begins anew, with all turns before it.

        Args:
            turns: Question and answer of each.
            further: Of each further image the number of the turn before whose question it stands;
                those of the first belong to the prefix.
        """
        done: list[Segment] = []
        said: list[tuple[str, str]] = []
        begin = len(self.prefix(1 + further.count(0)))
        for number, (question, answer) in enumerate(turns):
            said.append(("user", question))
            places = [2 * turn for turn in further if turn <= number]
            asked = self.conversation(said, with_image=True, further=places)[begin:]
            ids = self._answer(said, answer)
            said.append(("assistant", answer))
            earlier: tuple[tuple[int, int], ...] = ()
            if done and asked[: len(done[-1].ids)] == done[-1].ids:
                last = done.pop()
                end = len(last.ids)
                earlier = (*last.earlier, (end - last.answer_length, end))
            done.append(Segment(asked + ids, len(ids), earlier))
        return tuple(done)

    def text_only(self, turns: Sequence[tuple[str, str]]) -> tuple[int, ...]:
        """Return the ids of a whole conversation, of questions and answers, without an image."""
        said = spoken(turns)
        text = self._rendered(said, with_image=False, answered=True)
        return tuple(self._tokenizer(text, add_special_tokens=False).input_ids)

    def conversation(
        self,
        turns: Sequence[tuple[str, str]],
        *,
        with_image: bool,
        further: Sequence[int] = (),
    ) -> tuple[int, ...]:
        """Return the ids of a conversation that waits for the assistant; of one turn: `prompt`.

        Args:
            turns: Role (``user`` or ``assistant``) and text of each; the image, if there is one,
                stands before the first.
            further: Of each further image the turn before whose words it stands.
        """
        text = self._rendered(turns, with_image=with_image, further=further)
        text = text.replace(IMAGE, IMAGE * self._image_tokens)
        return tuple(self._tokenizer(text, add_special_tokens=False).input_ids)

    def _answer(self, asked: Sequence[tuple[str, str]], answer: str) -> tuple[int, ...]:
        """Return the ids of an answer, its end token included."""
        bare = self._rendered(asked)
        rendered = self._rendered([*asked, ("assistant", answer)], answered=True)
        if not rendered.startswith(bare):
            raise DataError(
                "the chat template renders an answered prompt unlike the open one; "
                "its generation prompt must be how the answer begins"
            )
        return tuple(self._tokenizer(rendered[len(bare) :], add_special_tokens=False).input_ids)

    def _rendered(
        self,
        turns: Sequence[tuple[str, str]],
        *,
        with_image: bool = True,
        answered: bool = False,
        further: Sequence[int] = (),
    ) -> str:
        messages: list[dict[str, Any]] = [
            {"role": role, "content": [{"type": "text", "text": self._plain(text)}]}
            for role, text in turns
        ]
        for turn in (*([0] if with_image else []), *further):
            messages[turn]["content"].insert(0, {"type": "image"})
        text: str = self._processor.apply_chat_template(
            messages, add_generation_prompt=not answered, tokenize=False
        )
        return text

    def _plain(self, text: str) -> str:
        """Part the special tokens inside a text, so that it tokenises as what it reads.

        Raises:
            ConfigError: It holds half a character, or a byte of another encoding.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            shown = text.encode("utf-8", "replace").decode()
            raise ConfigError(f"{shown!r:.60} is no text in UTF-8; write it in UTF-8") from None
        for token in self._tokenizer.all_special_tokens:
            text = text.replace(token, f"{token[0]} {token[1:-1]} {token[-1]}")
        return text

    def images_in(self, ids: Sequence[int]) -> int:
        """Return of how many images the tokens stand among ids."""
        return ids.count(self._image_id) // self._image_tokens

    def _prefix_length(self, ids: Sequence[int]) -> int:
        return len(ids) - tuple(reversed(ids)).index(self._image_id)


class PlainTokenizer(ConversationTokenizer):
    """The reference's prompt of phase 1, ``plain``: an image, its caption, and the end of a line.

    There is no question, no template and no end token: the projector alone learns from it.
    """

    def prefix(self, images: int = 1) -> tuple[int, ...]:
        """Return the ids of the images."""
        return (self._image_id,) * self._image_tokens * images

    def segments(
        self, turns: Sequence[tuple[str, str]], further: Sequence[int] = ()
    ) -> tuple[Segment, ...]:
        """Return the ids of a caption, or of the answers of a conversation: all is trained on.

        Raises:
            DataError: An image stands before a later turn.
        """
        if any(further):
            raise DataError(
                "the prompt `plain` has images before the caption only, none before a later turn; "
                "use prompt: chat, or leave the record out"
            )
        text = "".join(f"{self._plain(answer)}\n" for _, answer in turns)
        ids = tuple(self._tokenizer(text, add_special_tokens=False).input_ids)
        return (Segment(ids, len(ids)),)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> TokenizersBackend:
    """Train a lower-casing byte-level BPE tokenizer on the training texts; no token is unknown.

    Args:
        texts: The training texts, and no others: the tokenizer is part of what is learned.
        vocab_size: Upper bound, the special tokens and the 256 bytes included.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    # Case tells nothing that is asked here, and data sets write one answer in several cases.
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return TokenizersBackend(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[IMAGE],
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
