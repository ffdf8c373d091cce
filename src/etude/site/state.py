"""What every part of the site shares: settings, papers, search, templates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from etude.papers.finder import Finder
from etude.papers.place import index_folder
from etude.papers.store import Store
from etude.site.settings import Settings

__all__ = ["Site", "open_site"]

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Site:
    """One running site; every router is made from it (``router(site) -> APIRouter``)."""

    settings: Settings
    store: Store
    finder: Finder
    templates: Environment

    def page(self, request: Request, name: str, *, status: int = 200, **facts: Any) -> HTMLResponse:
        """The template ``templates/<name>`` with these facts; everything in it is escaped."""
        known = {"request": request, "settings": self.settings}
        return HTMLResponse(self.templates.get_template(name).render(**known, **facts), status)


def open_site(settings: Settings) -> Site:
    """The site of these settings, on the database's own index (``etude.papers.place``)."""
    store = Store(settings.database)
    templates = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    finder = Finder(store, index_folder(store), settings.index)
    return Site(settings, store, finder, templates)
