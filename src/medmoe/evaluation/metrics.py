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

_TEENS = "eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty"
_COUNTED = {**_NUMBER_WORDS} | {word: str(n) for n, word in enumerate(_TEENS.split(), 11)}
_NAMING = """
hepatitis vitamin influenza hemophilia haemophilia immunoglobulin factor protein antigen type group
grade stage class category level zone region segment option choice answer figure panel
"""
#: Behind these words, and before these, ``a`` is a letter that names something, no article.
_LETTERED = frozenset(_NAMING.split())
_JOINING = frozenset({"and", "or", "b", "vs", "versus"})
#: Whole answers in Chinese.
_CHINESE: Mapping[str, str] = dict.fromkeys(("是", "是的", "对", "对的", "有"), "yes") | (
    dict.fromkeys(("不是", "不是的", "不", "不对", "否", "没有", "没", "沒有", "无"), "no")
)
_CHINESE_YES = re.compile(r"(?:^|[\s,.;!:、。])是(?![否不])")
_CHINESE_NO = re.compile(r"不是|[没沒]有|(?<!是)否(?![则认定])")
# Apostrophes, and what is not seen: joiners, soft hyphens, byte order marks, variation selectors.
_DROPPED = dict.fromkeys(map(ord, "'`\u2019\u2018\u02bc\u00b4\u200c\u200d\u00ad\u2060\ufeff"))
_DROPPED |= dict.fromkeys((*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)))
_SIGNS = str.maketrans(dict.fromkeys("\u2212\u2010\u2011\u2012\u2013", "-"))
_SPELT_SIGNS = (("+/-", "\u00b1"), (">=", "\u2265"), ("<=", "\u2264"))
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# A number keeps its decimals and a leading minus ("-40 HU" is not "40 HU") and is parted from its
# unit ("5mm" = "5 mm"); a word keeps its digits ("t1") and its marks (vowels of Hindi, tones of
# Thai), which `\w` leaves out; signs that carry meaning stand alone. In Chinese, which parts no
# words, each character counts as one (SLAKE's Chinese questions).
_HAN = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_MARKS = "".join(c for c in map(chr, range(0x300, 0x1F000)) if unicodedata.category(c)[0] == "M")
_NUMBER = r"-?(?:\d+(?:\.\d+)?|\.\d+)"
_TOKEN = re.compile(
    rf"(?<![^\W_{_HAN}]){_NUMBER}|[{_HAN}]|(?:[^\W_{_HAN}]|[{_MARKS}])+|[<>+%\u2264\u2265\u00b1]"
)


def _plain(text: str) -> str:
    """Return a text in one form of each character, without case, apostrophes and what is unseen."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    plain = unicodedata.normalize("NFKC", folded.translate(_DROPPED)).translate(_SIGNS)
    for spelt, sign in _SPELT_SIGNS:
        plain = plain.replace(spelt, sign)
    return plain


@lru_cache(maxsize=_CACHE)
def words(text: str) -> tuple[str, ...]:
    """Return the normalised words of an answer.

    Case, punctuation, apostrophes and articles do not count; number words to twenty become digits
    (``none`` is 0), numbers count by their value (``3.0`` is 3, ``05`` is 5). An ``a`` that names
    something is no article: at the end (``hepatitis A``), behind such a word (``group A
    streptococcus``), before ``and``. An answer of articles only keeps them, so that option ``A``
    stays an answer. A whole answer in Chinese that says yes or no is that word.
    """
    tokens = [_value(t) for t in _TOKEN.findall(_THOUSANDS.sub("", _plain(text)))]
    kept = [
        t
        for before, t, after in zip(("", *tokens), tokens, (*tokens[1:], ""), strict=False)
        if t not in _ARTICLES
        or (t == "a" and (before in _LETTERED or after in _JOINING or not after))
    ] or tokens
    said = _CHINESE.get("".join(kept))
    return (said,) if said else tuple(kept)


def _value(token: str) -> str:
    """Return a number in its shortest form in ASCII, and any other token as it counts."""
    if not re.fullmatch(_NUMBER, token):
        return _COUNTED.get(token, token)
    digits = "".join(c if c in "-." else str(unicodedata.decimal(c)) for c in token)
    whole, _, decimals = digits.lstrip("-").partition(".")
    decimals = decimals.rstrip("0")
    shortest = (whole.lstrip("0") or "0") + (f".{decimals}" if decimals else "")
    return f"-{shortest}" if digits[0] == "-" and shortest != "0" else shortest


def normalise(text: str) -> str:
    """Return the normalised answer, its words joined by single spaces."""
    return " ".join(words(text))


def exact_match(prediction: str, answer: str) -> float:
    """Return 1 where both are the same after normalisation; an empty answer is never right."""
    return float(words(prediction) == words(answer) != ())


def yes_or_no(text: str) -> str | None:
    """Return ``yes`` or ``no`` as an answer states it, None where it holds both or neither.

    In Chinese 是 says yes where a clause begins with it, and 不是, 没有 and 否 say no.
    """
    plain = _plain(text)
    said = {word for word in words(text) if word in ("yes", "no")}
    said |= {"yes"} if _CHINESE_YES.search(plain) else set()
    said |= {"no"} if _CHINESE_NO.search(plain) else set()
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


#: Where an answer says a letter: alone or first, behind such words, or in brackets.
_SAID_LETTER = tuple(
    re.compile(pattern)
    for pattern in (
        r"^\W*(?:([A-Ja-j])\W*$|([A-J])[.:)](?!,? *(?:and|or)\b))",
        r"(?i:\b(?:answer|option|choice)(?: is)?:?)\W*([A-J])\b(?! (?!is\b)[a-z])",
        r"\(([A-J])\)|\\boxed\{([A-J])\}",
    )
)


def option_letter(text: str) -> str | None:
    """Return the letter of the option that an answer names, None where it names none or several.

    The first of these that the answer holds: a letter alone or first (``B``, ``(B)``, ``B. Focal
    uptake``), behind "answer", "option" or "choice" (``The answer is B``), in brackets.
    """
    for pattern in _SAID_LETTER:
        said = {"".join(match.groups("")).upper() for match in pattern.finditer(text)}
        if said:
            return said.pop() if len(said) == 1 else None
    return None


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
