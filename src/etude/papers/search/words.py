"""Text to words, words to stems, stems to 64-bit terms.

A word is a run of letters and digits after NFKC folding, accents taken off, in lower case. Stems
are those of Porter's first algorithm; only ASCII words are stemmed. A term is the first 64 bits
of the word's BLAKE2b sum: an index of hundreds of thousands of different words then needs no
table of strings, and two of a million words share a term with a chance of 3e-8.

Source of the stems: M. F. Porter, "An algorithm for suffix stripping", Program 14(3), 1980.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import lru_cache

__all__ = ["EMPTY", "names", "split", "stem", "stems", "term"]

WORD = re.compile(r"[^\W_]+")
LONGEST = 64  # letters of a word that count: longer ones are noise
# Words that say nothing about a need, which a query of other words does without.
EMPTY = frozenset(
    WORD.findall(
        """
    a about above after again all also although am among an and any are as at be been being both
    but by can cannot could did do does doing done due during each either etc for from further
    get give given had has have having he her here his how however i if in into is it its itself
    just let like make many may me might more most much must my need needs neither no nor not of
    on only onto or other our out over own per rather s same shall she should so some such t than
    that the their them then there therefore these they this those through thus to too under up
    upon us use used using very via want was we were what when where whether which while who whom
    whose why will with within without would you your
    """
    )
)


def split(text: str) -> list[str]:
    """The words of a text, in order."""
    if not text.isascii():
        whole = unicodedata.normalize("NFKD", text.casefold())
        text = "".join(c for c in whole if not unicodedata.combining(c))
        text = unicodedata.normalize("NFKC", text)
    return [word[:LONGEST] for word in WORD.findall(text.lower())]


def stems(text: str) -> list[str]:
    """The stems of a text's words, in order."""
    return [stem(word) for word in split(text)]


def names(text: str) -> list[str]:
    """The words of a name, which are not stemmed."""
    return split(text)


@lru_cache(maxsize=200_000)
def term(word: str, kind: str = "") -> int:
    """The 64-bit number of a word; `kind` keeps authors and categories apart from words."""
    whole = f"{kind}:{word}".encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(whole, digest_size=8).digest(), "little")


def _is_consonant(word: str, i: int) -> bool:
    letter = word[i]
    if letter in "aeiou":
        return False
    return letter != "y" or i == 0 or not _is_consonant(word, i - 1)


def _measure(part: str) -> int:
    """How many times a vowel is followed by a consonant: Porter's m."""
    kinds = "".join("c" if _is_consonant(part, i) else "v" for i in range(len(part)))
    return len(re.findall("v+c+", kinds))


def _has_vowel(part: str) -> bool:
    return any(not _is_consonant(part, i) for i in range(len(part)))


def _ends_double(word: str) -> bool:
    return len(word) > 1 and word[-1] == word[-2] and word[-1] not in "aeiou"  # yy, as SQLite has


def _ends_cvc(word: str) -> bool:
    """Consonant, vowel, consonant other than w, x, y: such as hop."""
    n = len(word)
    return (
        n > 2 and _is_consonant(word, n - 1) and word[-1] not in "wxy"
        and not _is_consonant(word, n - 2) and _is_consonant(word, n - 3)
    )  # fmt: skip


STEP_2 = (
    ("ational", "ate"), ("tional", "tion"), ("enci", "ence"), ("anci", "ance"), ("izer", "ize"),
    ("logi", "log"), ("bli", "ble"), ("alli", "al"), ("entli", "ent"), ("eli", "e"),
    ("ousli", "ous"), ("ization", "ize"), ("ation", "ate"), ("ator", "ate"), ("alism", "al"),
    ("iveness", "ive"), ("fulness", "ful"), ("ousness", "ous"), ("aliti", "al"), ("iviti", "ive"),
    ("biliti", "ble"),
)  # fmt: skip
STEP_3 = (
    ("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"),
    ("ful", ""), ("ness", ""),
)  # fmt: skip
STEP_4 = (
    "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou",
    "ism", "ate", "iti", "ous", "ive", "ize",
)  # fmt: skip


def _longest(word: str, suffixes: tuple[str, ...]) -> str:
    return max((s for s in suffixes if word.endswith(s)), key=len, default="")


@lru_cache(maxsize=200_000)
def stem(word: str) -> str:
    """Porter's stem of a word in lower case; words under three letters stay as they are."""
    if len(word) < 3 or not word.isascii():
        return word
    word = _step_1(word)
    for pairs in (STEP_2, STEP_3):
        suffix = _longest(word, tuple(p[0] for p in pairs))
        part = word[: len(word) - len(suffix)]
        if suffix and _measure(part) > 0:
            word = part + dict(pairs)[suffix]
    suffix = _longest(word, STEP_4)
    part = word[: len(word) - len(suffix)]
    if suffix and _measure(part) > 1 and (suffix != "ion" or part[-1:] in ("s", "t")):
        word = part
    if word.endswith("e"):
        m = _measure(word[:-1])
        if m > 1 or (m == 1 and not _ends_cvc(word[:-1])):
            word = word[:-1]
    if word.endswith("ll") and _measure(word[:-1]) > 1:
        word = word[:-1]
    return word


def _step_1(word: str) -> str:
    """Plurals, past forms, and y after a vowel."""
    if word.endswith("sses") or word.endswith("ies"):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    if word.endswith("eed"):
        if _measure(word[:-3]) > 0:
            word = word[:-1]
    else:
        ending = "ed" if word.endswith("ed") else "ing" if word.endswith("ing") else ""
        part = word[: len(word) - len(ending)]
        if ending and _has_vowel(part):
            word = part
            if word.endswith(("at", "bl", "iz")):
                word += "e"
            elif _ends_double(word) and word[-1] not in "lsz":
                word = word[:-1]
            elif _measure(word) == 1 and _ends_cvc(word):
                word += "e"
    if word.endswith("y") and _has_vowel(word[:-1]):
        word = word[:-1] + "i"
    return word
