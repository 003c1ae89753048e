"""Phase 0 of the vision encoder: a stand-in trained from scratch, or a pretrained one adapted.

Not in the paper, which starts from CLIP and freezes it. Where no pretrained weights can be had, a
small encoder learns from the same training pictures by contrastive image-text pairs and by the
attributes known of them (modality, plane, finding, …); one that never met a medical picture goes
on learning from them in the same way. The heads are thrown away afterwards.

Shapes: B pictures, P patches, D encoder width, V vocabulary.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel

from medmoe.backbones.spec import VisionBackbone
from medmoe.config.train_schema import ValidationSpec
from medmoe.data.pixels import PixelTable, augmented, normalise
from medmoe.data.schema import ImageRecord, Record, images_of, with_images
from medmoe.training.context import PhaseRun, Validation
from medmoe.training.schedule import Schedule
from medmoe.training.trainer import PhaseResult, run_phase

#: An attribute value must be seen on this many pictures to be worth a class.
MIN_PICTURES = 8
#: Widest space that pictures and texts are compared in.
_JOINT_WIDTH = 256
_MEASURED_TOGETHER = 32


@dataclass(frozen=True, slots=True)
class EncoderSample:
    """One picture: its row, a caption's token ids, its classes (-1 = unknown), its draws.

    Attributes:
        side: In pixels, of the picture in training; None leaves it as large as it is.
    """

    row: int
    caption: tuple[int, ...]
    classes: tuple[int, ...]
    draws: tuple[float, ...] = (0.0,) * 6
    side: int | None = None


class SideSchedule(Schedule[EncoderSample]):
    """The samples of a phase whose pictures have one side after another, each for as many steps.

    Small pictures first cost less; the last side should be the one that the encoder is used at.
    """

    def __init__(self, sides: Sequence[int], batch_size: int, *schedule: Any) -> None:
        super().__init__(*schedule)
        self._sides, self._batch_size = sides, batch_size

    def __getitem__(self, index: int) -> EncoderSample:
        if not self._sides:
            return super().__getitem__(index)
        first = index - index % self._batch_size  # pictures of one batch have one side
        return replace(
            super().__getitem__(index), side=self._sides[first * len(self._sides) // len(self)]
        )


class AttributeHead(nn.Module):
    """One attribute's throw-away classifier: a learned query looks for it among the patches.

    A query per attribute keeps what is local (a small nodule) in its patch, where the language
    model will look for it later, instead of asking the mean of all patches for it.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, 1)
        self.classify = nn.Linear(width, classes)

    def forward(self, patches: Tensor) -> Tensor:
        """Return logits (B, classes) of patches (B, P, D)."""
        weights = self.query(patches).softmax(dim=1)
        logits: Tensor = self.classify((weights * patches).sum(dim=1))
        return logits


class EncoderPretraining(nn.Module):
    """The encoder with its throw-away heads: one per attribute, and one for captions.

    Args:
        classes: Number of classes of each attribute.
        vocab_size: Of the tokenizer, for the bag of caption words.
        encoder: Pretrained, trained in place; None begins from scratch.
    """

    def __init__(
        self,
        vision: VisionBackbone,
        classes: Sequence[int],
        vocab_size: int,
        label_smoothing: float,
        encoder: Any = None,
    ) -> None:
        super().__init__()
        self.encoder: Any = encoder if encoder is not None else _from_scratch(vision)
        self.select_layer = vision.select_layer
        self.first_patch = int(vision.select_strategy == "default")
        width = self.encoder.config.hidden_size
        joint = min(width, _JOINT_WIDTH)
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(AttributeHead(width, count) for count in classes)
        self.image_projection = nn.Linear(width, joint)
        self.words = nn.EmbeddingBag(vocab_size, joint, mode="mean")
        self.text_projection = nn.Sequential(
            nn.Linear(joint, joint), nn.GELU(), nn.Linear(joint, joint)
        )
        self.log_temperature = nn.Parameter(torch.tensor(2.0))
        self.smoothing = label_smoothing

    def forward(
        self,
        pixel_values: Tensor,
        words: Tensor,
        offsets: Tensor,
        classes: Tensor,
    ) -> dict[str, Tensor]:
        """Return the mean of the attribute losses plus the contrastive loss.

        Args:
            pixel_values: (B, 3, H, W).
            words, offsets: The captions' tokens, flat, and where each begins, as EmbeddingBag's.
            classes: (B, A) int64, -1 where an attribute is unknown.
        """
        patches = self.patches(pixel_values)
        losses = [
            functional.cross_entropy(
                head(patches[known]), classes[known, i], label_smoothing=self.smoothing
            )
            for i, head in enumerate(self.heads)
            if (known := classes[:, i] >= 0).any()
        ]
        attributes = torch.stack(losses).mean() if losses else patches.new_zeros(())
        contrast = self._contrast(patches.mean(dim=1), words, offsets)
        return {"loss": attributes + 0.2 * contrast}

    def patches(self, pixel_values: Tensor) -> Tensor:
        """Return the normed patch states (B, P, D), without the class token."""
        states = self.encoder(pixel_values, output_hidden_states=True).hidden_states
        normed: Tensor = self.norm(states[self.select_layer][:, self.first_patch :])
        return normed

    def _contrast(self, pooled: Tensor, words: Tensor, offsets: Tensor) -> Tensor:
        """Return the loss of telling each picture's own caption, and each caption's own picture.

        Captions that are equal need no care: their logits are equal too, so targets shared among
        their pictures would give the same loss.
        """
        image = functional.normalize(self.image_projection(pooled), dim=-1)
        text = functional.normalize(self.text_projection(self.words(words, offsets)), dim=-1)
        logits = image @ text.T * self.log_temperature.clamp(max=4.0).exp()
        target = torch.arange(len(logits), device=logits.device)
        return (
            functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
        ) / 2


@torch.no_grad()
def _from_scratch(vision: VisionBackbone) -> Any:
    """Return a new encoder; its position embeddings (1 + P, D) are sines of row and column.

    Where a patch lies is then known from the first step, not learned from few pictures.
    """
    config = AutoConfig.for_model(vision.model_type, **vision.config)
    encoder: Any = AutoModel.from_config(config)
    weight: Tensor = encoder.embeddings.position_embedding.weight
    side = math.isqrt(len(weight) - 1)
    quarter = weight.shape[1] // 4
    rates = 1 / 10_000 ** (torch.arange(quarter) / quarter)
    angles = torch.arange(side)[:, None] * rates
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves.repeat_interleave(side, dim=0), waves.repeat(side, 1)
    weight[1:, : 4 * quarter] = 0.5 * torch.cat([rows, columns], dim=1)
    return encoder


def attribute_classes(images: Sequence[ImageRecord]) -> dict[str, list[str]]:
    """Return each attribute's values that are frequent enough to be classes.

    Attributes are the modality, the organ and the records' further labels.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for image in {image.id: image for image in images}.values():
        for name, value in _attributes(image).items():
            counts[name][value] += 1
    kept = {
        name: sorted(value for value, count in values.items() if count >= MIN_PICTURES)
        for name, values in sorted(counts.items())
    }
    return {name: values for name, values in kept.items() if len(values) > 1}


def labelled_by_answers(records: Sequence[Record]) -> list[Record]:
    """Return the records, with what their pictures' questions say among the pictures' labels.

    The label of a closed question is named by the question, that of an open one by its data set and
    type: "ct with iv contrast" tells more than the modality. Two answers to one name are no label.
    """
    answers: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for record in records:
        if record.task == "vqa" and not record.further_images:  # else it is no one picture's
            closed = record.answer_type == "closed"
            asked = record.question.lower() if closed else record.question_type
            answers[record.image.id][f"{record.dataset}: {asked}"].add(record.answer.lower())
    labels = {
        name: {asked: said for asked, (said, *more) in of.items() if not more}
        for name, of in answers.items()
    }

    def labelled(image: ImageRecord) -> ImageRecord:
        return replace(image, labels={**image.labels, **labels.get(image.id, {})})

    return [with_images(record, labelled) for record in records]


def _attributes(image: ImageRecord) -> dict[str, str]:
    values = dict(image.labels)
    if image.modality:
        values["modality"] = image.modality
    if image.organ:
        values["organ"] = image.organ
    return values


def train_encoder(
    run: PhaseRun,
    vision: VisionBackbone,
    records: Sequence[Record],
    repeats: Mapping[str, int],
    table: PixelTable,
    tokenizer: Any,
    encoder: Any = None,
    measured: Sequence[Record] = (),
    validation: ValidationSpec | None = None,
) -> tuple[Any, PhaseResult, dict[str, dict[str, float]]]:
    """Train a vision encoder, frozen from here on.

    Args:
        records: Their captions name the pictures; one without is named by its attributes. Of a
            pretrained encoder the answers to open questions name them too.
        repeats: How often a data set's images come in one epoch, once where not named.
        table: Pixels of all pictures.
        encoder: Pretrained; None begins from scratch.
        measured: Records of pictures that are not trained on, for the validation loss and the
            accuracy of the attributes.
        validation: When they are measured, and whether the lowest loss is kept.

    Returns:
        The encoder, its learning curve, and what `accuracies` gives.
    """
    texts = _texts([*records, *measured], answers=encoder is not None)
    if run.spec.answers:
        records, measured = labelled_by_answers(records), labelled_by_answers(measured)
    dataset = {image.id: record.dataset for record in records for image in record.images}
    images = [
        image for image in images_of(records) for _ in range(repeats.get(dataset[image.id], 1))
    ]
    classes = attribute_classes(images)
    torch.manual_seed(run.seed)
    counts = [len(values) for values in classes.values()]
    model = EncoderPretraining(vision, counts, len(tokenizer), run.spec.label_smoothing, encoder)
    samples = _samples(images, texts, classes, table, tokenizer)

    def draw(index: int, rng: np.random.Generator) -> EncoderSample:
        sample = samples[index][rng.integers(len(samples[index]))]
        draws = rng.uniform(-1, 1, size=6 if encoder is None else 7)
        return replace(sample, draws=tuple(draws.tolist()))

    held_out = [s for s, *_ in _samples(images_of(measured), texts, classes, table, tokenizer)]
    if validation is not None and held_out:
        watched = Validation(held_out, partial(_collate, table=table), validation.every)
        run = replace(run, validation=replace(watched, keep_best=validation.keep_best))
    size = run.spec.batch_size
    schedule = SideSchedule(run.spec.sides, size, draw, len(images), run.steps * size, run.seed)
    collate = partial(_collate, table=table, strength=run.spec.augment)
    result = run_phase(run, model, schedule, collate)
    taught = [sample for sample, *_ in samples]
    return model.encoder, result, accuracies(model, list(classes), taught, held_out, table)


@torch.no_grad()
def accuracies(
    model: EncoderPretraining,
    attributes: Sequence[str],
    trained: Sequence[EncoderSample],
    held_out: Sequence[EncoderSample],
    table: PixelTable,
) -> dict[str, dict[str, float]]:
    """Return, by attribute, its head's accuracy in percent on pictures not trained on.

    Beside it ``most_frequent``: that of always saying the most frequent class of the training
    pictures, and ``n``: pictures with a class that is known.
    """
    device = next(model.parameters()).device
    said: list[list[int]] = [[] for _ in attributes]
    for start in range(0, len(held_out), _MEASURED_TOGETHER):
        rows = torch.tensor([s.row for s in held_out[start : start + _MEASURED_TOGETHER]])
        patches = model.patches(table.normalised(rows).to(device))
        for guesses, head in zip(said, model.heads, strict=True):
            guesses += head(patches).argmax(-1).tolist()
    found = {}
    for number, name in enumerate(attributes):
        usual = statistics.mode(c for s in trained if (c := s.classes[number]) >= 0)
        pairs = zip(said[number], (s.classes[number] for s in held_out), strict=True)
        right = [(guess == truth, usual == truth) for guess, truth in pairs if truth >= 0]
        if right:
            share = torch.tensor(right).double().mean(dim=0)
            accuracy, frequent = (100 * share).round(decimals=1).tolist()
            found[name] = {"accuracy": accuracy, "most_frequent": frequent, "n": len(right)}
    return found


def _texts(records: Sequence[Record], *, answers: bool) -> dict[str, list[str]]:
    """Return what names each picture: its captions, else its attributes.

    Args:
        answers: All its answers to open questions, as one text, name it too.
    """
    texts: dict[str, list[str]] = defaultdict(list)
    said: dict[str, list[str]] = defaultdict(list)
    for record in records:
        if record.further_images:  # what is said of several names none
            continue
        if record.task == "caption":
            texts[record.image.id].append(record.answer)
        elif answers and record.task == "vqa" and record.answer_type == "open":
            said[record.image.id].append(record.answer)
    for image in images_of(records):
        if image.id in said:
            texts[image.id].append(" ".join(said[image.id]))
        texts.setdefault(image.id, [" ".join(_attributes(image).values()) or "image"])
    return texts


def _samples(
    images: Sequence[ImageRecord],
    texts: Mapping[str, Sequence[str]],
    classes: Mapping[str, Sequence[str]],
    table: PixelTable,
    tokenizer: Any,
) -> list[list[EncoderSample]]:
    """Return each picture with each of its texts."""
    samples = []
    for image in images:
        known = _attributes(image)
        targets = tuple(
            values.index(known[name]) if known.get(name) in values else -1
            for name, values in classes.items()
        )
        ids = [tokenizer(t, add_special_tokens=False).input_ids for t in texts[image.id]]
        row = table.rows[image.id]
        samples.append([EncoderSample(row, tuple(words), targets) for words in ids])
    return samples


def _collate(
    samples: Sequence[EncoderSample], table: PixelTable, strength: float = 0.0
) -> dict[str, Tensor]:
    """Return the inputs of `EncoderPretraining`."""
    unit = table.pixels[torch.tensor([s.row for s in samples])].float() / 255
    if side := samples[0].side:
        unit = functional.interpolate(unit, size=side, mode="bilinear", antialias=True)
    unit = augmented(unit, torch.tensor([s.draws for s in samples]), strength)
    starts = np.cumsum([0, *(len(s.caption) for s in samples)])[:-1]
    return {
        "pixel_values": normalise(unit, table.mean, table.std),
        "words": torch.tensor([word for s in samples for word in s.caption]),
        "offsets": torch.from_numpy(starts),
        "classes": torch.tensor([s.classes for s in samples]),
    }
