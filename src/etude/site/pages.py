"""The pages of papers by day, week and month, trending, search, and what the site is."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse

from etude.core import FAMILIES, cards
from etude.papers.entry import Entry, line
from etude.papers.trending import FORMULA, trending
from etude.site import index
from etude.site.facts import family_entries, paper_facts
from etude.site.render import Facts, query_of, twins
from etude.site.schema import (
    Bound,
    Day,
    Family,
    Found,
    Listing,
    Month,
    PageNumber,
    Trending,
    Week,
    Words,
    YesNo,
)
from etude.site.spans import Span, day_span, month_span, week_of, week_span
from etude.site.state import Site
from etude.site.votes import votes

__all__ = ["PER_PAGE", "refreshed", "router"]

UPSTREAM = ("hf:", "arxiv:")
PER_PAGE = 30
TRENDING = 30
CATALOGUE = 1_000  # papers that a new site chooses its first page from
LONGEST = 300  # characters of a query


def refreshed(site: Site) -> dict[str, Any] | None:
    """When papers were last imported, from where, and what failed since; None if never.

    Only a source that others run counts as failed: a file that could not be read is the
    business of whoever has it.
    """
    ends = site.store.refreshed()
    good = max((end for end in ends if end.ok), key=lambda end: end.at, default=None)
    tried = (end for end in ends if end.source.startswith(UPSTREAM))
    last = max(tried, key=lambda end: end.at, default=None)
    failed = last if last and not last.ok else None
    if good is None and failed is None:
        return None
    return {
        "at": good.at if good else "",
        "shown": _clock(good.at) if good else "",
        "source": _source(good.source) if good else "",
        "problem": failed.message if failed else "",
        "tried": f"{_clock(failed.at)}, {_source(failed.source)}" if failed else "",
    }


def _source(name: str) -> str:
    kind, _, rest = name.partition(":")
    return {"hf": f"Hugging Face, {rest}", "arxiv": "arXiv", "file": "a file"}.get(kind, name)


def _clock(at: str) -> str:
    return at[:16].replace("T", " ") + " UTC"


def votes_of(site: Site, entries: list[Entry]) -> dict[str, int]:
    """This site's own upvotes of some papers, by stable id."""
    return votes(site).counts([entry.id for entry in entries])


def listing(site: Site, kind: str, span: Span, page: int = 1) -> Facts:
    """The facts of a page that lists a span of days."""
    start = (page - 1) * PER_PAGE
    entries = site.store.of(span.first, span.last, limit=PER_PAGE + 1, start=start)
    before, after = span.before, span.after
    if kind == "day":  # the nearest days that have papers, where they are known
        days = [day for day, _ in site.store.days()]
        earlier = site.store.days(1, before=span.name)
        before = earlier[0][0] if earlier else before
        today = datetime.now(UTC).strftime("%Y-%m-%d")
        later = (day for day in days if day > span.name)
        after = min(later, default=after if after <= today else "")
    return {
        "kind": kind, "name": span.name, "title": span.title, "first": span.first,
        "last": span.last, "before": before, "after": after, "page": page,
        "more": len(entries) > PER_PAGE,
        "papers": paper_facts(entries[:PER_PAGE], votes_of(site, entries)),
    }  # fmt: skip


def trend(site: Site) -> Facts:
    """Papers by votes that fade with age, and the formula."""
    entries = trending(site.store, votes(site).recent(), datetime.now(UTC), TRENDING)
    return {"formula": FORMULA, "papers": paper_facts(entries, votes_of(site, entries))}


def latest(site: Site) -> Facts:
    """The newest day that has papers; before any is known to the day, the catalogue."""
    days = site.store.days(1)
    span = day_span(days[0][0]) if days else None
    return listing(site, "day", span) if span else catalogue(site)


def catalogue(site: Site) -> Facts:
    """What a new site has: the papers that run here, then others, each the newest first."""
    newest = site.store.newest(CATALOGUE)
    entries = sorted(newest, key=lambda entry: entry.slug not in cards())[:PER_PAGE]
    return {
        "kind": "catalogue", "name": "", "title": "Papers that run here", "first": "", "last": "",
        "before": "", "after": "", "page": 1, "more": False,
        "papers": paper_facts(entries, votes_of(site, entries)),
    }  # fmt: skip


def found(
    site: Site, q: str, first: str, last: str, family: str, runnable: YesNo, page: int
) -> Facts:
    """What a search, or without words a filter, finds."""
    q = line(q, LONGEST)  # on one line, without control characters
    start, k, note = (page - 1) * PER_PAGE, PER_PAGE + 1, ""
    wanted = {"yes": True, "no": False, "": None}[runnable]
    if family and family not in FAMILIES:
        raise HTTPException(400, f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    for bound in (first, last):
        if bound and day_span(bound) is None:
            raise HTTPException(400, f"there is no day {bound!r}; write it as 2026-11-22")
    if q.strip():
        hits = index.search(
            site, q, k, start=start, first=first, last=last, family=family, runnable=wanted
        )
        entries, note = hits.entries, hits.note
    elif family or wanted is not None:
        inside = [
            entry
            for entry in family_entries(site, family, runnable=wanted)
            if (not first or entry.date >= first[: len(entry.date)])
            and (not last or entry.date <= last[: len(entry.date)])
        ]
        entries = inside[start : start + k]
    elif first or last:
        entries = site.store.of(first or "0001-01-01", last or "9999-12-31", limit=k, start=start)
    else:
        entries = site.store.newest(k, start=start)
    return {
        "q": q, "first": first, "last": last, "family": family, "runnable": runnable,
        "page": page, "more": len(entries) > PER_PAGE, "note": note,
        "papers": paper_facts(entries[:PER_PAGE], votes_of(site, entries)),
    }  # fmt: skip


def router(site: Site) -> APIRouter:
    """The routes of these pages."""
    routes = APIRouter(tags=["papers"])
    site.templates.globals |= {"query_of": query_of, "week_of": week_of}

    def home() -> Facts:
        """The newest day's papers."""
        return latest(site)

    def span_of(kind: str, span: Span | None, text: str, shape: str, page: int) -> Facts:
        if span is None:
            raise HTTPException(404, f"There is no {kind} {text[:40]!r}; write it as {shape}.")
        return listing(site, kind, span, page)

    def papers_of_a_day(day: Day, page: PageNumber = 1) -> Facts:
        """One day's papers."""
        return span_of("day", day_span(day), day, "2026-11-22", page)

    def papers_of_a_week(week: Week, page: PageNumber = 1) -> Facts:
        """One ISO week's papers."""
        return span_of("week", week_span(week), week, "2026-W47", page)

    def papers_of_a_month(month: Month, page: PageNumber = 1) -> Facts:
        """One month's papers."""
        return span_of("month", month_span(month), month, "2026-11", page)

    def trending_papers() -> Facts:
        """The papers that readers vote for these days."""
        return trend(site)

    def search(
        q: Words = "", first: Bound = "", last: Bound = "", family: Family = "",
        runnable: YesNo = "", page: PageNumber = 1,
    ) -> Facts:  # fmt: skip
        """Papers by words and meaning, with filters; without any the newest."""
        return found(site, q, first, last, family, runnable, page)

    twins(routes, site, "/", home, "listing.html", Listing, twin="/index.json")
    twins(routes, site, "/papers/date/{day}", papers_of_a_day, "listing.html", Listing)
    twins(routes, site, "/papers/week/{week}", papers_of_a_week, "listing.html", Listing)
    twins(routes, site, "/papers/month/{month}", papers_of_a_month, "listing.html", Listing)
    twins(routes, site, "/papers/trending", trending_papers, "trending.html", Trending)
    twins(routes, site, "/papers", search, "search.html", Found)

    @routes.get("/about", include_in_schema=False)
    def about(request: Request) -> HTMLResponse:
        return site.page(request, "about.html")

    return routes
