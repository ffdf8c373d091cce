"""The search index while it is being made: pages stay quick, a search says to come back.

Behind it, what a first reader would wait for is loaded (``warm``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from weakref import WeakKeyDictionary

from fastapi import HTTPException

from etude.core import EtudeError
from etude.papers.entry import Entry
from etude.papers.finder import Finder, Found
from etude.site.state import Site

__all__ = ["in_step", "progress", "search", "similar"]

RETRY_S = 5
_MAKING: WeakKeyDictionary[Finder, tuple[int, int]] = WeakKeyDictionary()


@contextmanager
def in_step(site: Site) -> Iterator[None]:
    """Index the stored papers in a thread; until that ends ``progress`` tells how far it is.

    The thread begins when the site answers, and goes on with ``warm``.
    """
    from etude.site.warm import warm  # which imports the pages, and they this module

    _MAKING[site.finder] = (0, 0)

    def make() -> None:
        def tell(done: int, total: int) -> None:
            _MAKING[site.finder] = (done, total)

        site.answers.wait()
        try:
            with suppress(EtudeError):  # the first search tells it
                site.finder.sync(tell)
        finally:
            _MAKING.pop(site.finder, None)
        with suppress(EtudeError):
            warm(site)

    Thread(target=make, daemon=True, name="etude-index").start()
    yield


def progress(site: Site) -> tuple[int, int] | None:
    """(papers indexed, papers in all) while the index is being made, else None."""
    return _MAKING.get(site.finder)


def search(
    site: Site, query: str, k: int, *, start: int = 0, first: str = "", last: str = "",
    family: str = "", runnable: bool | None = None,
) -> Found:  # fmt: skip
    """As ``Finder.search``.

    Raises:
        HTTPException: 503 with Retry-After while the index is being made.
        EtudeError: a query that cannot be read.
    """
    state = progress(site)
    if state is not None:
        done, total = state
        far = f" ({done:,} of {total:,} papers)" if total else ""
        raise HTTPException(
            503, f"The search index is being made{far}: search works in a moment.",
            headers={"Retry-After": str(RETRY_S)},
        )  # fmt: skip
    return site.finder.search(
        query, k, start=start, first=first, last=last, family=family, runnable=runnable
    )


def similar(site: Site, entry: Entry, k: int) -> list[Entry]:
    """The papers nearest in meaning; [] while the index is being made or where it cannot be."""
    if progress(site) is not None:
        return []
    try:
        return site.finder.similar(entry.id, k)
    except EtudeError:
        return []
