"""Everything that is known of one paper, as JSON values: what pages and commands show."""

from __future__ import annotations

from typing import Any

from etude.core import EtudeError
from etude.core.card import FIDELITIES
from etude.papers.catalogue import Paper, card_for
from etude.papers.evidence import evidence, headline
from etude.papers.find import similar
from etude.papers.signature import signature

__all__ = ["about"]


def about(paper: Paper) -> dict[str, Any]:
    """Facts of the catalogue, and where a module plays the paper its card and evidence."""
    facts: dict[str, Any] = {
        "key": paper.key,
        "title": paper.title,
        "year": paper.year,
        "arxiv": paper.arxiv,
        "url": paper.url,
        "family": paper.family,
        "slug": paper.slug,
        "move": paper.move,
        "keywords": list(paper.keywords),
        "fidelity": paper.fidelity,
        "fidelity_means": FIDELITIES[paper.fidelity],
        "cost": paper.cost,
        "code": paper.code,
        "runnable": False,
        "similar": _similar(paper),
    }
    card = card_for(paper)
    if card is None:
        return facts
    best = headline(paper.slug)
    return facts | {
        "runnable": True,
        "fidelity": card.fidelity,
        "fidelity_means": FIDELITIES[card.fidelity],
        "cost": card.cost,
        "code": card.code,
        "import": f"from etude.{card.family} import {signature(card)[0].split('(')[0]}",
        "signature": signature(card),
        "task": card.task,
        "claim": card.claim,
        "baseline": card.baseline,
        "metric": card.metric,
        "better": card.better,
        "published": card.published,
        "departs": list(card.departs),
        "measured": evidence(paper.slug),
        "verdict": best["verdict"] if best else None,
        "commands": _commands(card.slug, card.task, card.data),
    }


def _commands(slug: str, task: str, data: tuple[str, ...]) -> list[str]:
    """How to try the method and how to measure its claim; an experiment cannot be tried."""
    verify = f"etude verify {slug}"
    if task == "experiment":
        return [verify]
    return [f"etude try {slug} --data {data[0] if data else 'digits'}", verify]


def _similar(paper: Paper) -> list[dict[str, Any]]:
    try:
        near = similar(paper)
    except EtudeError:  # vectors of another catalogue: the facts are worth showing without
        return []
    return [{"key": p.key, "title": p.title, "runnable": card_for(p) is not None} for p in near]
