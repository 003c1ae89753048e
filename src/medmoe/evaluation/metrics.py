"""Normalisation and per-pair metrics: how close one predicted answer is to one true answer.

Two families that are never mixed. `normalise` and what is built on it are ours, used by the
``strict`` and ``token_f1`` protocols. Everything named ``reference_*`` repeats the scorer of the
paper's released code (its tables 1 and 2) to the last digit, faults included, so that published
numbers can be compared. This module knows no protocol, no subset and no average.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

_CACHE = 1 << 16
_COUNTING = "zero one two three four five six seven eight nine ten"
_NUMBER_WORDS: Mapping[str, str] = {
    word: str(number) for number, word in enumerate(_COUNTING.split())
} | {"none": "0"}
_ARTICLES = frozenset({"a", "an", "the"})

# --- ours -------------------------------------------------------------------------------------

_DROPPED = str.maketrans("", "", "'`\u2019\u2018\u02bc\u00b4")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# A number keeps its decimals and a leading minus ("-40 HU" is not "40 HU") and is parted from its
# unit ("5mm" = "5 mm"); a word keeps its digits ("t1"); signs that carry meaning stand alone. In
# Chinese, which parts no words, each character counts as one (SLAKE's Chinese questions).
_HAN = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(
    rf"(?<![^\W_])-?(?:\d+(?:\.\d+)?|\.\d+)|[{_HAN}]|[^\W_{_HAN}]+|[<>+%\u2264\u2265\u00b1]"
)


@lru_cache(maxsize=_CACHE)
def words(text: str) -> tuple[str, ...]:
    """Return the normalised words of an answer.

    Case, punctuation, apostrophes and articles do not count; number words to ten become digits
    (``none`` is 0). An answer of articles only keeps them, so that option ``A`` stays an answer.
    """
    plain = unicodedata.normalize("NFKC", text).casefold().translate(_DROPPED)
    parts = _TOKEN.findall(_THOUSANDS.sub("", plain))
    tokens = [_NUMBER_WORDS.get(t, t) for t in parts]
    tokens = [t.replace(".", "0.", 1) if t.lstrip("-").startswith(".") else t for t in tokens]
    return tuple(t for t in tokens if t not in _ARTICLES) or tuple(tokens)


def normalise(text: str) -> str:
    """Return the normalised answer, its words joined by single spaces."""
    return " ".join(words(text))


def exact_match(prediction: str, answer: str) -> float:
    """Return 1 where both are the same after normalisation; an empty answer is never right."""
    return float(words(prediction) == words(answer) != ())


def yes_or_no(text: str) -> str | None:
    """Return ``yes`` or ``no`` as an answer states it, None where it holds both or neither."""
    said = {word for word in words(text) if word in ("yes", "no")}
    return said.pop() if len(said) == 1 else None


def closed_match(prediction: str, answer: str) -> float:
    """Return 1 where a closed answer is right.

    A yes/no truth is compared with the prediction's yes/no word, whatever stands around it; any
    other truth must be matched whole.
    """
    truth = normalise(answer)
    if truth in ("yes", "no"):
        return float(yes_or_no(prediction) == truth)
    return exact_match(prediction, answer)


def token_overlap(prediction: str, answer: str) -> tuple[float, float, float]:
    """Return F1, precision and recall over the multisets of normalised words."""
    said, true = Counter(words(prediction)), Counter(words(answer))
    shared = (said & true).total()
    if shared == 0:
        return 0.0, 0.0, 0.0
    precision, recall = shared / said.total(), shared / true.total()
    return 2 * precision * recall / (precision + recall), precision, recall


# --- the released scorer's, faults included ---------------------------------------------------

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
# The original passes re.UNICODE (32) where `sub` takes the count: later periods stay.
_PERIODS_DROPPED = 32
# Written without one of its apostrophes, such a word is given it back.
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
you've
"""
_CONTRACTIONS: Mapping[str, str] = {
    full[:i] + full[i + 1 :]: full
    for full in _CONTRACTED.split()
    for i, c in enumerate(full)
    if c == "'"
} | {"somebody'd": "somebodyd"}  # reversed in the original


@lru_cache(maxsize=_CACHE)
def reference_normalise(text: str) -> str:
    """Return the released scorer's normal form of an answer.

    A punctuation mark is dropped where it touches a space anywhere in the answer, or where any
    comma stands between two digits, else it becomes a space: ``right-sided`` is two words.
    """
    out, number = text, _DIGIT_COMMA.search(text) is not None
    for mark in _PUNCTUATION:
        touches_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if touches_space or number else " ")
    out = _PERIOD.sub("", out, count=_PERIODS_DROPPED)
    mapped = (_NUMBER_WORDS.get(word, word) for word in out.lower().split())
    kept = [_CONTRACTIONS.get(word, word) for word in mapped if word not in _ARTICLES]
    return " ".join(kept).replace(",", "")


@lru_cache(maxsize=_CACHE)
def _reference_counts(text: str) -> Mapping[str, int]:
    return MappingProxyType(Counter(reference_normalise(text).lower().split()))


def reference_exact_match(prediction: str, answer: str) -> float:
    """Return the distinct true words that are predicted ÷ the number of predicted words.

    The released scorer calls this exact match; it is word overlap (``left lung`` = ``lung left``).
    """
    said, true = _reference_counts(prediction), _reference_counts(answer)
    total = sum(said.values())
    return sum(word in said for word in true) / total if total else 0.0


def reference_overlap(prediction: str, answer: str) -> tuple[float, float, float]:
    """Return the released scorer's F1, precision and recall.

    True positives are counted with the prediction's repeats, so neither side is a multiset match.
    """
    said, true = _reference_counts(prediction), _reference_counts(answer)
    hits = sum(count for word, count in said.items() if word in true)
    if hits == 0:
        return 0.0, 0.0, 0.0
    missed = sum(count for word, count in true.items() if word not in said)
    precision, recall = hits / sum(said.values()), hits / (hits + missed)
    return 2 * precision * recall / (precision + recall), precision, recall


@lru_cache(maxsize=_CACHE)
def reference_bleu(prediction: str, answer: str) -> tuple[float, float, float]:
    """Return BLEU-1, BLEU-2 and BLEU-3, each of its single order, on words in lower case.

    NLTK's sentence BLEU with smoothing method 1 and no normalisation (the paper's table 2).
    """
    # NLTK takes a second to import; most callers never need BLEU.
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    one, two, three = sentence_bleu(
        [answer.lower().split()],
        prediction.lower().split(),
        weights=[(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0)],
        smoothing_function=SmoothingFunction().method1,
    )
    return float(one), float(two), float(three)
