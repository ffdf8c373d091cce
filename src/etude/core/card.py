"""The card: what a method declares about itself, as data that other code checks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from etude.core.errors import refuse, require

__all__ = ["FAMILIES", "FIDELITIES", "Card"]

FAMILIES = (
    "losses", "contrastive", "distillation", "heads", "attention", "backbones", "optim",
    "tuning", "compression", "embeddings", "retrieval", "recommendation", "graphs",
    "robustness", "vision", "generation", "language", "multimodal", "regimes", "explain",
    "signals", "theory",
)  # fmt: skip
FIDELITIES = {
    "full": "the method whole",
    "miniature": "the mechanism on a tiny network",
    "protocol": "a benchmark's or survey's measuring rules",
}
Knob = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class Card:
    """Facts of one paper and of the module that plays it; literals only.

    Literals only, because the index reads cards from the source text without importing
    the module (so that listing all cards loads no torch).

    Attributes:
        slug: the module's name; `family` is its folder.
        title, year, arxiv: the paper. `arxiv` is the id without its version, or "".
        move: the one thing that makes it this paper, in a sentence of our own.
        task: the name of the task that the method answers (``etude.tasks``), or
            "experiment" where only ``etude.experiments.<family>.<slug>`` measures it.
        claim: what is measured, in one sentence that can turn out false.
        baseline: the name of the task's (or the experiment's) baseline that the claim names.
        metric, better: what is compared, and whether "higher" or "lower" is better.
        published: the paper's own figure in words, with where it stands; "" if it gives none.
        fidelity: a key of ``FIDELITIES``.
        cost: S (under 30 s), M (under 3 min) or L (under 15 min) on two cores.
        data: names of the data that ``etude verify`` tries the claim on.
        code: the official repository (owner/name), or "".
        departs: each departure from the paper, one sentence each; () if none.
        search: the knobs that tuning may turn, each with its values, the default first.
        example: literal constructor arguments with which the shared checks build the method.
    """

    slug: str
    family: str
    title: str
    year: int
    arxiv: str
    move: str
    task: str
    claim: str
    baseline: str
    metric: str
    better: Literal["higher", "lower"]
    published: str
    fidelity: Literal["full", "miniature", "protocol"]
    cost: Literal["S", "M", "L"]
    data: tuple[str, ...] = ()
    code: str = ""
    departs: tuple[str, ...] = ()
    search: Mapping[str, tuple[Knob, ...]] = field(default_factory=dict)
    example: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(bool(re.fullmatch(r"[a-z][a-z0-9_]*", self.slug)), "slug", "snake_case", self.slug)
        require(self.family in FAMILIES, "family", f"one of {', '.join(FAMILIES)}", self.family)
        require(1900 < self.year < 2100, "year", "a year", self.year)
        if self.arxiv and not re.fullmatch(r"\d{4}\.\d{4,5}|[a-z-]+/\d{7}", self.arxiv):
            refuse("arxiv", "an id without version, such as 2405.19504, or empty", self.arxiv)
        for name in ("title", "move", "task", "claim", "baseline", "metric"):
            require(bool(getattr(self, name).strip()), name, "said in words", getattr(self, name))
        require(self.better in ("higher", "lower"), "better", "higher or lower", self.better)
        require(
            self.fidelity in FIDELITIES, "fidelity", "full, miniature or protocol", self.fidelity
        )
        require(self.cost in ("S", "M", "L"), "cost", "S, M or L", self.cost)
        for knob, values in self.search.items():
            require(len(values) > 0, f"search[{knob!r}]", "a non-empty tuple", values)

    @property
    def key(self) -> str:
        """``family.slug``: the name that commands, rows and pages use."""
        return f"{self.family}.{self.slug}"

    @property
    def module(self) -> str:
        """The module's import name."""
        return f"etude.{self.family}.{self.slug}"
