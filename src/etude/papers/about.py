"""Everything that is known of one paper, as JSON values: what pages and commands show."""

from __future__ import annotations

from typing import Any

from etude.core import Card, EtudeError
from etude.core.card import FIDELITIES
from etude.papers.catalogue import Paper, card_for
from etude.papers.evidence import evidence, headline
from etude.papers.find import similar
from etude.papers.signature import signature

__all__ = ["about", "commands"]

# Methods whose claim has an experiment of its own and which a task can try too, on a file of the
# user's: what `etude try` needs to know. A list, since to ask the task itself
# loads torch; a test holds it to the task's answer.
ADOPTED = {
    "bidr": "--data FILE --setting recall=0.95",
    "dbnorm": "--data PAIRS.npz",
    "relative_representation": "--data PAIRS.npz",
    "classify_by_description": "--data FILE --setting zero_shot --descriptions PHRASES.json",
    "laplacian_transductive_clustering": "--data FILE --setting shots=5 --setting transductive",
    "loki_frechet_mean": "--data FILE --setting unseen --labels-metric DISTANCES.csv",
    "self_structural_alignment": "--data FILE --setting zero_shot",
    "tfup_cache": "--data FILE --setting zero_shot",
}


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
        "commands": commands(card),
    }


def commands(card: Card) -> list[str]:
    """How to try the method, where a task can, and how to measure its claim."""
    verify = f"etude verify {card.slug}"
    if card.slug in ADOPTED:
        return [f"etude try {card.slug} {ADOPTED[card.slug]}", verify]
    if card.task == "experiment":
        return [verify]
    return [f"etude try {card.slug} --data {card.data[0] if card.data else 'digits'}", verify]


def _similar(paper: Paper) -> list[dict[str, Any]]:
    try:
        near = similar(paper)
    except EtudeError:  # vectors of another catalogue: the facts are worth showing without
        return []
    return [{"key": p.key, "title": p.title, "runnable": card_for(p) is not None} for p in near]
