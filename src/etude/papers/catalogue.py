"""The catalogue of all papers: the facts, and in our own words what each one does.

``catalogue.jsonl`` holds one JSON object a line with the fields of ``Paper``; it is data of the
package, written by hand. Nothing here imports torch.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path

from etude.core import Card, EtudeError, cards, refuse

__all__ = ["CATALOGUE", "Paper", "card_for", "paper_of", "papers"]

CATALOGUE = Path(__file__).with_name("catalogue.jsonl")
LONGEST = 300  # characters of a name that are compared; the longest title has half of that
ARXIV = re.compile(
    r"(?:arxiv:|(?:https?://)?[\w.-]+/(?:abs|pdf|html|papers)/)?"
    r"(\d{4}\.\d{4,5}|[a-z-]+(?:\.[a-z]{2})?/\d{7})"
    r"(?:v\d+)?(?:\.pdf)?/?(?:[?#].*)?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Paper:
    """One paper of the catalogue.

    Attributes:
        title, year: as published.
        arxiv: the id without its version, or "" if the paper has none that is known.
        family, slug: where its module is, or would be: ``etude.<family>.<slug>``.
        fidelity: "full", "miniature" or "protocol" (``etude.core.card.FIDELITIES``).
        cost: S, M or L: the time that its claim needs on two cores.
        code: the official repository (owner/name), or "".
        move: what it does and why that helps, in one sentence of our own.
        keywords: needs that it answers, in plain words.
    """

    title: str
    year: int
    arxiv: str
    family: str
    slug: str
    fidelity: str
    cost: str
    code: str
    move: str
    keywords: tuple[str, ...]

    @property
    def key(self) -> str:
        """``family.slug``, as cards, rows and pages call it."""
        return f"{self.family}.{self.slug}"

    @property
    def url(self) -> str:
        """The paper's page at arXiv, or ""."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else ""


@cache
def papers() -> tuple[Paper, ...]:
    """All papers, in the order of families and slugs.

    Raises:
        EtudeError: the file is damaged; names the line.
    """
    found = []
    for number, line in enumerate(CATALOGUE.read_text(encoding="utf-8").splitlines(), 1):
        try:
            facts = json.loads(line)
            found.append(Paper(**{**facts, "keywords": tuple(facts["keywords"])}))
        except (ValueError, TypeError, KeyError) as error:
            raise EtudeError(
                f"{CATALOGUE.name}, line {number}: not a paper's facts ({error}); "
                "install the package again"
            ) from None
    return tuple(found)


def card_for(paper: Paper) -> Card | None:
    """The card of the module that plays the paper, or None: it is not runnable here yet."""
    return cards().get(paper.key)


def squeeze(title: str) -> str:
    """A title without case, spaces and punctuation, so that copies of it compare equal."""
    return "".join(letter for letter in title.casefold() if letter.isalnum())


@cache
def _names() -> dict[str, Paper]:
    names: dict[str, Paper] = {}
    for paper in papers():
        for name in (paper.slug, paper.key, paper.arxiv, squeeze(paper.title)):
            if name:
                names[name] = paper
    return names


def nearest(text: str, k: int = 3) -> list[Paper]:
    """The `k` papers whose slug, title or (for an id) arXiv id look most like `text`."""
    wanted = text.casefold()[:LONGEST]
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(wanted)

    def likeness(paper: Paper) -> float:
        best = 0.0
        for name in (paper.slug, paper.title.casefold(), paper.arxiv):
            matcher.set_seq1(name)
            best = max(best, matcher.ratio())
        return best

    return sorted(papers(), key=likeness, reverse=True)[:k]


def paper_of(text: str) -> Paper:
    """The paper that `text` names.

    Accepted are a slug (``muvera``), a key (``retrieval.muvera``), the exact title, an arXiv id
    with or without ``arXiv:`` and version, and the address of its abs, pdf or html page.

    Raises:
        EtudeError: empty, or unknown; then the message names the nearest three.
    """
    name = text.strip()
    if not name:
        refuse("paper", "a slug, an arXiv id or address, or a title", text)
    match = ARXIV.fullmatch(name)
    wanted = match[1].lower() if match else name.lower().replace("-", "_")
    paper = _names().get(wanted) or _names().get(squeeze(name))
    if paper is None:
        near = ", ".join(near.slug for near in nearest(match[1] if match else name))
        quoted = name if len(name) <= 80 else name[:79] + "…"
        raise EtudeError(f"no paper of the catalogue is called {quoted!r}; the nearest are {near}")
    return paper
