"""arXiv's Atom API: a query, or a list of ids.

``GET https://export.arxiv.org/api/query`` with ``search_query`` or ``id_list``, paged by
``start`` and ``max_results``. Queries are read from the oldest paper on, so that what is
submitted meanwhile comes last and an import may go on where it ended. arXiv asks for at most one
request in 3 s on one connection; the caller's ``Upstream`` sees to that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from etude.core import EtudeError, require
from etude.papers.entry import Entry, arxiv_id, day
from etude.papers.importers.common import Item, Mark, Refusal, SourceError, checked, find_arxiv
from etude.papers.importers.upstream import INSTALL, Upstream

__all__ = ["GAP_MS", "read", "read_ids"]

URL = "https://export.arxiv.org/api/query"
GAP_MS = 3_000  # between two requests
PAGE = 200
MOST = 30_000  # papers that the API gives of one query
EMPTY = 4  # empty pages in a row before the end: arXiv sends them now and then
DECLARED = re.compile(rb"^\s*<\?xml[^>]*encoding\s*=\s*[\"']([^\"']*)", re.IGNORECASE)


def read(query: str, upstream: Upstream, start: int = 0) -> Iterator[Item]:
    """The papers of a query in arXiv's syntax, from place `start`; a mark after each page.

    Raises:
        SourceError: an error, no Atom, no paper, or more than 30,000.
    """
    empty = 0
    while True:
        params = {
            "search_query": query, "start": str(start), "max_results": str(PAGE),
            "sortBy": "submittedDate", "sortOrder": "ascending",
        }  # fmt: skip
        total, found = _feed(upstream.get(URL, params))
        if total > MOST:
            cure = "narrow it, such as by submittedDate:[202601 TO 202602]"
            raise SourceError(
                f"arXiv gives at most {MOST:,} papers of a query, this has {total:,}: {cure}"
            )
        if total == 0:
            raise SourceError("arXiv has no paper for this query")
        yield from found
        start += len(found)
        empty = 0 if found else empty + 1
        if start >= total:
            yield Mark(total, total)
            return
        if empty == EMPTY:
            again = "the same command goes on there"
            raise SourceError(f"arXiv sends no more than {start:,} of {total:,} papers: {again}")
        yield Mark(start, total)


def read_ids(ids: Sequence[str], upstream: Upstream) -> Iterator[Item]:
    """The papers with these ids; one that arXiv does not know is refused."""
    wanted = list(dict.fromkeys(ids))
    require(len(wanted) <= 10_000, "ids", "at most 10,000", len(wanted))
    for first in range(0, len(wanted), PAGE):
        part = wanted[first : first + PAGE]
        found = _feed(
            upstream.get(URL, {"id_list": ",".join(part), "max_results": str(len(part))})
        )[1]
        yield from found
        known = {item.arxiv for item in found if isinstance(item, Entry)}
        for name in part:
            if name not in known:
                yield Refusal(name, "arXiv does not know this id")


def _feed(raw: bytes) -> tuple[int, list[Entry | Refusal]]:
    """How many papers there are in all, and those of this answer."""
    try:
        import feedparser  # type: ignore[import-untyped]
    except ImportError:
        raise EtudeError(f"arXiv's API needs {INSTALL}") from None
    declared = DECLARED.match(raw[:500])
    upper = raw.upper()
    try:
        raw.decode("utf-8")
        plain = not declared or declared[1].lower() in (b"utf-8", b"us-ascii", b"ascii")
    except UnicodeDecodeError:
        plain = False
    # a DTD has no place in Atom: it brings bombs and looks into other files
    if not plain or b"\0" in raw or b"<!DOCTYPE" in upper or b"<!ENTITY" in upper:
        raise SourceError("arXiv answers with what is no plain Atom in UTF-8; it is not read")
    feed = feedparser.parse(raw, sanitize_html=False, resolve_relative_uris=False)
    if feed.get("bozo") or not feed.get("version", "").startswith("atom"):
        raise SourceError("arXiv answers no Atom, or half of it")
    total = str(feed.feed.get("opensearch_totalresults", ""))
    found: list[Entry | Refusal] = []
    for place, item in enumerate(feed.entries, 1):
        if "/api/errors" in item.get("id", ""):
            raise SourceError(f"arXiv says: {str(item.get('summary', ''))[:200]}")
        found.append(_entry(f"paper {place}", item))
    return (int(total) if total.isdigit() else len(found)), found


def _entry(place: str, item: Any) -> Entry | Refusal:
    name = item.get("id", "")
    arxiv = find_arxiv(name)
    if not arxiv:
        return Refusal(place, f"no arXiv id in {name[:80]!r}")
    entry = Entry(
        title=item.get("title", ""), abstract=item.get("summary", ""),
        authors=tuple(author.get("name", "") for author in item.get("authors", [])),
        arxiv=arxiv, date=day(item.get("published")), doi=item.get("arxiv_doi", ""),
        categories=tuple(tag.get("term") or "" for tag in item.get("tags", [])),
        venue=item.get("arxiv_journal_ref", ""), sources=("arxiv",),
    )  # fmt: skip
    return checked(f"{place} ({arxiv_id(arxiv)})", entry)
