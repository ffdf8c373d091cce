r"""What a reader may write, and what it means.

    graph embeddings        papers about it, by words and by meaning
    "graph embedding"       the words in this order, in title or text
    -survey, -"a survey"    without
    ti:graph, ti:"a b"      in the title
    au:hinton, au:"g hinton"   an author's name
    cat:cs.LG, cat:cs       a category, or all of an archive
    id:2405.19504           the paper of this id, whatever its version

A space may follow the colon, and each may be denied by a minus sign. All else is read as words:
a quote that is not closed, a minus sign alone, a field without words, other operators.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass

from etude.core import refuse, require
from etude.papers.search.words import EMPTY, names, split, stem

__all__ = ["LONGEST", "Clause", "Query", "parse"]

LONGEST = 4_000  # characters
MOST_WORDS = 400
PART = re.compile(
    r'(?P<no>-)?(?:(?P<field>ti|au|cat|id):\s*)?(?:"(?P<phrase>[^"]*)"|(?P<word>\S+))', re.I
)


@dataclass(frozen=True)
class Clause:
    """What a document must hold (or must not, where `no`).

    `field` is "ti", "au", "cat", "id" or "" (title or text); `words` are consecutive where
    `phrase`, else each may stand anywhere. Words of "ti" and "" are stems.
    """

    field: str
    words: tuple[str, ...]
    phrase: bool = False
    no: bool = False


@dataclass(frozen=True)
class Query:
    """A query that was read.

    `words` are the stems that rank and how often each was said, `text` is what is encoded.
    """

    words: tuple[tuple[str, int], ...]
    text: str
    clauses: tuple[Clause, ...]


def parse(query: str) -> Query:
    """Read a query.

    Raises:
        EtudeError: no letter or digit in it, too long, or nothing but what must not be there.
    """
    require(isinstance(query, str), "query", "text", query)
    require(len(query) <= LONGEST, "query", f"at most {LONGEST:,} characters", len(query))
    whole = query.encode("utf-8", "replace").decode()
    whole = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in whole)
    for curly in "“”„«»":
        whole = whole.replace(curly, '"')
    words: list[str] = []
    text: list[str] = []
    clauses: list[Clause] = []
    for part in PART.finditer(whole):
        said = part["word"] if part["phrase"] is None else part["phrase"]
        field, is_phrase = (part["field"] or "").lower(), part["phrase"] is not None
        clause = _clause(field, said, is_phrase, part["no"] is not None)
        if clause is None or (not field and not is_phrase and not part["no"]):
            said = said if clause else part[0]  # such as "ti:" alone: its letters are words
            words += map(stem, split(said))
            text.append(said)
            continue
        clauses.append(clause)
        if field in ("", "ti") and not clause.no:
            words += clause.words
            text.append(said)
    require(bool(words or clauses), "query", "words, such as 'graph embeddings'", query)
    if all(clause.no for clause in clauses) and not words:
        refuse("query", "what to find, not only what to leave out", query)
    counts = Counter(words[:MOST_WORDS])
    telling = [item for item in counts.items() if item[0] not in EMPTY_STEMS] or counts.items()
    return Query(tuple(telling), " ".join(" ".join(text).split()), tuple(clauses))


EMPTY_STEMS = frozenset(map(stem, EMPTY))


def _clause(field: str, said: str, phrase: bool, no: bool) -> Clause | None:
    """The condition, or None where there is nothing to look for."""
    if field == "id":
        found = said.strip()
        return Clause("id", (found,), no=no) if found else None
    if field == "cat":
        found = said.strip().casefold()
        return Clause("cat", (found,), no=no) if split(found) else None
    words = names(said) if field == "au" else [stem(word) for word in split(said)]
    # self-supervised is one word to its writer: its parts stand side by side
    beside = phrase or (field != "au" and len(words) > 1)
    return Clause(field, tuple(words), beside, no) if words else None
