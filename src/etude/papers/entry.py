"""One paper as feeds, importers and the store hand it on: the facts, checked and bounded."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from datetime import UTC, date, datetime
from typing import Any

from etude.core import require

__all__ = [
    "BOUNDS", "Entry", "arxiv_id", "clean", "day", "entry_id", "merged", "squeeze", "title_key",
]  # fmt: skip

# Characters that a field holds at most: imported text is hostile, and a page has its limits.
BOUNDS = {"title": 500, "abstract": 20_000, "doi": 200, "venue": 300, "url": 500, "source": 200}
MOST = {"authors": 3_000, "categories": 50, "sources": 50}  # items of a list
LONGEST_ITEM = 200
ARXIV = re.compile(r"(?:arxiv:)?(\d{4}\.\d{4,5}|[a-z-]+(?:\.[a-z]{2})?/\d{7})(?:v\d+)?", re.I)
DATE = re.compile(r"\d{4}(?:-\d\d(?:-\d\d)?)?", re.ASCII)
DAILY = "hf:"  # how the sources of a daily feed begin


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A paper.

    Attributes:
        title, abstract: plain text on one line each; the abstract may be "".
        authors: names in order, "Given Family", without commas.
        arxiv: the id without its version, or "".
        date: when it appeared (in a daily feed, if one showed it), "YYYY-MM-DD"; "YYYY-MM",
            "YYYY" or "" where no more is known.
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
    return re.sub(r"[\W_]+", "", whole)


def arxiv_id(text: str) -> str:
    """The arXiv id in `text` without prefix and version, in lower case; "" if it is none."""
    match = ARXIV.fullmatch(text.strip())
    return match[1].lower() if match else ""


def title_key(title: str) -> str:
    """32 hexadecimal digits of the normalized title's sha256; copies of a title share them."""
    return hashlib.sha256(squeeze(title).encode("utf-8", "replace")).hexdigest()[:32]


def entry_id(entry: Entry) -> str:
    """The arXiv id, else "t" and the first 15 digits of the title's key."""
    return entry.arxiv or "t" + title_key(entry.title)[:15]


def day(text: object) -> str:
    """The date at the beginning of `text` as "YYYY-MM-DD", "YYYY-MM" or "YYYY"; "" if none.

    Of a date that the calendar does not have, the part that it has is kept: 2026-02-31 is
    2026-02.
    """
    found = re.match(r"(\d{4})(?:[-/](\d\d)(?:[-/](\d\d))?)?(?!\d)", str(text or "").strip())
    parts = [part for part in found.groups() if part] if found else []
    while parts and not _dated("-".join(parts)):
        parts.pop()
    return "-".join(parts)


def _dated(text: str) -> bool:
    """Whether it is a date of the calendar that is not after the end of next year."""
    if not DATE.fullmatch(text) or int(text[:4]) > datetime.now(UTC).year + 1:
        return False
    try:
        return date.fromisoformat(text + "-01-01"[len(text) - 4 :][: 10 - len(text)]).year >= 1000
    except ValueError:
        return False


def line(text: str, longest: int) -> str:
    """`text` on one line without control, format and private characters, at most `longest`."""
    known = " ".join(text[: 4 * longest].split())
    if known.isprintable():  # true of most, and a hundred times quicker than what follows
        return known[:longest].rstrip()
    kept = (" " if c.isspace() else c for c in known if c.isspace() or _shows(c))
    return " ".join("".join(kept).split())[:longest].rstrip()


def _shows(letter: str) -> bool:
    # Cc holds terminal escapes, Cf the marks that turn the direction of what follows
    return unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Co", "Cn")


def clean(entry: Entry) -> Entry:
    """The entry with every field bounded and safe to print.

    Raises:
        EtudeError: no title with a letter or digit in it, an arXiv id or a date that is none
            (or lies after next year), an address that is neither http nor https, or votes
            below 0.
    """
    title = line(entry.title, BOUNDS["title"])
    require(bool(squeeze(title)), "title", "words", entry.title)
    arxiv = arxiv_id(entry.arxiv)
    require(bool(arxiv) or not entry.arxiv, "arxiv", "an id such as 2405.19504", entry.arxiv)
    rule = "YYYY-MM-DD, YYYY-MM or YYYY, at most next year, or nothing"
    require(not entry.date or _dated(entry.date), "date", rule, entry.date)
    require(entry.votes >= 0, "votes", "at least 0", entry.votes)
    url = line(entry.url, BOUNDS["url"])
    known = not url or re.match(r"https?://[^\s\"'<>]+$", url, re.I) is not None
    require(known, "url", "an http or https address", url)
    # authors and categories without the marks that separate them in the files of references
    names = (author.replace(",", " ").replace(";", " ") for author in entry.authors)
    kinds = (kind.replace(",", " ").replace(";", " ") for kind in entry.categories)
    lists: dict[str, Any] = {
        "authors": _items(names, MOST["authors"]),
        "categories": tuple(dict.fromkeys(_items(kinds, MOST["categories"]))),
        "sources": tuple(dict.fromkeys(_items(entry.sources, MOST["sources"]))),
    }
    texts: dict[str, Any] = {
        name: line(getattr(entry, name), BOUNDS[name]) for name in ("abstract", "doi", "venue")
    }
    votes = min(entry.votes, 10**9)
    return replace(entry, title=title, arxiv=arxiv, url=url, votes=votes, **lists, **texts)


def _items(texts: Iterable[str], most: int) -> tuple[str, ...]:
    return tuple(filter(None, (line(text, LONGEST_ITEM) for text in texts)))[:most]


def merged(old: Entry, new: Entry) -> Entry:
    """What is known of one paper from two sources: the first's facts, filled by the second's.

    The longer abstract, the more exact date and the higher count of votes win, and the day of a
    daily feed over one on which no feed showed it; sources and categories are joined; the id
    stays.
    """
    facts = {f.name: getattr(old, f.name) or getattr(new, f.name) for f in fields(Entry)}
    facts["abstract"] = max(old.abstract, new.abstract, key=len)
    first, second = (new, old) if _shown(new) and not _shown(old) else (old, new)
    facts["date"] = max(first.date, second.date, key=len)
    facts["votes"] = max(old.votes, new.votes)
    for name in ("sources", "categories"):
        facts[name] = tuple(dict.fromkeys(getattr(old, name) + getattr(new, name)))[: MOST[name]]
    return Entry(**facts)


def _shown(entry: Entry) -> bool:
    return any(source.startswith(DAILY) for source in entry.sources)
