"""How readily a model ends an answer, and says yes rather than no, set right on validation answers.

Two numbers are added to logits: one to that of the token that ends an answer (so answers become
shorter or longer), one to those that begin "yes", and taken from those that begin "no". Each is the
one under which the true validation answers are likeliest. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from medmoe.data.collate import IGNORE
from medmoe.data.tokenize import ConversationTokenizer
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration

#: Fewer answers of either kind say nothing about it.
LEAST = 10
#: The largest shift of a logit that is tried.
MOST = 20.0
_YES, _NO = ("yes", "Yes", "YES"), ("no", "No", "NO")


@torch.no_grad()
def fit_answer_bias(
    model: MedMoeForConditionalGeneration,
    tokenizer: ConversationTokenizer,
    end: int,
    batches: Iterable[Mapping[str, Any]],
) -> dict[str, float]:
    """Fit both numbers, and keep them in the model's generation config (``sequence_bias``).

    Args:
        end: Id of the token that ends an answer.
        batches: Packed validation answers, as `medmoe.data.collate.PackingCollator` gives them.

    Returns:
        ``end`` and ``yes``: what is added to the logits; 0 where too few answers tell.
    """
    model.eval()
    yes, no = (sorted({_first(tokenizer, word) for word in words}) for words in (_YES, _NO))
    ends: list[tuple[Tensor, Tensor]] = []
    said: list[tuple[Tensor, Tensor]] = []
    for batch in batches:
        logits, true = _of_answers(model, batch)
        ended, is_end = logits[:, end], true == end
        others = logits.index_fill(1, torch.tensor([end], device=logits.device), -torch.inf)
        ends.append((ended - others.logsumexp(1), is_end))
        is_yes, is_no = (torch.isin(true, true.new_tensor(ids)) for ids in (yes, no))
        lead = logits[:, yes].logsumexp(1) - logits[:, no].logsumexp(1)
        said.append((lead[is_yes | is_no], is_yes[is_yes | is_no]))
    bias = {"end": _shift(ends), "yes": _shift(said)}
    half = bias["yes"] / 2
    tokens = {end: bias["end"], **dict.fromkeys(yes, half), **dict.fromkeys(no, -half)}
    model.generation_config.sequence_bias = [[[t], b] for t, b in tokens.items() if b] or None
    return bias


def _first(tokenizer: ConversationTokenizer, answer: str) -> int:
    """Return the id that an answer begins with; behind a prompt that may be another than alone."""
    segment = tokenizer.segment("", answer)
    return segment.ids[-segment.answer_length]


def _of_answers(
    model: MedMoeForConditionalGeneration, batch: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Return the logits (N, V), float32, before every answer token of a batch, and the tokens."""
    inputs = {name: value.to(model.device) for name, value in batch.items()}
    known = inputs.pop("labels") != IGNORE
    known[:, 0] = False
    out = model(**inputs, output_hidden_states=True, logits_to_keep=1)
    states = out.hidden_states[-1][known.roll(-1, 1)]
    return model.lm_head(states).float(), inputs["input_ids"][known]


def _shift(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Return what to add to log-odds (N,) so that the outcomes (N,) are likeliest."""
    odds, outcomes = (torch.cat(part).cpu().numpy() for part in zip(*pairs, strict=True))
    signs = np.where(outcomes, 1.0, -1.0)
    if min((signs > 0).sum(), (signs < 0).sum()) < LEAST:
        return 0.0

    def loss(shift: float) -> float:
        return float(np.logaddexp(0, -signs * (odds + shift)).mean())

    return float(minimize_scalar(loss, bounds=(-MOST, MOST), method="bounded").x)
