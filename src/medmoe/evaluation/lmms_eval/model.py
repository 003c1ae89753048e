"""A model folder as a model of lmms-eval, asked as `medmoe eval` asks it.

The requests of a task are chunked by image, each image is encoded once, and the engine answers in
the same batches: with the same ``--batch_size`` the answers are those of `medmoe eval`. It takes
one question of the user about one picture or none, and decodes greedily; likelihoods, several
rounds, several pictures, audio and video are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmms_eval.api.model import lmms
from PIL import Image
from torch import device as Device
from tqdm import tqdm

from medmoe.data.images import digest_of, to_rgb
from medmoe.errors import ConfigError
from medmoe.evaluation.ask.answers import BATCHES, chunks_by_image
from medmoe.inference.engine import SHORT_ANSWER, MedMoe


@dataclass(frozen=True, slots=True)
class _Question:
    """One request.

    Attributes:
        image: A hash of its picture, or a name of its own where there is none.
        picture: Makes the picture; not kept, since those of a whole set may not fit in memory.
    """

    place: int
    text: str
    image: str
    picture: Callable[[], Image.Image] | None


class MedMoeModel(lmms):
    """``--model medmoe --model_args pretrained=FOLDER``.

    Args:
        max_batch_size: Ignored, as the batch size is given; lmms-eval hands it to every model.
        device: E.g. ``cpu``; by default a GPU if there is one.

    Raises:
        ConfigError: No folder, or no batch size of at least 1.
        CheckpointError: The folder is incomplete, altered or not a model.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str | None = None,
        batch_size: int | str = 64,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        if not pretrained:
            raise ConfigError("no model; give its folder: --model_args pretrained=runs/demo/model")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ConfigError(f"batch_size {batch_size!r} must be a whole number of at least 1")
        self._batch_size = int(batch_size)
        self._engine = MedMoe.load(str(pretrained), batch_size=self._batch_size)
        if device is not None:
            self._engine.model.to(device)

    @property
    def device(self) -> Device:
        """Where the model is; lmms-eval gathers there when several processes share a task."""
        device: Device = self._engine.model.device
        return device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return one answer per request, each task's asked in its own chunks.

        Raises:
            ConfigError: A task asks for what the engine does not do; the task is named.
        """
        groups: dict[tuple[str, str, int], list[_Question]] = {}
        stops: list[tuple[str, ...]] = []
        for place, request in enumerate(requests):
            _, messages_of, settings, document, task, split = request.args
            group = (task, split, _max_new_tokens(settings, task))
            documents = self.task_dict[task][split]
            question = _question(place, messages_of, documents, document, task)
            groups.setdefault(group, []).append(question)
            stops.append(_stops(settings))
        texts: dict[int, str] = {}
        with tqdm(total=len(requests), desc="medmoe", disable=self.rank != 0) as bar:
            for (_, _, tokens), questions in groups.items():
                self._engine.max_new_tokens = tokens
                for chunk in chunks_by_image(
                    questions, lambda each: each.image, BATCHES * self._batch_size
                ):
                    texts |= _asked(self._engine, chunk)
                    bar.update(len(chunk))
        return [_until(texts[place], stop) for place, stop in enumerate(stops)]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refuse: our scores of options are those of `medmoe eval` (``label_score``)."""
        raise ConfigError(_only("likelihoods", requests))

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuse tasks of several rounds."""
        raise ConfigError(_only("several rounds", requests))


def _only(what: str, requests: Sequence[Any]) -> str:
    task = requests[0].task_name if requests else "?"
    return f"task {task!r} asks for {what}; medmoe takes tasks of output_type generate_until"


def _question(
    place: int, messages_of: Callable[[Any], Any], documents: Any, document: int, task: str
) -> _Question:
    """Return a request as a question; its picture is decoded here, hashed, and made anew later."""
    picture, text = _turn(messages_of(documents[document]), task)
    if picture is None:
        return _Question(place, text, f"none {place}", None)
    image = to_rgb(picture)
    digest = digest_of(image).hex()

    def again() -> Image.Image:
        anew, _ = _turn(messages_of(documents[document]), task)
        assert anew is not None
        return anew

    return _Question(place, text, digest, again)


def _turn(messages: Sequence[Mapping[str, Any]], task: str) -> tuple[Image.Image | None, str]:
    """Return the picture and the words of messages, which must be one turn of the user."""
    roles = [message["role"] for message in messages]
    if roles != ["user"]:
        raise ConfigError(
            f"task {task!r} asks by turns of {', '.join(roles) or 'nobody'}; medmoe takes one turn "
            "of the user: leave examples (--num_fewshot 0) and system prompts out"
        )
    content = messages[0]["content"]
    parts: list[dict[str, Any]] = (
        [{"type": "text", "text": content}] if isinstance(content, str) else content
    )
    pictures = [part["url"] for part in parts if part["type"] == "image"]
    others = sorted({part["type"] for part in parts} - {"image", "text"})
    if others or len(pictures) > 1:
        what = ", ".join(others) or f"{len(pictures)} pictures"
        raise ConfigError(f"task {task!r} asks about {what}; medmoe takes one picture or none")
    if pictures and not isinstance(pictures[0], Image.Image):
        raise ConfigError(
            f"task {task!r} gives its picture as {type(pictures[0]).__name__}; medmoe takes "
            "pictures that are decoded (PIL.Image.Image) and opens no path or address"
        )
    text = "\n".join(part["text"] for part in parts if part["type"] == "text")
    return (pictures[0] if pictures else None), text


def _asked(engine: MedMoe, chunk: Sequence[_Question]) -> dict[int, str]:
    """Return the answers of a chunk by place, each picture encoded once for all its questions."""
    pictures: dict[str, Callable[[], Image.Image]] = {
        each.image: each.picture for each in chunk if each.picture is not None
    }
    rows = {image: row for row, image in enumerate(pictures)}
    features = engine.encode([make() for make in pictures.values()]) if pictures else None
    answers = engine.answer_features(
        features, [rows.get(each.image) for each in chunk], [each.text for each in chunk]
    )
    return {each.place: answer.text for each, answer in zip(chunk, answers, strict=True)}


def _max_new_tokens(settings: Mapping[str, Any], task: str) -> int:
    """Return the longest answer that a task asks for, which must be decoded greedily."""
    temperature, beams = settings.get("temperature"), settings.get("num_beams")
    if settings.get("do_sample", bool(temperature)) or (beams or 1) > 1:
        raise ConfigError(
            f"task {task!r} asks for sampling or beams (temperature {temperature}, num_beams "
            f"{beams}); medmoe answers greedily: --gen_kwargs do_sample=False,num_beams=1"
        )
    return int(settings.get("max_new_tokens") or SHORT_ANSWER)


def _stops(settings: Mapping[str, Any]) -> tuple[str, ...]:
    until = settings.get("until") or ()
    return tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop)


def _until(text: str, stops: Sequence[str]) -> str:
    """Return the text up to the first of the words that a task stops at."""
    for stop in stops:
        text = text.split(stop, 1)[0]
    return text
