"""The pages of papers by day, week and month, search, and what the site is."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from etude.site.state import Site

__all__ = ["refreshed", "router"]


def refreshed(site: Site) -> dict[str, Any] | None:
    """When papers were last imported, from where, and what failed since; None if never."""
    return None


def router(site: Site) -> APIRouter:
    """The routes of these pages."""
    routes = APIRouter()

    @routes.get("/about", include_in_schema=False)
    def about(request: Request) -> HTMLResponse:
        return site.page(request, "about.html")

    return routes
