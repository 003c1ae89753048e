"""The negation of a yes/no question, where a rule surely gives it; else none.

"Is there a fracture?" becomes "Is there no fracture?", "Is the heart enlarged?" becomes "Is the
heart not enlarged?". Either way the true answer of the one is the opposite of the other's. A
question is left out where ``not`` could bind to something else: with numbers and quantifiers, with
``and`` and ``or``, in comparisons, where the predicate's beginning is not certain, and with another
negation in it. The paper has no such test.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from medmoe.evaluation.pairs.sentence import (
    BARRED,
    DETERMINERS,
    FUNCTION_WORDS,
    PREPOSITIONS,
    asked,
    lower,
    sounds_adjectival,
    words_in,
    words_of,
)

Words = list[str]
_BE = words_in("is are was were is/are are/is")
_OF = words_in("of")
_INDEFINITE = words_in("a an any")
#: What is said of a thing that is there: of these, "no X is seen" and "X is not seen" are the same.
_SEEN = words_in("""
    seen visible present noted identified identifiable observed visualized visualised appreciated
    detected demonstrated shown evident found
    """)
#: Predicates of one word. Exactly one may stand in a question, else it is not sure which is meant.
_PREDICATES = _SEEN | words_in("""
    normal abnormal healthy intact clear sharp open closed patent large small round flat regular
    irregular uniform homogeneous homogenous heterogeneous heterogenous symmetric symmetrical
    asymmetric asymmetrical malignant benign cystic solid calcified pathologic pathological bright
    dark dense hyperdense hypodense hyperintense hypointense radiopaque radiolucent prominent
    tortuous necrotic edematous swollen bilateral unilateral enlarged dilated fractured broken
    enhanced enhancing flattened blunted thickened inflamed compressed displaced deviated shifted
    distended collapsed ruptured dislocated loculated lobulated obstructed narrowed widened obscured
    elevated increased decreased hyperinflated inflated atrophied removed lacerated rotated filled
    placed taken used given infected infiltrating circumscribed well-defined well-circumscribed
    located affected injured perforated consolidated hyperexpanded underexposed overexposed
    """)
_VERBS = words_in("""
    show contain appear look have demonstrate display depict exist use represent involve indicate
    suggest exhibit reveal include
    """)
_SEEING = words_in("see notice observe appreciate identify")
_IMAGE = words_in("image picture film scan slice section study radiograph")
_NOUNS = words_in("patient segment")
#: Where something lies, said by a phrase that can be nothing but the predicate.
_PLACE = re.compile(
    r"(in view|(in|on) the [\w'-]+(?: [\w-]+)? (side|plane|view|half)|on the (left|right))"
    r"( of (the|this) [\w-]+)?"
)


def negated(question: str) -> str | None:
    """Return the negated question, None where no rule surely gives it."""
    words = words_of(question)
    if words is None or len(words) < 3:
        return None
    low = lower(words)
    if BARRED & {part for word in low[1:] for part in (word, *word.split("-"))} or any(
        word.startswith("non") or word.endswith("n't") or word.isdigit() for word in low
    ):
        return None
    for begins, rule in _RULES:
        place = rule(low) if low[0] in begins else None
        if place is not None:
            start, end, word = place
            return asked([*words[:start], word, *words[end:]])
    return None


#: A rule returns what is put in: from a word's place up to another's, and the word.
Insertion = tuple[int, int, str] | None


def _existence(low: Words) -> Insertion:
    """Is there (a) X? Is there no X?"""
    if low[1] != "there":
        return None
    if low[2] == "anything":
        return 2, 3, "nothing"
    end = 3 if low[2] in _INDEFINITE else 2
    # "any of the" needs "none of the"; a determiner or pronoun asks for a place, not for existence.
    if end >= len(low) or low[end] in FUNCTION_WORDS:
        return None
    return 2, end, "no"


def _any(low: Words) -> Insertion:
    """Are any X Y? Are no X Y? Is anything Y? Is nothing Y?"""
    if low[1] == "anything":
        return 1, 2, "nothing"
    if low[1] == "any":
        return 1, 2, "none" if low[2] == "of" else "no"
    return None


def _seen(low: Words) -> Insertion:
    """Is (a) mass present? Is no mass present?"""
    start = 2 if low[1] in _INDEFINITE else 1
    place = _only(low, _PREDICATES, start + 1)
    if place is None or low[place] not in _SEEN or not _plain(low[start:place]):
        return None
    return (1, start, "no") if _ends_well(low, place) else None


def _can_be_seen(low: Words) -> Insertion:
    """Can (a) mass be seen? Can no mass be seen? Can the spleen be seen? … not be seen?"""
    if low.count("be") != 1:
        return None
    place = low.index("be")
    if place < 2 or place + 1 >= len(low) or low[place + 1] not in _SEEN:
        return None
    if low[1] in DETERMINERS:
        return place, place, "not"
    if low[1] in _INDEFINITE:
        return 1, 2, "no"
    return (1, 1, "no") if _plain(low[1:place]) else None


def _you_see(low: Words) -> Insertion:
    """Do you see (a) mass? Do you see no mass? Do you see the aorta? Do you not see the aorta?"""
    if low[1] != "you" or low[2] not in _SEEING or len(low) < 4:
        return None
    if low[3] in DETERMINERS:
        return 2, 2, "not"
    if low[3] in _INDEFINITE:
        return 3, 4, "no"
    return None if low[3] in FUNCTION_WORDS else (3, 3, "no")


def _this_is(low: Words) -> Insertion:
    """Is this a CT? Is this not a CT? Is the image taken in the axial plane? … not taken …?"""
    if low[1] not in (*DETERMINERS, "it"):
        return None
    named = low[2] in _IMAGE and low[1] in ("this", "the")
    place = 3 if named else 2
    if not named and low[1] not in ("this", "that", "it"):
        return None
    starts = {"a", "an", "taken"} | (set() if named else {"the", "in", "of", "from"})
    # Nothing behind an article can be a predicate of its own: there is no second verb.
    return (place, place, "not") if place + 1 < len(low) and low[place] in starts else None


def _has_been(low: Words) -> Insertion:
    """Has the stent been removed? Has the stent not been removed?"""
    if low[1] not in DETERMINERS or low.count("been") != 1:
        return None
    place = low.index("been")
    return (place, place, "not") if _noun_phrase(low[2:place], _OF) else None


def _predicate(low: Words) -> Insertion:
    """Is the heart enlarged? Is the heart not enlarged?"""
    # Contrast medium is a substance that needs no article.
    contrast = "contrast" in low[1:4] and _plain(low[1 : low.index("contrast") + 1])
    if low[1] not in DETERMINERS and not contrast:
        return None
    predicate = _only(low, _PREDICATES, 2)
    if predicate is None or not _ends_well(low, predicate):
        return None
    place = predicate
    while low[place - 1].endswith("ly") or low[place - 1] in ("well", "ring"):
        place -= 1
    subject = low[2:place] if low[1] in DETERMINERS else low[1:place]
    # Nothing follows: what stands before is the subject, all of it.
    joining = PREPOSITIONS if predicate == len(low) - 1 else _OF
    return (place, place, "not") if _noun_phrase(subject, joining) else None


def _placed(low: Words) -> Insertion:
    """Is the finding on the left side? Is the finding not on the left side?"""
    if low[1] not in DETERMINERS or _PREDICATES & set(low):
        return None
    for place in range(3, len(low)):
        if _PLACE.fullmatch(" ".join(low[place:])) and _plain(low[2:place]):
            return place, place, "not"
    return None


def _does(low: Words) -> Insertion:
    """Does the image show a mass? Does the image not show a mass?"""
    if low[1] in _INDEFINITE or low[1] in ("you", "it", "there", "we"):
        return None
    start = 2 if low[1] in DETERMINERS else 1
    place = _only(low, _VERBS, 2)
    if place is None or (place == len(low) - 1 and low[place] not in ("exist", "appear")):
        return None
    subject = low[start:place]
    if not subject:
        return (place, place, "not") if low[1] in ("this", "that") else None
    return (place, place, "not") if _noun_phrase(subject, _OF) else None


#: The rules in the order in which they are tried, each with the words that a question begins with.
_RULES: Sequence[tuple[frozenset[str], Callable[[Words], Insertion]]] = (
    (_BE, _existence), (_BE, _any), (_BE, _seen), (words_in("can could"), _can_be_seen),
    (words_in("do can"), _you_see), (_BE, _this_is), (words_in("has have"), _has_been),
    (_BE, _predicate), (_BE, _placed), (words_in("does do did"), _does),
)  # fmt: skip


def _only(low: Words, known: frozenset[str], start: int) -> int | None:
    """Return the place of the only known word from a place on; None where there are more or none.

    Before that place there may be none either: "the enlarged heart" has its own predicate.
    """
    places = [i for i, word in enumerate(low) if word in known]
    return places[0] if len(places) == 1 and places[0] >= start else None


def _ends_well(low: Words, place: int) -> bool:
    """Return whether what follows a predicate is nothing, or phrases that begin with a preposition.

    A last word that could itself be the predicate ("the lesion seen in the lung lobular") is not.
    """
    if place == len(low) - 1:
        return True
    last = low[-1]
    doubtful = sounds_adjectival(last) and last not in _NOUNS
    return low[place + 1] in PREPOSITIONS and last not in PREPOSITIONS and not doubtful


def _plain(words: Words) -> bool:
    """Return whether these are nouns with their adjectives, as far as the lists know."""
    return 0 < len(words) <= 5 and not FUNCTION_WORDS & set(words)


def _noun_phrase(words: Words, joining: frozenset[str]) -> bool:
    """Return whether this is a noun with its adjectives, also with others behind joining words."""
    parts: list[Words] = [[]]
    for word in words:
        if word in joining:
            parts.append([])
        else:
            parts[-1].append(word)
    head, *rest = parts
    articles = DETERMINERS | _INDEFINITE
    bare = (part[1:] if part and part[0] in articles else part for part in rest)
    return _plain(head) and all(map(_plain, bare))
