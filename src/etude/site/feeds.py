"""Feeds: Atom, RSS 2.0, JSON Feed and OPML; one entry a paper, its id the same in all of them.

An entry's id is a UUID (version 5) of the paper's stable id: it stays where the site moves to
another address, and readers that follow two feeds see a paper once.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any, Literal

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from jinja2 import Environment

from etude.core import FAMILIES, cards
from etude.site.facts import family_entries, paper_facts
from etude.site.pages import found, latest, trend, votes_of
from etude.site.render import Facts, query_of
from etude.site.schema import ERRORS, Day, Family, Words, YesNo
from etude.site.spans import day_span
from etude.site.state import Site

__all__ = ["entry_uuid", "router"]

MOST = 50  # papers of a feed
SHAPES: dict[str, str] = {
    "atom": "application/atom+xml",
    "rss": "application/rss+xml",
    "json": "application/feed+json",
}
Shape = Literal["atom", "rss", "json"]
SPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:etude:paper")
OLDEST = "1970-01-01"


def entry_uuid(paper: str) -> str:
    """The id of a paper's entry in every feed, as a URN."""
    return uuid.uuid5(SPACE, paper).urn


def moment(date: str) -> datetime:
    """Midnight (UTC) of the first day that a date "2026-11-22", "2026-11" or "2026" holds."""
    known = (date + "-01-01"[len(date) - 4 :])[:10] if len(date) >= 4 else OLDEST
    try:
        return datetime.fromisoformat(known).replace(tzinfo=UTC)
    except ValueError:
        return datetime.fromisoformat(OLDEST).replace(tzinfo=UTC)


def plain(text: str) -> str:
    """Text without what XML 1.0 does not hold: control characters, surrogates, non-characters."""
    return "".join(
        c for c in text if c in "\t\n" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd"
        or c >= "\U00010000"
    )  # fmt: skip


def feed(site: Site, title: str, path: str, home: str, papers: Iterable[Facts]) -> Facts:
    """The facts of a feed in any shape; `path` is that of its page, without the shape."""
    base = site.settings.base_url.rstrip("/")
    entries = []
    for paper in list(papers)[:MOST]:
        when = moment(paper["date"])
        entries.append({
            "id": entry_uuid(paper["id"]), "url": base + paper["page"],
            "title": plain(paper["title"]), "text": plain(paper["abstract"] or paper["move"]),
            "authors": [plain(a) for a in paper["authors"][:100]],
            "when": f"{when:%Y-%m-%dT%H:%M:%SZ}".rjust(20, "0"), "mailed": format_datetime(when),
            "tags": [*paper["categories"], *filter(None, (paper["family"],)),
                     *(["runnable"] if paper["runnable"] else [])],
        })  # fmt: skip
    newest = max((e["when"] for e in entries), default=f"{OLDEST}T00:00:00Z")
    return {
        "title": plain(title), "base": base, "home": base + home, "path": path,
        "id": uuid.uuid5(SPACE, path).urn, "updated": newest, "entries": entries,
    }  # fmt: skip


def answer(templates: Environment, facts: Facts, shape: Shape, query: str) -> Response:
    """The feed in one shape."""
    own = f"{facts['base']}{facts['path']}.{shape}{query}"
    if shape == "json":
        return JSONResponse(_json_feed(facts, own), media_type=SHAPES[shape])
    text = templates.get_template(f"feed.{shape}.xml").render(facts=facts, own=own)
    return Response(text, media_type=f"{SHAPES[shape]}; charset=utf-8")


def _json_feed(facts: Facts, own: str) -> dict[str, Any]:
    items = [
        {
            "id": e["id"], "url": e["url"], "title": e["title"],
            "content_text": e["text"] or e["title"], "date_published": e["when"],
            "authors": [{"name": name} for name in e["authors"]], "tags": e["tags"],
        }
        for e in facts["entries"]
    ]  # fmt: skip
    return {
        "version": "https://jsonfeed.org/version/1.1", "title": facts["title"],
        "home_page_url": facts["home"], "feed_url": own, "items": items,
    }  # fmt: skip


def all_feeds() -> list[dict[str, str]]:
    """Every feed that needs no words: its title, and its address without the shape."""
    used = [f for f in FAMILIES if any(card.family == f for card in cards().values())]
    return [
        {"title": "Latest papers", "path": "/feeds/latest"},
        {"title": "Trending papers", "path": "/feeds/trending"},
        *({"title": f"Papers of {f}", "path": f"/feeds/family/{f}"} for f in used),
    ]


def router(site: Site) -> APIRouter:
    """The routes of the feeds and of the page that lists them."""
    routes = APIRouter(tags=["feeds"])
    templates = site.templates
    content = {media: {"schema": {"type": "string"}} for media in list(SHAPES.values())[:2]}
    content[SHAPES["json"]] = {"schema": {"type": "object"}}
    told: Any = {200: {"content": content}, **ERRORS}
    plan: Any = {"response_class": Response, "responses": told}

    def queried(**words: object) -> str:
        return query_of(**words).replace("+", "%20")

    @routes.get("/feeds/latest.{shape}", **plan)
    def latest_feed(shape: Shape) -> Response:
        """The newest papers."""
        entries = site.store.newest(MOST)
        papers = paper_facts(entries, votes_of(site, entries))
        facts = feed(site, "etude: latest papers", "/feeds/latest", "/", papers)
        return answer(templates, facts, shape, "")

    @routes.get("/feeds/trending.{shape}", **plan)
    def trending_feed(shape: Shape) -> Response:
        """The papers that readers vote for these days."""
        papers = trend(site)["papers"]
        facts = feed(site, "etude: trending papers", "/feeds/trending", "/papers/trending", papers)
        return answer(templates, facts, shape, "")

    @routes.get("/feeds/date/{day}.{shape}", **plan)
    def day_feed(day: Day, shape: Shape) -> Response:
        """One day's papers."""
        span = day_span(day)
        if span is None:
            raise HTTPException(404, f"There is no day {day!r}; write it as 2026-11-22.")
        entries = site.store.of(day, day, limit=MOST)
        papers, home = paper_facts(entries, votes_of(site, entries)), f"/papers/date/{day}"
        facts = feed(site, f"etude: papers of {span.title}", f"/feeds/date/{day}", home, papers)
        return answer(templates, facts, shape, "")

    @routes.get("/feeds/family/{family}.{shape}", **plan)
    def family_feed(family: str, shape: Shape) -> Response:
        """The papers of one family of methods."""
        if family not in FAMILIES:
            raise HTTPException(404, f"There is no family {family[:40]!r}.")
        entries = family_entries(site, family)[:MOST]
        papers, home = paper_facts(entries, votes_of(site, entries)), f"/methods?family={family}"
        facts = feed(site, f"etude: papers of {family}", f"/feeds/family/{family}", home, papers)
        return answer(templates, facts, shape, "")

    @routes.get("/feeds/search.{shape}", **plan)
    def search_feed(
        shape: Shape, q: Words = "", family: Family = "", runnable: YesNo = ""
    ) -> Response:
        """What a search finds, the newest first: a saved search."""
        hits = found(site, q, "", "", family, runnable, 1)["papers"]
        papers = sorted(hits, key=lambda paper: str(paper["date"]), reverse=True)
        query = queried(q=q, family=family, runnable=runnable)
        title = f"etude: {q}" if q else "etude: papers"
        facts = feed(site, title, "/feeds/search", f"/papers{query}", papers)
        facts["id"] = uuid.uuid5(SPACE, f"/feeds/search{query}").urn
        return answer(templates, facts, shape, query)

    opml: Any = {200: {"content": {"text/x-opml": {"schema": {"type": "string"}}}}}

    @routes.get("/feeds.opml", response_class=Response, responses=opml)
    def feeds_as_opml() -> Response:
        """All feeds, for a reader's program to take at once."""
        base = site.settings.base_url.rstrip("/")
        text = templates.get_template("feeds.opml.xml").render(feeds=all_feeds(), base=base)
        return Response(text, media_type="text/x-opml; charset=utf-8")

    @routes.get("/feeds.json")
    def feeds_as_json() -> dict[str, list[dict[str, str]]]:
        """All feeds: append .atom, .rss or .json to a path."""
        return {"feeds": all_feeds()}

    @routes.get("/feeds", include_in_schema=False)
    def feeds(request: Request) -> HTMLResponse:
        day = latest(site)
        return site.page(request, "feeds.html", feeds=all_feeds(), day=day)

    return routes
