"""Questions with two words exchanged: alternatives in another order, and words that exclude.

`reordered`: "Is this a CT or an MRI?" becomes "Is this an MRI or a CT?"; the answer stays.
`excluding`: where "Is this a CT?" is answered by yes, "Is this an MRI?" must be answered by no.
Only words that no picture bears together are exchanged: imaging methods, image planes, the
direction of a radiograph, the weighting of an MRI, and the sides of one finding. Radiograph and CT
are not held against each other, since CT is made with X-rays. The paper has no such test.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from medmoe.evaluation.pairs.sentence import article_for, sounds_adjectival, words_in

#: Alternatives: both sides of an "or" must stand in one line, else they may not be parallel.
_FAMILIES: Sequence[frozenset[str]] = [
    frozenset(line.split())
    for line in """
    left right
    axial coronal sagittal saggital transverse
    ct mri x-ray xray ultrasound
    t1 t2 flair
    pa ap
    contrast non-contrast noncontrast
    with without
    oral iv
    more less
    small large
    smaller larger
    normal abnormal enlarged decreased
    focal diffuse
    unilateral bilateral
    symmetric asymmetric
    regular irregular
    homogeneous heterogeneous homogenous heterogenous
    cystic solid
    hyperdense hypodense isodense
    hyperintense hypointense isointense
    hypoinflation hyperinflation
    radiolucent radiopaque radioopaque
    benign malignant
    acute chronic
    superior inferior
    anterior posterior
    medial lateral
    upper lower
    inside outside
    exterior interior
    supratentorial infratentorial
    white gray grey
    male female
    genetic vascular
    viral parasitic bacterial
    cancer hemorrhage abscess
    """.strip().splitlines()
]
#: ``A or B`` with or without articles; a noun behind A must stand behind B, as in "T1 weighted".
_OR = re.compile(
    r"(?P<article>\ban? )?\b(?P<one>[\w-]+)(?P<middle>(?: (?P<noun>[\w-]+))?,? or )"
    r"(?P<second>(?:an?|the) )?(?P<two>[\w-]+)\b(?: (?P<after>[\w-]+))?",
    re.IGNORECASE,
)
#: ``which …, A or B?``: what stands behind the last comma are the alternatives, whatever they are.
_WHICH = re.compile(
    r"(?P<head>(?:which|what|where)\b.*[,:]\s*)(?P<one>[\w-]+(?: [\w-]+){0,2}) or "
    r"(?P<two>[\w-]+(?: [\w-]+){0,2})(?P<end>\s*\??\s*)",
    re.IGNORECASE,
)
_EXCLUDED: Mapping[str, str] = {
    "t1": "T2", "t2": "T1",
    "axial": "coronal", "coronal": "axial", "sagittal": "axial", "transverse": "coronal",
    "pa": "AP", "ap": "PA",
    "ct": "MRI", "mri": "CT", "x-ray": "MRI", "xray": "MRI", "ultrasound": "MRI",
}  # fmt: skip
_ABBREVIATIONS = frozenset({"T1", "T2", "PA", "AP", "CT", "MRI"})
_KNOWN = re.compile(rf"\b({'|'.join(_EXCLUDED)})\b", re.IGNORECASE)
_IMAGE = "(?:image|film|picture|scan|slice|section|chest x[ -]?ray)"
#: A question about the picture itself: "is this a …", "is the image taken in the …", "is this the
#: axial plane". What an article does not part from the head is no predicate: "is this CT normal".
_OF_IMAGE = re.compile(
    rf"(?:is|was) (?:(?:this|it)(?: {_IMAGE})?|the {_IMAGE})(?: above)?"
    r"(?: (?:taken|oriented|shown|acquired|made))?"
    r"(?:(?P<article> an?)(?P<plain>(?: [\w-]+){0,2}?)"
    r"|(?: in| by| via| using)(?: the)?|(?: in| with| by| via| using)(?P<given> an?)"
    r"|(?: the)?(?= \w+ plane))"
    rf" (?P<word>{'|'.join(_EXCLUDED)})\b(?P<rest>[\w -]*)\??",
    re.IGNORECASE,
)
#: One finding lies on one side; "is there an effusion on the left" may be true of both.
_SIDE = re.compile(
    r"(?:is|was) the (?:largest |main )?(?:finding|lesion|mass|tumou?r|nodule|cyst|opacity)"
    r"(?: located| seen| shown)? (?:on|in) the (?:(?:patient|viewer)'s )?(?P<word>left|right)"
    r"(?: side)?(?: of (?:the|this) [\w-]+)?\??",
    re.IGNORECASE,
)
_SIDES = {"left": "right", "right": "left"}
_UNSURE = words_in("or and not no both than")
#: What no other method makes.
_FILM = words_in("film plain portable")


def reordered(question: str) -> str | None:
    """Return the question with its two alternatives exchanged, None where they are not sure."""
    text = " ".join(question.split())
    if len(re.findall(r"\bor\b", text, re.IGNORECASE)) != 1:
        return None
    for reading in _candidates(text):
        one, two = reading["one"], reading["two"]
        parallel = reading["noun"] is None or reading["noun"] == reading["after"]
        known = any({one.casefold(), two.casefold()} <= family for family in _FAMILIES)
        if parallel and known:
            if one.istitle() and two.islower():  # a capital belongs to the place, not to the word
                one, two = one.lower(), two.title()
            first = _with_article(reading["article"], two) + reading["middle"]
            swapped = first + _with_article(reading["second"], one)
            return text[: reading.start()] + swapped + text[reading.end("two") :]
    listed = _WHICH.fullmatch(text)
    if listed is None or sounds_adjectival(listed["one"]):
        return None  # "frontal or temporal lobe" shares its noun
    return f"{listed['head']}{listed['two']} or {listed['one']}{listed['end']}"


def _candidates(text: str) -> Iterator[re.Match[str]]:
    """Yield the readings of the text around its "or": A is the word before it, or one earlier."""
    place = text.casefold().rindex(" or ") if " or " in text.casefold() else 0
    for start in sorted({m.start() for m in re.finditer(r"\b[\w-]+", text[:place])}, reverse=True):
        reading = _OR.match(text, start)
        if reading and reading.end("middle") > place:
            before = re.search(r"\ban? $", text[:start], re.IGNORECASE)
            whole = _OR.match(text, before.start()) if before else None
            yield whole if whole and whole["one"] == reading["one"] else reading


def excluding(question: str) -> str | None:
    """Return a question that is false of every picture of which the given one is true, or None."""
    text = " ".join(question.split())
    side = _SIDE.fullmatch(text)
    if side:
        start, end = side.span("word")
        return text[:start] + _SIDES[side["word"].casefold()] + text[end:]
    match = _OF_IMAGE.fullmatch(text)
    if match is None or not _is_sure(match):
        return None
    other = _EXCLUDED[match["word"].casefold()]
    if other in _ABBREVIATIONS and text.islower():
        other = other.lower()
    start, end = match.span("word")
    for name in ("article", "given"):
        if match[name] is not None and not match["plain"]:
            start, other = match.start(name), f" {article_for(other)} {other}"
    return text[:start] + other + text[end:]


def _is_sure(match: re.Match[str]) -> bool:
    """Return whether the word is said of the picture, and is the most telling one of its kind.

    "Is this a T1 weighted MRI?" is asked about T2, not about a T1 weighted CT.
    """
    plain = (match["plain"] or "").casefold().split()
    if (_UNSURE | _FILM | set(_EXCLUDED)) & set(plain):
        return False
    if _UNSURE & set(match["rest"].casefold().split()):
        return False
    order = list(_EXCLUDED)
    later = [order.index(word.casefold()) for word in _KNOWN.findall(match["rest"])]
    return all(place > order.index(match["word"].casefold()) for place in later)


def _with_article(article: str | None, word: str) -> str:
    if article is None or article.casefold() == "the ":
        return (article or "") + word
    return f"{article_for(word)} {word}"
