"""A question as words, and the few word classes that rewriting needs.

The lists are closed on purpose: a word that stands in none leaves its question as it is. Nothing is
parsed here, and no rule guesses.
"""

from __future__ import annotations

import re

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9'’()/-]*")
_VOWEL_SOUND = re.compile(r"[aeio]|mri?\b|x\b|x-?ray|ultra|un(?!i)|fl?air", re.IGNORECASE)
_CONSONANT_SOUND = re.compile(r"one\b|eu|flair", re.IGNORECASE)
_ADJECTIVAL = re.compile(r"(ed|ing|al|ous|ic|ive|ible|able|ent|ant|ary|ar|oid|tic)$", re.IGNORECASE)


def words_in(text: str) -> frozenset[str]:
    """Return the words of a list."""
    return frozenset(text.split())


#: Words that a negation may bind to in more than one way, and clauses: with one, nothing is sure.
BARRED = words_in("""
    no not never none nothing neither nor without or and all every each both either only just also
    too still always usually mostly most some somewhat more less fewer than that if because but
    however while besides except other others else multiple several many much few lot couple number
    single solitary enough sufficient one two three four five six seven eight nine ten twelve yes
    different similar same which who whose where when how why what something someone somewhere best
    worst likely probably possibly perhaps
    """)
DETERMINERS = words_in("the this that these those his her its their")
PREPOSITIONS = words_in("""
    in on at of to by with within from for under above below near around along across through into
    over behind between beneath inside outside against during as via after before
    """)
FUNCTION_WORDS = (
    DETERMINERS
    | PREPOSITIONS
    | words_in("a an any it there here he she you we they be been is are was were able")
)


def words_of(question: str) -> list[str] | None:
    """Return the words of a plain question in English, None where it is anything else.

    Commas, colons, brackets with text, further sentences, comparisons by sign and answers that are
    written behind (``-yes/no``) make a question not plain.
    """
    text = " ".join(question.split()).rstrip("? ").strip()
    words = text.split(" ")
    return words if text and all(_WORD.fullmatch(word) for word in words) else None


def lower(words: list[str]) -> list[str]:
    """Return the words as the lists have them."""
    return [word.casefold().replace("’", "'") for word in words]


def sounds_adjectival(word: str) -> bool:
    """Return whether a word ends as adjectives and participles do; some nouns do as well."""
    return _ADJECTIVAL.search(word) is not None


def article_for(word: str) -> str:
    """Return ``a`` or ``an``, by how a word is said."""
    vowel = _VOWEL_SOUND.match(word) and not _CONSONANT_SOUND.match(word)
    return "an" if vowel or word.casefold() == "ap" else "a"


def asked(words: list[str]) -> str:
    """Return words as a question."""
    return " ".join(words) + "?"
