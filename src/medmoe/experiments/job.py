"""One phase to run, and what it is given: features, context, and what is measured on the way.

Training knows no scoring and scoring no training; here they meet.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medmoe.config.schema import PhaseName
from medmoe.config.train_schema import TrainPhaseSpec, TrainSpec
from medmoe.data.collate import PackingCollator
from medmoe.data.pixels import pixel_table
from medmoe.data.readers.common import hash_share
from medmoe.data.schema import ImageRecord, Record, images_of
from medmoe.data.tokenize import ConversationTokenizer, PlainTokenizer
from medmoe.evaluation.ask.asker import predict, unfit
from medmoe.evaluation.ask.records import turn_by_turn
from medmoe.evaluation.score.measures import is_right
from medmoe.experiments.data import TrainData, steps_of
from medmoe.experiments.plan import TrainPlan
from medmoe.inference.engine import MedMoe
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.model.pretrained import vision_of
from medmoe.processes import own_gpu
from medmoe.training.context import PhaseContext, Progress, RunSettings, Validation
from medmoe.training.features import FeaturesOnDemand, Views, encode_images
from medmoe.training.load_balance import MoeWrapper
from medmoe.training.packed import packed_once
from medmoe.training.trainer import PhaseResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """One phase of a plan to run.

    Attributes:
        inputs: Model directory of each phase it starts from, checked.
        facts: Provenance that goes into the model directory.
        found: Further results for ``run.json``, filled by the phase.
    """

    plan: TrainPlan
    phase: PhaseName
    inputs: Mapping[PhaseName, Path]
    data: TrainData
    settings: RunSettings
    progress: Progress
    facts: Mapping[str, Any]
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> TrainSpec:
        """The recipe."""
        return self.plan.recipe.spec

    @property
    def values(self) -> TrainPhaseSpec:
        """The phase's part of the recipe."""
        return self.spec.phases[self.phase]

    @property
    def model(self) -> Path:
        """Where the phase's result goes."""
        return self.plan.out / self.phase / "model"

    def provenance(self, result: PhaseResult) -> dict[str, Any]:
        """Return what the model directory says of its training, this phase's steps included."""
        steps = result.curve[-1][0] if result.curve else 0
        return {**self.facts, "phases": {**self.facts["phases"], self.phase: steps}}

    def run(self, samples: int) -> dict[str, Any]:
        """Return what `PhaseRun` takes, for so many samples in an epoch."""
        return {
            "phase": self.phase,
            "spec": self.values,
            "steps": steps_of(self.values, samples),
            "seed": self.plan.seed,
            "progress": self.progress,
            "settings": self.settings,
        }


def context_of(
    job: Job,
    model: MedMoeForConditionalGeneration,
    processor: Any,
    images: Sequence[ImageRecord] | None = None,
    samples: int | None = None,
) -> PhaseContext:
    """Return what a phase trains with, the features of its images encoded.

    Args:
        images: Instead of all of the phase's sets.
        samples: In an epoch, instead of the phase's records.
    """
    if torch.cuda.is_available():
        model.to(own_gpu())
    views = 1 if job.spec.model.blind else job.values.views
    pictures = images or job.data.images(job.phase)
    features, rows = features_of(job, model, processor, pictures, views)
    # Of data without captions phase 1 takes the questions, and asks them.
    plain = job.values.prompt == "plain" and job.data.tasks(job.phase) == ("caption",)
    tokenizer = PlainTokenizer if plain else ConversationTokenizer
    context = PhaseContext(
        **job.run(job.data.samples(job.phase) if samples is None else samples),
        model=model,
        processor=processor,
        tokenizer=tokenizer(processor, model.config.image_seq_length),
        features=features,
        rows=rows,
        records=job.data.records(job.phase),
        repeats=job.spec.data.repeats,
        max_questions=job.values.max_questions,
        max_length=job.spec.max_length,
        views=views,
    )
    return replace(context, validation=_validation(job, context))


def _validation(job: Job, context: PhaseContext) -> Validation | None:
    """Return what is measured while a phase trains; None for nothing, as for router and experts.

    The pictures are encoded apart from those trained on, whose features stay what they are.
    """
    spec = job.spec.validation
    if spec is None or job.phase in ("phase2_router", "phase3_experts"):
        return None
    tasks = job.data.tasks(job.phase)
    known = [record for record in job.data.validation if record.task in tasks]
    if not known:
        logger.warning(
            "%s: nothing is measured, as %s have no record of task %s",
            *(job.phase, ", ".join(spec.data), " or ".join(tasks)),
        )
        return None
    drawn = spread(known, spec.questions, job.plan.seed)
    questions = [record for record in known if record.task != "caption" and spec.score]
    asked = spread(questions, spec.questions, job.plan.seed)
    processor = context.processor
    table, rows = features_of(job, context.model, processor, images_of([*drawn, *asked]))
    features = table[torch.arange(len(rows))]
    return Validation(
        samples=packed_once(drawn, rows, context.tokenizer, context.max_length),
        collate=PackingCollator(features, processor.tokenizer.pad_token_id),
        every=spec.every,
        score=strict_score(processor, asked, features, rows) if asked else None,
        keep_best=spec.keep_best,
    )


def spread(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    """Return at most so many records, on as many pictures as there are; the seed draws them."""
    by_image: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda r: hash_share(f"{r.dataset}/{r.id}", seed)):
        by_image[record.image.id].append(record)
    images = sorted(by_image, key=lambda name: hash_share(name, seed))
    most = max(map(len, by_image.values()), default=0)
    turns = (by_image[name][turn : turn + 1] for turn in range(most) for name in images)
    return [record for turn in turns for record in turn][:count]


def strict_score(
    processor: Any, records: Sequence[Record], features: Tensor, rows: Mapping[str, int]
) -> Callable[[nn.Module], float]:
    """Return what asks a model the questions and gives the percentage answered right.

    Of a conversation every question is asked, with the true turns before it. What is longer than
    the model can read is not asked, and counts as wrong.

    Args:
        features: (N, P, D_vision) of the pictures.
        rows: Row of each image id in ``features``.
    """
    # Ids are unique within their set only.
    asked = [turn for record in records for turn in turn_by_turn(record)]
    numbered = [replace(record, id=str(number)) for number, record in enumerate(asked)]

    def score(model: nn.Module) -> float:
        whole: Any = model.model if isinstance(model, MoeWrapper) else model
        engine = MedMoe(whole, processor)
        refused = {record.id for record, _ in unfit(engine, numbered)}
        fitting = [record for record in numbered if record.id not in refused]
        answers = predict(engine, fitting, features, dict(rows))
        return 100 * sum(map(is_right, fitting, answers)) / len(numbered)

    return score


def features_of(
    job: Job,
    model: Any,
    processor: Any,
    images: Sequence[ImageRecord],
    views: int = 1,
    *,
    autocast: bool = True,
) -> Any:
    """Return features of the images, of so many views of each, indexed like a tensor; and rows.

    Args:
        autocast: Encode in the run's precision; else in float32.
    """
    vision = replace(
        vision_of(job.spec.model),
        select_layer=model.config.vision_feature_layer,
        select_strategy=model.config.vision_feature_select_strategy,
    )
    encoder = model.model.vision_tower
    if job.spec.model.blind:
        nothing = encoder(torch.zeros(1, 3, 1, 1)).last_hidden_state
        rows = {image.id: row for row, image in enumerate(images)}
        return nothing.expand(len(rows), -1, -1), rows
    if job.values.keep_features:
        table = pixel_table(images, processor.image_processor)
        autocast = autocast and job.settings.precision == "bf16"
        # The phases share the kept features.
        cache = job.plan.out / "features"
        encode = partial(encode_images, encoder, cache=cache, autocast=autocast)
        tables = [replace(table, view=v, strength=job.values.augment) for v in range(views)]
        versions = [encode(table=version, vision=vision) for version in tables]
        return versions[0] if views == 1 else Views(versions), table.rows
    on_demand = FeaturesOnDemand(encoder, vision, processor.image_processor, images)
    return on_demand, on_demand.rows
