"""New papers while the site runs: the day's papers of Hugging Face, again and again.

An import only adds and merges: where upstream is down, slow, or has half a day's papers, the
pages stay as good as they were, and their foot says when they were refreshed and what failed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import TYPE_CHECKING

from etude.papers.importers import import_from
from etude.papers.store import Outcome
from etude.site.running import repeated

if TYPE_CHECKING:
    import httpx2

    from etude.site.state import Site

__all__ = ["refresh", "refreshing"]


def refresh(
    site: Site, now: datetime | None = None, client: httpx2.Client | None = None
) -> Outcome:
    """Import the papers of yesterday, which may have grown, and of today; index them.

    What upstream refuses stands in the record of imports, and in ``failed``.
    """
    today = (now or datetime.now(UTC)).date()
    days = [(today - timedelta(days=n)).isoformat() for n in (1, 0)]
    found = import_from(site.store, days, client=client)
    site.finder.sync()
    return found


def refreshing(hours: float) -> Callable[[Site], AbstractContextManager[Event]]:
    """What refreshes a site now and every so many hours, while it runs."""
    return lambda site: repeated(lambda: refresh(site), hours * 3600)
