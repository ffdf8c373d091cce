"""The site's application: every router, one shape of errors, and what stands around them."""

from __future__ import annotations

import hashlib
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

import etude
from etude.core import FAMILIES, EtudeError
from etude.site import feeds, methods_page, pages, paper_page, subscribe, trials, votes
from etude.site.fresh import Fresh
from etude.site.guard import HEADERS, Guard
from etude.site.schema import ERRORS
from etude.site.settings import Settings
from etude.site.stamp import stamp_of
from etude.site.state import HERE, Site, open_site

__all__ = ["make_app"]

ABOUT = "Daily papers that you can run: every page has a JSON twin, here described."
SAID = {  # where the reason is only the status, what it means to a reader
    404: "There is no such page.",
    405: "This address does not take that kind of request.",
    413: "That is more than this site reads.",
    500: "Something went wrong here. It is not your doing; the page may work in a moment.",
}


def make_app(settings: Settings) -> FastAPI:
    """The application of these settings; ``app.state.site`` is its ``Site``.

    Raises:
        EtudeError: the database cannot be opened.
    """
    site = open_site(settings)
    site.templates.globals |= {
        "version": etude.__version__, "families": FAMILIES,
        "style": _fingerprint("site.css"), "script": _fingerprint("run.js"),
        "footer": lambda: pages.refreshed(site),
    }  # fmt: skip
    app = FastAPI(
        title="etude", version=etude.__version__, description=ABOUT, docs_url=None,
        redoc_url=None, redirect_slashes=False, responses=ERRORS,
    )  # fmt: skip
    app.state.site = site
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    app.include_router(votes.router(site))
    app.include_router(trials.router(site))
    app.include_router(subscribe.router(site))
    # Pages come last: /papers/{name} takes every name that no other router has taken.
    app.include_router(feeds.router(site))
    app.include_router(pages.router(site))
    app.include_router(methods_page.router(site))
    app.include_router(paper_page.router(site))
    _tell_errors(app, site)
    app.add_middleware(Fresh, stamp=lambda: stamp_of(site))
    app.add_middleware(Guard, site=site)
    return app


def _fingerprint(name: str) -> str:
    """Digits that change with a file of static/, so that a browser may keep it for long."""
    return hashlib.sha256((HERE / "static" / name).read_bytes()).hexdigest()[:10]


def wants_json(request: Request) -> bool:
    """Whether an error is for a program: of a twin, or of what no browser shows as a page."""
    takes, path = request.headers.get("accept", ""), request.url.path
    if path.endswith(".json") or "text/html" in takes:
        return path.endswith(".json")
    page = request.method in ("GET", "HEAD") and not path.startswith("/feeds/")
    return "application/json" in takes or not page or path.endswith((".md", "/events"))


def _tell_errors(app: FastAPI, site: Site) -> None:
    """Every error as ``{"error": {"message", "status"}}``, or as a page that says the same."""

    def tell(request: Request, status: int, message: str, headers: Any = None) -> Response:
        if wants_json(request):
            fact = {"error": {"message": message, "status": status}}
            return JSONResponse(fact, status, headers)
        page = site.page(request, "error.html", status=status, code=status, message=message)
        page.headers.update(headers or {})
        return page

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        said = error.detail if isinstance(error.detail, str) else ""
        plain = said in ("", "Not Found", "Method Not Allowed")
        message = SAID.get(error.status_code, said) if plain else said
        return tell(request, error.status_code, message, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
        return tell(request, 422, f"{name}: {first['msg']}")

    @app.exception_handler(EtudeError)
    async def broke_a_rule(request: Request, error: EtudeError) -> Response:
        # What a database says when it is gone is no fault of the request.
        return tell(request, 503 if " cannot be used: " in str(error) else 400, str(error))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        # This answer is made around the guard, which therefore cannot add its headers.
        return tell(request, 500, SAID[500], HEADERS)
