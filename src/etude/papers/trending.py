"""What is trending: votes, counted less the older a paper is."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from etude.core import require
from etude.papers.entry import Entry
from etude.papers.store import Store

__all__ = ["FORMULA", "score", "trending"]

FORMULA = "votes / (age in hours + 2)^1.8, where votes = votes here + votes of the source"
RECENT = 2_000  # newest papers that are looked at
MOST_VOTED = 1_000  # papers with votes here that are looked at besides


def score(votes: int, date: str, now: datetime) -> float:
    """FORMULA; a paper's age counts from the first moment of its date (UTC), and is at least 0.

    Of a date of which only the month or the year is known that is the first day of it; without
    a date the score is 0.
    """
    if not date:
        return 0.0
    born = datetime.fromisoformat(date + "-01-01"[len(date) - 4 :][: 10 - len(date)])
    hours = max(0.0, (now - born.replace(tzinfo=UTC)).total_seconds() / 3600)
    return float(votes / (hours + 2) ** 1.8)


def trending(
    store: Store, votes: Mapping[str, int] | None = None, now: datetime | None = None, k: int = 50
) -> list[Entry]:
    """The `k` papers of the highest score, then the newest.

    Args:
        store: whose 2,000 newest papers, and those with votes, are looked at.
        votes: readers' own votes by paper id.
        now: the moment, with a time zone; by default the present one.
        k: how many papers, at least 1.
    """
    require(k >= 1, "k", "at least 1", k)
    now = now or datetime.now(UTC)
    require(now.tzinfo is not None, "now", "a time with a zone", now)
    own = votes or {}
    voted = sorted(own, key=lambda name: own[name], reverse=True)[:MOST_VOTED]
    found = {entry.id: entry for entry in [*store.newest(RECENT), *store.many(voted)]}

    def rank(entry: Entry) -> tuple[float, str]:
        return score(entry.votes + own.get(entry.id, 0), entry.date, now), entry.date

    return sorted(found.values(), key=rank, reverse=True)[:k]
