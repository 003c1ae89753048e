"""Phase 0, second half: a stand-in language model, trained from scratch on the training texts.

Not in the paper, which starts from Phi-2 or StableLM. It sees questions, answers and captions
without pictures: how they are worded and, where a recipe says so, how to read. A caption then
stands in the picture's place and is asked the picture's closed questions, whose answers must be
compared with what it says ("one small ring on the left side": is the finding large?). Phi-2 can do
that before it meets a picture; a stand-in that cannot learns it from pictures late, or by luck.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from medmoe.backbones.spec import LanguageBackbone
from medmoe.data.collate import IGNORE
from medmoe.data.schema import Record
from medmoe.data.tokenize import ConversationTokenizer
from medmoe.data.wording import question_text, turns_of
from medmoe.training.context import PhaseRun
from medmoe.training.schedule import Schedule
from medmoe.training.trainer import PhaseResult, run_phase

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Text:
    """The token ids of one conversation, and the place from which on they are trained on."""

    ids: tuple[int, ...]
    start: int = 0


def new_language_model(backbone: LanguageBackbone, tokenizer: Any, seed: int) -> PreTrainedModel:
    """Return a language model of the backbone's shape with random weights from ``seed``."""
    config = AutoConfig.for_model(
        backbone.model_type,
        **backbone.config,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def train_language_model(
    run: PhaseRun, backbone: LanguageBackbone, records: Sequence[Record], processor: Any
) -> tuple[PreTrainedModel, PhaseResult]:
    """Return the language model trained on the records' texts, and its learning curve.

    A share ``reading`` of the samples is a caption that is asked a closed question, of which the
    answer is trained on; of the others, every token.
    """
    words = ConversationTokenizer(processor, image_tokens=1)
    tokenizer = processor.tokenizer
    captions_read = reading_texts(records, words) if run.spec.reading else []
    if run.spec.reading and not captions_read:
        logger.warning(
            "%s: no caption of a picture with closed questions to read; wording alone is learned",
            run.phase,
        )
    texts = [Text(words.text_only(turns_of(record))) for record in records]
    model = new_language_model(backbone, tokenizer, run.seed)

    def draw(index: int, rng: np.random.Generator) -> Text:
        if captions_read and rng.random() < run.spec.reading:
            return captions_read[rng.integers(len(captions_read))]
        return texts[index]

    def collate(samples: Sequence[Text]) -> dict[str, Tensor]:
        length = max(len(sample.ids) for sample in samples)
        ids = torch.full((len(samples), length), tokenizer.pad_token_id)
        labels = torch.full((len(samples), length), IGNORE)
        for row, sample in enumerate(samples):
            end = len(sample.ids)
            ids[row, :end] = torch.tensor(sample.ids)
            labels[row, sample.start : end] = ids[row, sample.start : end]
        return {"input_ids": ids, "labels": labels}

    schedule = Schedule(draw, len(texts), run.steps * run.spec.batch_size, run.seed)
    return model, run_phase(run, model, schedule, collate)


def reading_texts(records: Sequence[Record], words: ConversationTokenizer) -> list[Text]:
    """Return every closed question behind each caption of its picture, in the records' order."""
    captions: dict[str, list[str]] = {}
    for record in records:
        if record.task == "caption":
            captions.setdefault(record.image.id, []).append(record.answer)
    return [
        Text(ids, len(ids) - words.segment(asked, record.answer).answer_length)
        for record in records
        if record.task == "vqa" and record.answer_type == "closed"
        for caption in captions.get(record.image.id, ())
        for asked in [f"{caption} {question_text(record)}"]
        for ids in [words.text_only([(asked, record.answer)])]
    ]
