"""The JSON twins' shapes, as the OpenAPI description tells them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict

__all__ = ["ERRORS", "Day", "Family", "Found", "Listing", "Methods", "Month", "Name", "Whole"]

Day = Annotated[str, Path(max_length=40, examples=["2026-11-22"], description="YYYY-MM-DD")]
Week = Annotated[str, Path(max_length=40, examples=["2026-W47"], description="an ISO week")]
Month = Annotated[str, Path(max_length=40, examples=["2026-11"], description="YYYY-MM")]
Name = Annotated[
    str,
    Path(max_length=600, examples=["2405.19504"], description="a stable id, arXiv id or slug"),
]
Words = Annotated[str, Query(max_length=300, description="words, ti: au: cat: id: "
                             '"phrase" -word; "" for all')]  # fmt: skip
Bound = Annotated[str, Query(max_length=10, pattern=r"^(\d{4}-\d{2}-\d{2})?$",
                             description="YYYY-MM-DD or nothing")]  # fmt: skip
Family = Annotated[str, Query(max_length=40, description="a family of the catalogue, or nothing")]
YesNo = Literal["", "yes", "no"]
PageNumber = Annotated[int, Query(ge=1, le=200)]


class Paper(BaseModel):
    """A paper; `votes` are imported ones and this site's together."""

    model_config = ConfigDict(extra="allow")
    id: str
    page: str
    title: str
    abstract: str
    authors: list[str]
    date: str
    arxiv: str
    doi: str
    venue: str
    url: str
    categories: list[str]
    votes: int
    sources: list[str]
    family: str
    method: str
    move: str
    runnable: bool
    verdict: str | None
    cost: str


class Listing(BaseModel):
    """The papers of a day, week or month, most votes first; or a new site's catalogue."""

    kind: Literal["day", "week", "month", "catalogue"]
    name: str
    title: str
    first: str
    last: str
    before: str
    after: str
    page: int
    more: bool
    papers: list[Paper]


class Trending(BaseModel):
    """Papers by votes that fade with age; `formula` says how."""

    formula: str
    papers: list[Paper]


class Found(BaseModel):
    """What a search found, best first; `note` says what it had to do without."""

    q: str
    first: str
    last: str
    family: str
    runnable: YesNo
    page: int
    more: bool
    note: str
    papers: list[Paper]


class Whole(Paper):
    """A paper with all that is known: similar ones, BibTeX, and where it runs its method."""

    similar: list[Paper]
    bibtex: str
    known: dict[str, Any] | None
    trials: list[dict[str, Any]]


class Method(BaseModel):
    """A paper of the catalogue: what it does, whether it runs here and what it measured."""

    key: str
    family: str
    slug: str
    title: str
    year: int
    page: str
    move: str
    cost: str
    runnable: bool
    verdict: str | None


class Methods(BaseModel):
    """The catalogue, filtered."""

    family: str
    runnable: YesNo
    held: str
    cost: str
    total: int
    methods: list[Method]


class Problem(BaseModel):
    """What went wrong."""

    message: str
    status: int


class Failure(BaseModel):
    """Every error has this shape."""

    error: Problem


ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": Failure} for code in (400, 403, 404, 409, 411, 413, 422, 429, 503)
}
