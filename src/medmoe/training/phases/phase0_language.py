"""Phase 0, second half: a stand-in language model, trained from scratch on the training texts.

Not in the paper, which starts from Phi-2 or StableLM. It sees questions, answers and captions
without pictures, so all it can learn is how they are worded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from medmoe.backbones.spec import LanguageBackbone
from medmoe.data.collate import IGNORE
from medmoe.data.schema import Record, turns_of
from medmoe.data.tokenize import ConversationTokenizer
from medmoe.training.context import PhaseRun
from medmoe.training.schedule import Schedule
from medmoe.training.trainer import PhaseResult, run_phase


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
    """Return the language model trained on the records' texts, and its learning curve."""
    words = ConversationTokenizer(processor, image_tokens=1)
    conversations = [words.text_only(turns_of(record)) for record in records]
    tokenizer = processor.tokenizer
    model = new_language_model(backbone, tokenizer, run.seed)

    def draw(index: int, rng: np.random.Generator) -> tuple[int, ...]:
        return conversations[index]

    def collate(samples: Sequence[tuple[int, ...]]) -> dict[str, Tensor]:
        rows = [torch.tensor(sample) for sample in samples]
        ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
        return {"input_ids": ids, "labels": pad_sequence(rows, True, IGNORE)}

    schedule = Schedule(draw, len(conversations), run.steps * run.spec.batch_size, run.seed)
    return model, run_phase(run, model, schedule, collate)
