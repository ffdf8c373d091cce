"""A view as a page and as its JSON twin: one function makes the facts of both."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel

from etude.site.schema import ERRORS
from etude.site.state import Site

__all__ = ["markdown", "query_of", "twins"]

Facts = dict[str, Any]
# What Markdown reads as a mark; a line's first - + # = or number needs a mark before it too.
MARKS = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>~&$:^=@\"'/])")


def twins(
    routes: APIRouter, site: Site, path: str, view: Callable[..., Facts | Response],
    template: str, model: type[BaseModel], *, twin: str = "",
    twin_view: Callable[..., Facts] | None = None,
) -> None:  # fmt: skip
    """Serve a view at `path` as a page, and at `twin` (by default `path`.json) as JSON.

    `view` asks for the parameters that FastAPI shall read; a Response of it is sent as it is.
    The twin comes first, for where a path's end takes any name.
    """
    told = twin_view or view
    told_facts, shown_facts = Depends(told), Depends(view)

    @routes.get(
        twin or path + ".json", response_model=model, responses=ERRORS, name=told.__name__,
        description=told.__doc__,
    )  # fmt: skip
    def as_json(facts: Any = told_facts) -> Any:
        return facts

    @routes.get(path, include_in_schema=False, response_class=HTMLResponse, response_model=None)
    def as_page(request: Request, facts: Any = shown_facts) -> Response:
        if isinstance(facts, Response):
            return facts
        return site.page(request, template, facts=facts)


def query_of(**words: object) -> str:
    """``?name=value`` of what is neither "" nor None nor page 1; "" where nothing is left."""
    kept = {
        name: value
        for name, value in words.items()
        if value not in ("", None) and (name, value) != ("page", 1)
    }
    return "?" + urlencode(kept) if kept else ""


def markdown(text: str) -> str:
    """Text that Markdown shows letter by letter, on one line: no mark, tag, link or entity."""
    return MARKS.sub(r"\\\1", " ".join(text.split()))
