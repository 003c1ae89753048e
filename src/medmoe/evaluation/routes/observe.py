"""Runs a model over a task's images, questions and answers, and sums what its routers decide.

Each image is encoded once and its questions stand packed behind it, with the task's own answers, as
in training; nothing is generated. An image's tokens count once, however many questions it has. What
is kept grows with images, layers and experts, not with tokens. Nothing is drawn or tested here.

Shapes: N images, L MoE layers, C token kinds (image, question, answer), E experts, T tokens,
D hidden, M images of the map.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medmoe.data.collate import Packed, pack_batch
from medmoe.data.images import open_record
from medmoe.data.schema import ImageRecord, Record, images_of, question_text
from medmoe.inference.engine import MedMoe
from medmoe.routing.hooks import ffn_inputs
from medmoe.routing.trace import KINDS, RoutingTrace, record_routing

#: Images and rows that go through the model at once, and questions behind one image.
_BATCH, _QUESTIONS = 8, 8
Progress = Callable[[int, int], None]  # images done, images in all


@dataclass(frozen=True, slots=True)
class Observation:
    """What one model's routers did.

    Attributes:
        images: The N images, in the order of the records.
        layers: Decoder layer indices of the MoE layers.
        counts: (N, L, C, E) int64, choices of the image's tokens of each kind; with top-k each of
            the k choices counts.
        points: Rows of ``images`` that are shown in the map.
        states: (M, L, D) float32, mean over an image's tokens of what the routers read.
        logits: (M, L, E) float32, mean over an image's tokens of what the routers give.
    """

    images: tuple[ImageRecord, ...]
    layers: tuple[int, ...]
    counts: npt.NDArray[np.int64]
    points: tuple[int, ...]
    states: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of a batch: an image, and whether its own tokens count here."""

    image: int
    first: bool
    packed: Packed


@torch.no_grad()
def observe(
    engine: MedMoe,
    records: Sequence[Record],
    mapped: Collection[str] = (),
    progress: Progress = lambda done, total: None,
) -> Observation:
    """Run a MoE model over records and sum its routing.

    Args:
        engine: Of a model with MoE layers.
        records: Questions with their answers; those of one image share a row.
        mapped: Ids of images whose states and logits are kept for the map.

    Raises:
        ImageError: A picture cannot be used; the record is named.
    """
    engine.look_inside("a figure of the routes")
    questions: dict[str, list[Record]] = {}
    for record in records:
        questions.setdefault(record.image.id, []).append(record)
    images = tuple(images_of(records))
    sums = _Sums(engine, len(images), {i for i, image in enumerate(images) if image.id in mapped})
    for start in range(0, len(images), _BATCH):
        part = images[start : start + _BATCH]
        features = engine.encode([open_record(image) for image in part])
        rows = [
            row
            for at, image in enumerate(part)
            for row in _rows(engine, start + at, at, questions[image.id])
        ]
        for first in range(0, len(rows), _BATCH):
            sums.add(rows[first : first + _BATCH], features)
        progress(min(start + _BATCH, len(images)), len(images))
    return sums.observation(images)


@torch.no_grad()
def image_states(
    engine: MedMoe, images: Sequence[ImageRecord], layers: Sequence[int]
) -> npt.NDArray[np.float32]:
    """Return the mean over each image's tokens of what the FFNs of some layers read (N, L, D).

    Works on a dense model too. Image tokens see no question, so none is asked.
    """
    engine.look_inside("a figure of the routes")
    prefix = engine.tokenizer.prefix()
    parts = []
    for start in range(0, len(images), _BATCH):
        part = images[start : start + _BATCH]
        features = engine.encode([open_record(image) for image in part])
        ids = torch.tensor([prefix] * len(part), device=engine.model.device)
        with ffn_inputs(engine.model, layers) as seen:
            engine.model(input_ids=ids, vision_features=features, logits_to_keep=1)
        parts.append(_pooled(seen, ids == engine.processor.image_token_id))
    return np.concatenate(parts)


def _rows(engine: MedMoe, image: int, feature: int, records: Sequence[Record]) -> list[_Row]:
    """Return the rows of one image: at most `_QUESTIONS` questions behind it in each."""
    prefix = engine.tokenizer.prefix()
    segments = [engine.segment(question_text(r), r.answer) for r in records]
    return [
        _Row(
            image, start == 0, Packed(feature, prefix, tuple(segments[start : start + _QUESTIONS]))
        )
        for start in range(0, len(segments), _QUESTIONS)
    ]


class _Sums:
    """What is summed while batches pass."""

    def __init__(self, engine: MedMoe, images: int, mapped: set[int]) -> None:
        self._engine = engine
        model: Any = engine.model
        self._layers = tuple(model.moe_blocks)
        shape = (images, len(self._layers), len(KINDS), model.config.num_experts)
        self._counts = np.zeros(shape, dtype=np.int64)
        self._mapped = mapped
        self._points: list[int] = []
        self._states: list[npt.NDArray[np.float32]] = []
        self._logits: list[npt.NDArray[np.float32]] = []

    def add(self, rows: Sequence[_Row], features: Tensor) -> None:
        """Run one batch and add what its routers decided."""
        model, device = self._engine.model, self._engine.model.device
        pad = self._engine.processor.tokenizer.pad_token_id
        batch = pack_batch([row.packed for row in rows], pad)
        chosen = features[[row.packed.image for row in rows]]
        points = [i for i, row in enumerate(rows) if row.first and row.image in self._mapped]
        with (
            record_routing(model) as trace,
            ffn_inputs(model, self._layers if points else ()) as states,
        ):
            trace.token_mask = _counted(rows, batch["input_ids"].shape)
            inputs = {name: tensor.to(device) for name, tensor in batch.items()}
            # The labels tell the trace which tokens are the answer; the head runs on those alone.
            model(**inputs, vision_features=chosen.to(device), answers_only=True)
        image_T = np.array([row.image for row in rows])[trace.rows]
        for place, layer in enumerate(self._layers):
            for chosen_T in trace.experts(layer).T:
                np.add.at(self._counts[:, place], (image_T, trace.kinds, chosen_T), 1)
        if points:
            self._add_points(rows, points, trace, states, batch["input_ids"])

    def _add_points(
        self,
        rows: Sequence[_Row],
        points: Sequence[int],
        trace: RoutingTrace,
        states: Sequence[Tensor],
        ids: Tensor,
    ) -> None:
        image_BS = ids == self._engine.processor.image_token_id
        self._points += [rows[i].image for i in points]
        self._states.append(_pooled(states, image_BS)[points])
        of_image = trace.kinds == KINDS.index("image")
        self._logits.append(
            np.array(
                [
                    [trace.logits(n)[of_image & (trace.rows == i)].mean(0) for n in self._layers]
                    for i in points
                ],
                dtype=np.float32,
            )
        )

    def observation(self, images: tuple[ImageRecord, ...]) -> Observation:
        empty = np.zeros((0, len(self._layers), 0), dtype=np.float32)
        return Observation(
            images=images,
            layers=self._layers,
            counts=self._counts,
            points=tuple(self._points),
            states=np.concatenate(self._states) if self._states else empty,
            logits=np.concatenate(self._logits) if self._logits else empty,
        )


def _counted(rows: Sequence[_Row], shape: Sequence[int]) -> Tensor:
    """Return which tokens count (B, S): no padding, and the image once however many rows it has."""
    counted_BS = torch.zeros(tuple(shape), dtype=torch.bool)
    for i, row in enumerate(rows):
        start = len(row.packed.prefix)
        end = start + sum(len(segment.ids) for segment in row.packed.segments)
        counted_BS[i, 0 if row.first else start : end] = True
    return counted_BS


def _pooled(states: Sequence[Tensor], image_BS: Tensor) -> npt.NDArray[np.float32]:
    """Return the mean (B, L, D) of layers' states (B, S, D) over the tokens of the image."""
    weights_BS1 = image_BS[..., None].to(states[0].device)
    means = [(s.float() * weights_BS1).sum(1) / weights_BS1.sum(1) for s in states]
    pooled: npt.NDArray[np.float32] = torch.stack(means, 1).cpu().numpy()
    return pooled
