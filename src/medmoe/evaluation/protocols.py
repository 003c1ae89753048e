"""The scoring protocols, each under its own name, for one pair of prediction and truth.

``reference`` is the scorer of the paper's released code (tables 1 and 2), ``llava_med`` that of
LLaVA-Med v1.0, ``token_f1`` the MedGemma style, ``strict`` ours and the headline. ``letter`` reads
the letter of a multiple-choice answer, ``report`` is for written reports. Scores of
different protocols are never averaged or compared. Averages, intervals and the choice among
several references are made in `medmoe.evaluation.score`, not here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType

from medmoe.errors import ConfigError, DataError, one_of
from medmoe.evaluation import metrics
from medmoe.evaluation.written_reports import report_scores

#: The letter that answers a multiple-choice question, read from an answer in words.
LETTER = "letter"
#: A written report, held against the true one without a model.
REPORT = "report"


def _reference_words(prediction: str, answer: str) -> dict[str, float]:
    """Everything of ``reference`` but BLEU; in lower case, as the released code calls it."""
    said, true = prediction.lower(), answer.lower()
    f1, precision, recall = metrics.reference_overlap(said, true)
    return {
        "exact_match": metrics.reference_exact_match(said, true),
        "f1": f1,
        "precision": precision,
        "recall": recall,
        "closed_correct": float(true in said),  # as a substring
    }


def _llava_med_words(prediction: str, answer: str) -> dict[str, float]:
    said = metrics.reference_normalise(prediction.lower())
    true = metrics.reference_normalise(answer.lower())
    # Any "yes" or "no" inside a word will do ("unknown"); without one even a right answer is wrong.
    right = ("yes" in said or "no" in said) and true in said
    return _reference_words(prediction, answer) | {"closed_correct": float(right)}


def _strict(prediction: str, answer: str, answer_type: str) -> dict[str, float]:
    if answer_type == "closed":
        return {"accuracy": metrics.closed_match(prediction, answer)}
    f1, _, recall = metrics.token_overlap(prediction, answer)
    return {"exact_match": metrics.exact_match(prediction, answer), "f1": f1, "recall": recall}


def _token_f1(prediction: str, answer: str, answer_type: str) -> dict[str, float]:
    scores = {"f1": metrics.token_overlap(prediction, answer)[0]}
    if answer_type == "closed":
        scores["accuracy"] = metrics.closed_match(prediction, answer)
    return scores


def _letter(prediction: str, answer: str) -> dict[str, float]:
    said = metrics.option_letter(prediction)
    right = said == answer if said else metrics.exact_match(prediction, answer)
    return {"accuracy": float(right)}


_SCORERS: Mapping[str, Callable[[str, str, str], dict[str, float]]] = {
    "reference": lambda prediction, answer, _: _reference_words(prediction, answer),
    "llava_med": lambda prediction, answer, _: _llava_med_words(prediction, answer),
    "strict": _strict,
    "token_f1": _token_f1,
    LETTER: lambda prediction, answer, _: _letter(prediction, answer),
    REPORT: lambda prediction, answer, _: report_scores(prediction, answer),
}
_WITH_BLEU = frozenset({"reference", "llava_med"})
BLEU = ("bleu1", "bleu2", "bleu3")
#: The names `score_pair` takes.
PROTOCOLS: tuple[str, ...] = tuple(_SCORERS)
#: The best-scored option of a closed set, instead of an answer in words.
LABEL_SCORE = "label_score"
ALL_PROTOCOLS: tuple[str, ...] = (*PROTOCOLS, LABEL_SCORE)


@lru_cache(maxsize=1 << 17)
def word_scores(
    protocol: str, prediction: str, answer: str, answer_type: str
) -> Mapping[str, float]:
    """Return what `score_pair` returns, read-only and without BLEU.

    Answers repeat a lot, above all those of constant baselines, so results are remembered.
    """
    if protocol not in _SCORERS:
        raise ConfigError(one_of(protocol, PROTOCOLS, "protocol"))
    if answer_type not in ("open", "closed"):
        raise DataError(one_of(answer_type, ("open", "closed"), "answer type"))
    return MappingProxyType(_SCORERS[protocol](prediction, answer, answer_type))


def score_pair(protocol: str, prediction: str, answer: str, answer_type: str) -> dict[str, float]:
    """Return the metrics of one pair under one protocol, each from 0 to 1.

    Args:
        protocol: One of `PROTOCOLS`.
        answer: The true answer.
        answer_type: ``open`` or ``closed``.

    Returns:
        ``reference`` and ``llava_med`` (both answer types): ``exact_match, f1, precision, recall,
        bleu1, bleu2, bleu3, closed_correct``. ``strict``: ``accuracy`` for closed, ``exact_match,
        f1, recall`` for open. ``token_f1``: ``f1``, and ``accuracy`` for closed. ``letter``:
        ``accuracy``. ``report``: of `report_scores`.

    Raises:
        ConfigError: The protocol is unknown.
        DataError: The answer type is neither ``open`` nor ``closed``.
    """
    scores = dict(word_scores(protocol, prediction, answer, answer_type))
    if protocol in _WITH_BLEU:
        scores |= zip(BLEU, metrics.reference_bleu(prediction, answer), strict=True)
    return scores
