"""What every part of the site shares: settings, papers, search, templates."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import quote

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
    """One running site; every router is made from it (``router(site) -> APIRouter``).

    `answers` is set once readers are answered: what may wait until then waits for it.
    """

    settings: Settings
    store: Store
    finder: Finder
    templates: Environment
    answers: Event = field(default_factory=Event, compare=False, repr=False)

    def page(self, request: Request, name: str, *, status: int = 200, **facts: Any) -> HTMLResponse:
        """The template ``templates/<name>`` with these facts; everything in it is escaped.

        Of the request a page may know the path and the query only. A URL is made of the header
        Host too, which whoever asks may fill with a path, and pages are kept for others.
        """
        path = quote(request.scope["path"], safe="/:@!$&'()*+,;=~")
        query = request.scope["query_string"].decode("latin-1")
        here = f"{path}?{query}" if query else path
        known = {"path": path, "here": here, "settings": self.settings}
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
