"""What pages and their JSON twins say of papers: plain values, read without importing torch."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any
from urllib.parse import quote

from etude.core import EtudeError, cards
from etude.core.card import FIDELITIES
from etude.papers.about import commands
from etude.papers.catalogue import Paper, papers
from etude.papers.entry import Entry, entry_id
from etude.papers.evidence import evidence, headline
from etude.papers.signature import signature
from etude.site.state import Site

__all__ = [
    "COSTS", "catalogue", "family_entries", "method_facts", "paper_facts", "path_of",
    "stored_id", "verdict_of",
]  # fmt: skip

COSTS = {"S": "under 30 s", "M": "under 3 min", "L": "under 15 min"}


def path_of(name: str) -> str:
    """The address of a paper's page below the site's root; an old arXiv id keeps its slash."""
    return f"/papers/{quote(name, safe='/')}"


@cache
def catalogue() -> dict[str, Paper]:
    """The catalogue's papers by key (``family.slug``)."""
    return {paper.key: paper for paper in papers()}


@cache
def verdict_of(key: str) -> str | None:
    """What the newest measurement of a method's claim says, or None."""
    try:
        newest = headline(key)
    except EtudeError:  # a damaged line costs its badge, not the page
        return None
    return str(newest["verdict"]) if newest else None


def paper_facts(entries: Iterable[Entry], votes: dict[str, int]) -> list[dict[str, Any]]:
    """One JSON object a paper; `votes` holds this site's own, added to the imported ones."""
    return [_paper(entry, votes.get(entry.id, 0)) for entry in entries]


def _paper(entry: Entry, votes: int) -> dict[str, Any]:
    known = catalogue().get(entry.slug)
    card = cards().get(entry.slug)
    return {
        "id": entry.id,
        "page": path_of(entry.id),
        "title": entry.title,
        "abstract": entry.abstract,
        "authors": list(entry.authors),
        "date": entry.date,
        "arxiv": entry.arxiv,
        "doi": entry.doi,
        "venue": entry.venue,
        "url": entry.url,
        "categories": list(entry.categories),
        "votes": entry.votes + votes,
        "sources": list(entry.sources),
        "family": known.family if known else "",
        "method": entry.slug if known else "",
        "move": known.move if known else "",
        "runnable": card is not None,
        "verdict": verdict_of(entry.slug) if card else None,
        "cost": card.cost if card else known.cost if known else "",
    }


def family_entries(site: Site, family: str = "", *, runnable: bool | None = None) -> list[Entry]:
    """The catalogue's papers in the store, of one family or all, the newest first."""
    wanted = [
        stored_id(paper)
        for paper in papers()
        if family in ("", paper.family) and runnable in (None, paper.key in cards())
    ]
    return sorted(site.store.many(wanted), key=lambda e: (e.date, e.votes), reverse=True)


def stored_id(paper: Paper) -> str:
    """The id under which the store has a paper of the catalogue."""
    return entry_id(Entry(title=paper.title, arxiv=paper.arxiv))


def method_facts(key: str) -> dict[str, Any] | None:
    """What the catalogue has of a paper: the move, and where it runs how and what it measured.

    None for a key that the catalogue does not have.
    """
    paper, card = catalogue().get(key), cards().get(key)
    if paper is None:
        return None
    facts: dict[str, Any] = {
        "key": key,
        "family": paper.family,
        "slug": paper.slug,
        "move": paper.move,
        "keywords": list(paper.keywords),
        "year": paper.year,
        "fidelity": (card or paper).fidelity,
        "fidelity_means": FIDELITIES[(card or paper).fidelity],
        "cost": (card or paper).cost,
        "cost_means": COSTS[(card or paper).cost],
        "code": (card or paper).code,
        "runnable": card is not None,
        "verdict": verdict_of(key) if card else None,
    }
    if card is None:
        return facts
    calls = signature(card)
    return facts | {
        "import": f"from etude.{card.family} import {calls[0].split('(')[0]}",
        "signature": calls,
        "task": card.task,
        "claim": card.claim,
        "baseline": card.baseline,
        "metric": card.metric,
        "better": card.better,
        "published": card.published,
        "departs": list(card.departs),
        "commands": commands(card),
        "measured": _measured(key),
    }


def _measured(key: str) -> list[dict[str, Any]]:
    try:
        return evidence(key)
    except EtudeError:
        return []
