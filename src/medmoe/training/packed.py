"""What phases 1, 2 and 3 share: records as packed questions about encoded images, and training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from medmoe.data.collate import Packed, PackingCollator, packed_length
from medmoe.data.schema import Record, turns_of
from medmoe.data.tokenize import ConversationTokenizer, Segment
from medmoe.errors import DataError
from medmoe.training.context import PhaseContext
from medmoe.training.features import FeaturesOnDemand
from medmoe.training.schedule import QuestionSchedule, Schedule
from medmoe.training.trainer import PhaseResult, run_phase


def packed_schedule(context: PhaseContext) -> Schedule[Packed]:
    """Return a phase's samples: one image with up to ``max_questions`` of its questions.

    Several images before one question are a prefix of their own; those before a later turn stand
    in the conversation.

    Questions that do not fit behind the image within ``max_length`` wait for another epoch; a
    conversation too long for a sample of its own ends with its last turn that fits, and of an
    answer too long for one the end is cut. In batches of questions each is a sample of its own,
    which the schedule packs.

    Raises:
        DataError: A question alone is longer than a sample.
    """
    tokenizer, max_length = context.tokenizer, context.max_length
    by_images: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in context.records:
        by_images[record.first_images].append(record)
    groups = [
        (images, questions)
        for images, questions in by_images.items()
        for _ in range(context.repeats.get(questions[0].dataset, 1))
    ]
    pictures = [number for number, (_, questions) in enumerate(groups) for _ in questions]
    if context.spec.batch_of == "questions":
        groups = [(images, [question]) for images, questions in groups for question in questions]
    names = [" + ".join(images) for images, _ in groups]
    # Each question is tokenised once, not once an epoch.
    tokenised: dict[tuple[str, str, str], tuple[Segment, ...]] = {}

    def segments(record: Record) -> tuple[Segment, ...]:
        key = (record.dataset, record.split, record.id)
        if key not in tokenised:
            tokenised[key] = _segments(record, context.rows, tokenizer, max_length)
        return tokenised[key]

    def draw(index: int, rng: np.random.Generator) -> Packed:
        images, questions = groups[index]
        chosen = rng.permutation(len(questions))[: context.max_questions]
        drawn = [segment for i in chosen for segment in segments(questions[i])]
        view = int(rng.integers(context.views)) if context.views > 1 else 0
        return _packed(images, drawn, context.rows, tokenizer, max_length, view)

    size, seed = context.spec.batch_size, context.seed
    total = context.steps * size
    if context.spec.batch_of == "images":
        return Schedule(draw, len(groups), total, seed, names, packed_length)
    return QuestionSchedule(
        *(draw, pictures, context.max_questions, max_length, size, total, seed, names),
        lambda sample: packed_length(sample) - len(sample.prefix),
    )


def packed_once(
    records: Sequence[Record],
    rows: Mapping[str, int],
    tokenizer: ConversationTokenizer,
    max_length: int | None = None,
) -> list[Packed]:
    """Return records in a fixed order, each once behind its picture, as far as they fit there.

    Raises:
        DataError: A question alone is longer than a sample.
    """
    by_images: dict[tuple[str, ...], list[Segment]] = defaultdict(list)
    for record in records:
        by_images[record.first_images] += _segments(record, rows, tokenizer, max_length)
    return [
        _packed(images, parts, rows, tokenizer, max_length) for images, parts in by_images.items()
    ]


def _segments(
    record: Record,
    rows: Mapping[str, int],
    tokenizer: ConversationTokenizer,
    max_length: int | None,
) -> tuple[Segment, ...]:
    """Return what of a record fits into a sample of its own, with the rows of its later images."""
    turns = [turn for turn, _ in record.further_images]
    later = [rows[image.id] for turn, image in record.further_images if turn > 0]
    room = _room(tokenizer.prefix(1 + turns.count(0)), max_length)
    whole = tokenizer.segments(turns_of(record), turns)
    cut = _cut(whole, room, f"{record.dataset}: question {record.id}")
    return tuple(replace(s, images=tuple(later[: tokenizer.images_in(s.ids)])) for s in cut)


def _packed(
    images: Sequence[str],
    segments: Sequence[Segment],
    rows: Mapping[str, int],
    tokenizer: ConversationTokenizer,
    max_length: int | None,
    view: int = 0,
) -> Packed:
    """Return a sample: the first images and the segments that fit behind them, in one view."""
    prefix, shift = tokenizer.prefix(len(images)), view * len(rows)
    kept = [
        replace(segment, images=tuple(row + shift for row in segment.images))
        for segment in _fitting(segments, _room(prefix, max_length))
    ]
    first, *further = (rows[name] + shift for name in images)
    return Packed(first, prefix, tuple(kept), tuple(further))


def _room(prefix: Sequence[int], max_length: int | None) -> int | None:
    """Return how many tokens there is room for behind a prefix, None for no limit."""
    return None if max_length is None else max_length - len(prefix)


def _cut(segments: Sequence[Segment], room: int | None, name: str) -> tuple[Segment, ...]:
    """Return the turns of a record that fit into a sample of its own.

    The turns that do not fit go; if it is the first, the end of its answer.
    """
    if room is None:
        return tuple(segments)
    fitting = tuple(s for segment in segments if (s := _whole_turns(segment, room)) is not None)
    if fitting:
        return fitting
    first = segments[0]
    begin = first.earlier[0][0] if first.earlier else len(first.ids) - first.answer_length
    if begin >= room:
        raise DataError(
            f"{name} has {begin} tokens, and max_length leaves {max(0, room)} behind the image; "
            "use a larger --set max_length=N"
        )
    return (Segment(first.ids[:room], room - begin),)


def _whole_turns(segment: Segment, room: int) -> Segment | None:
    """Return a segment up to its last turn that fits; None where not even the first does."""
    while len(segment.ids) > room:
        if not segment.earlier:
            return None
        *earlier, (first, end) = segment.earlier
        segment = Segment(segment.ids[:end], end - first, tuple(earlier))
    return segment


def _fitting(segments: Sequence[Segment], room: int | None) -> tuple[Segment, ...]:
    """Return the first segments that fit behind the image together."""
    if room is None:
        return tuple(segments)
    ends = np.cumsum([len(segment.ids) for segment in segments])
    return tuple(s for s, end in zip(segments, ends.tolist(), strict=True) if end <= room)


def train_packed(
    context: PhaseContext, trained: nn.Module | None = None, experts: Tensor | None = None
) -> PhaseResult:
    """Train ``context.model`` in place on the context's records; loss on answers only.

    Args:
        trained: What the Trainer sees, where it is the model with something around it.
        experts: (N,) of the images' rows, where that names an expert for each record.
    """
    schedule = packed_schedule(context)
    pad = context.processor.tokenizer.pad_token_id
    collate = PackingCollator(context.features, pad, experts, getattr(schedule, "pack", None))
    model = context.model if trained is None else trained
    features = context.features
    if not isinstance(features, FeaturesOnDemand):
        return run_phase(context, model, schedule, collate)

    def begin(sample: Packed) -> None:
        for row in sample.images:
            features.begin(row)

    return run_phase(context, model, schedule, collate, begin)
