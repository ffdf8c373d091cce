"""All methods of the catalogue by family, with filters."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, HTTPException

from etude.core import FAMILIES, cards
from etude.site.facts import COSTS, catalogue, stored_id, verdict_of
from etude.site.facts import path_of as path
from etude.site.render import Facts, twins
from etude.site.schema import Family, Methods, YesNo
from etude.site.state import Site

__all__ = ["router"]

Held = Literal["", "holds", "fails", "undecided", "unmeasured"]
Cost = Literal["", "S", "M", "L"]
HELD = {"holds": "holds", "undecided": "undecided", None: "unmeasured"}


def router(site: Site) -> APIRouter:
    """The route of the methods' page and its twin."""
    routes = APIRouter(tags=["methods"])
    site.templates.globals["costs"] = COSTS

    def methods(
        family: Family = "", runnable: YesNo = "", held: Held = "", cost: Cost = ""
    ) -> Facts:
        """The catalogue's methods: by family, runnable here, what was measured, cost."""
        if family and family not in FAMILIES:
            raise HTTPException(400, f"family must be one of {', '.join(FAMILIES)}")
        found = []
        for key, paper in catalogue().items():
            card = cards().get(key)
            verdict = verdict_of(key) if card else None
            fact = {
                "key": key, "family": paper.family, "slug": paper.slug, "title": paper.title,
                "year": paper.year, "page": path(stored_id(paper)), "move": paper.move,
                "cost": (card or paper).cost, "runnable": card is not None, "verdict": verdict,
            }  # fmt: skip
            fits = (
                family in ("", paper.family)
                and runnable in ("", "yes" if card else "no")
                and held in ("", HELD.get(verdict, "fails"))
                and (held == "" or card is not None)
                and cost in ("", fact["cost"])
            )
            if fits:
                found.append(fact)
        return {
            "family": family, "runnable": runnable, "held": held, "cost": cost,
            "total": len(catalogue()), "methods": found,
        }  # fmt: skip

    twins(routes, site, "/methods", methods, "methods.html", Methods)
    return routes
