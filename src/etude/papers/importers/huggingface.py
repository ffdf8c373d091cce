"""Hugging Face's daily papers of a day, a week or a month, by its JSON API.

``GET https://huggingface.co/api/daily_papers?date=YYYY-MM-DD`` (or ``week=YYYY-Www``,
``month=YYYY-MM``), paged by ``p`` from 0 with ``limit`` papers a page, answers a list of
``{"paper": {"id", "title", "summary", "authors": [{"name"}], "publishedAt",
"submittedOnDailyAt", "upvotes", …}, …}``. A page may hold fewer than ``limit`` before the end,
so that only a page without anything new ends the list.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from etude.papers.entry import Entry, arxiv_id, day
from etude.papers.importers.common import Item, Refusal, SourceError, checked, string
from etude.papers.importers.upstream import Upstream

__all__ = ["read"]

URL = "https://huggingface.co/api/daily_papers"
PAGE, PAGES = 100, 100


def read(period: str, upstream: Upstream) -> Iterator[Item]:
    """The papers of "YYYY-MM-DD", "YYYY-Www" or "YYYY-MM"; none before all pages were read.

    Raises:
        SourceError: the answer is an error, no JSON, or has another shape.
    """
    kind = "date" if len(period) == 10 else "week" if "W" in period else "month"
    found: dict[str, Any] = {}
    for page in range(PAGES):
        params = {kind: period, "limit": str(PAGE), "p": str(page)}
        rows = _rows(upstream.get(URL, params))
        known = len(found)
        found |= {_name(row): row for row in rows if _name(row) not in found}
        if len(found) == known:
            break
    for place, row in enumerate(found.values(), 1):
        yield _entry(f"paper {place}", row, period if kind == "date" else "")


def _rows(raw: bytes) -> list[Any]:
    try:
        rows = json.loads(raw)
    except (ValueError, RecursionError):
        raise SourceError("huggingface.co answers no JSON, or half of it") from None
    if not isinstance(rows, list):
        raise SourceError("huggingface.co answers no list of papers")
    return rows


def _name(row: Any) -> str:
    """The paper's id, else the whole row: the same row on each page is one."""
    paper = row.get("paper") if isinstance(row, dict) else None
    name = string(paper.get("id")) if isinstance(paper, dict) else ""
    return name or json.dumps(row, sort_keys=True)


def _entry(place: str, row: Any, date: str) -> Entry | Refusal:
    paper = row.get("paper") if isinstance(row, dict) else None
    if not isinstance(paper, dict):
        return Refusal(place, "no object with a paper in it")
    name = string(paper.get("id"))
    arxiv, votes, authors = arxiv_id(name), paper.get("upvotes"), paper.get("authors")
    shown = day(paper.get("submittedOnDailyAt") or row.get("submittedOnDailyAt"))
    date = date or shown or day(paper.get("publishedAt") or row.get("publishedAt"))
    entry = Entry(
        title=string(paper.get("title")) or string(row.get("title")),
        abstract=string(paper.get("summary")) or string(row.get("summary")),
        authors=tuple(
            string(author.get("name"))
            for author in (authors if isinstance(authors, list) else [])
            if isinstance(author, dict)
        ),
        arxiv=arxiv, date=date, votes=votes if type(votes) is int and votes > 0 else 0,
        sources=(f"hf:{date}",),
    )  # fmt: skip
    return checked(f"{place} ({name[:40]})" if name else place, entry)
