"""One paper as feeds, importers and the store hand it on: the facts, checked and bounded."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass, fields, replace
from typing import Any

from etude.core import require

__all__ = ["BOUNDS", "Entry", "arxiv_id", "clean", "entry_id", "squeeze"]

# Characters that a field holds at most: imported text is hostile, and a page has its limits.
BOUNDS = {"title": 500, "abstract": 20_000, "doi": 200, "venue": 300, "url": 500, "source": 200}
MOST = {"authors": 3_000, "categories": 50, "sources": 50}  # items of a list
LONGEST_ITEM = 200
ARXIV = re.compile(r"(?:arxiv:)?(\d{4}\.\d{4,5}|[a-z-]+(?:\.[a-z]{2})?/\d{7})(?:v\d+)?", re.I)
DATE = re.compile(r"\d{4}(-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01]))?)?")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A paper.

    Attributes:
        title, abstract: plain text on one line each; the abstract may be "".
        authors: names in order, "Given Family".
        arxiv: the id without its version, or "".
        date: when it appeared, "YYYY-MM-DD"; "YYYY-MM", "YYYY" or "" where no more is known.
        categories: such as "cs.LG".
        doi, venue, url: or "".
        votes: upvotes that the source counted.
        sources: where it came from, each such as "hf:2026-11-22", "arxiv", "file:refs.bib".
        slug: ``family.slug`` where the catalogue has it, or "".
        id: the stable id (``entry_id`` of the facts when it was stored first), "" before.
    """

    title: str
    abstract: str = ""
    authors: tuple[str, ...] = ()
    arxiv: str = ""
    date: str = ""
    categories: tuple[str, ...] = ()
    doi: str = ""
    venue: str = ""
    url: str = ""
    votes: int = 0
    sources: tuple[str, ...] = ()
    slug: str = ""
    id: str = ""


def squeeze(title: str) -> str:
    """A title without case, accents' forms, spaces and punctuation, so that copies are equal."""
    whole = unicodedata.normalize("NFKC", title).casefold()
    return "".join(letter for letter in whole if letter.isalnum())


def arxiv_id(text: str) -> str:
    """The arXiv id in `text` without prefix and version, in lower case; "" if it is none."""
    match = ARXIV.fullmatch(text.strip())
    return match[1].lower() if match else ""


def entry_id(entry: Entry) -> str:
    """The arXiv id, else "t" and 15 hexadecimal digits of the normalized title's sha256."""
    return entry.arxiv or "t" + hashlib.sha256(squeeze(entry.title).encode()).hexdigest()[:15]


def line(text: str, longest: int) -> str:
    """`text` on one line without control, format and private characters, at most `longest`."""
    known = text[: 4 * longest].encode("utf-8", "replace").decode()
    kept = (" " if c.isspace() else c for c in known if c.isspace() or _shows(c))
    return " ".join("".join(kept).split())[:longest].rstrip()


def _shows(letter: str) -> bool:
    # Cc holds terminal escapes, Cf the marks that turn the direction of what follows
    return unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Co", "Cn")


def clean(entry: Entry) -> Entry:
    """The entry with every field bounded and safe to print.

    Raises:
        EtudeError: no title with a letter or digit in it, an arXiv id or a date that is none,
            an address that is neither http nor https, or votes below 0.
    """
    title = line(entry.title, BOUNDS["title"])
    require(bool(squeeze(title)), "title", "words", entry.title)
    arxiv = arxiv_id(entry.arxiv)
    require(bool(arxiv) or not entry.arxiv, "arxiv", "an id such as 2405.19504", entry.arxiv)
    rule = "YYYY-MM-DD, YYYY-MM, YYYY or nothing"
    require(not entry.date or bool(DATE.fullmatch(entry.date)), "date", rule, entry.date)
    require(entry.votes >= 0, "votes", "at least 0", entry.votes)
    url = line(entry.url, BOUNDS["url"])
    known = not url or re.match(r"https?://[^\s\"'<>]+$", url, re.I) is not None
    require(known, "url", "an http or https address", url)
    lists: dict[str, Any] = {
        name: tuple(filter(None, (line(i, LONGEST_ITEM) for i in getattr(entry, name)[:most])))
        for name, most in MOST.items()
    }
    texts: dict[str, Any] = {
        name: line(getattr(entry, name), BOUNDS[name]) for name in ("abstract", "doi", "venue")
    }
    votes = min(entry.votes, 10**9)
    return replace(entry, title=title, arxiv=arxiv, url=url, votes=votes, **lists, **texts)


def merged(old: Entry, new: Entry) -> Entry:
    """What is known of one paper from two sources: the first's facts, filled by the second's.

    The longer abstract, the more exact date and the higher count of votes win; sources and
    categories are joined; the id stays.
    """
    facts = {f.name: getattr(old, f.name) or getattr(new, f.name) for f in fields(Entry)}
    facts["abstract"] = max(old.abstract, new.abstract, key=len)
    facts["date"] = max(old.date, new.date, key=len)
    facts["votes"] = max(old.votes, new.votes)
    for name in ("sources", "categories"):
        facts[name] = tuple(dict.fromkeys(getattr(old, name) + getattr(new, name)))[: MOST[name]]
    return Entry(**facts)
