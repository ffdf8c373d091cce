"""Trending: the published formula, counted by hand, over a bounded set of papers."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from etude.core import EtudeError
from etude.papers.entry import Entry
from etude.papers.store import Store
from etude.papers.trending import FORMULA, score, trending

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def test_the_score_is_the_formula_that_is_shown() -> None:
    assert FORMULA.startswith("votes / (age in hours + 2)^1.8")
    assert score(30, "2026-11-22", NOW) == pytest.approx(30 / 14**1.8)
    assert score(30, "2026-11-20", NOW) == pytest.approx(30 / 62**1.8)
    assert score(30, "2026-11", NOW) == score(30, "2026-11-01", NOW)
    assert score(30, "2026", NOW) == score(30, "2026-01-01", NOW)
    assert score(30, "2026-12-24", NOW) == pytest.approx(30 / 2**1.8)  # not yet out: age 0
    assert score(30, "", NOW) == score(0, "2026-11-22", NOW) == 0
    there = NOW.astimezone(timezone(timedelta(hours=9)))
    assert score(30, "2026-11-22", there) == score(30, "2026-11-22", NOW)


@pytest.fixture
def store(tmp_path):
    store = Store(str(tmp_path / "p.sqlite"))
    store.add(
        [
            Entry(title="Old and loved", date="2026-11-01", votes=500, arxiv="2611.00001"),
            Entry(title="New", date="2026-11-22", votes=4, arxiv="2611.00002"),
            Entry(title="Yesterday", date="2026-11-21", votes=20, arxiv="2611.00003"),
            Entry(title="Newest without votes", date="2026-11-22", arxiv="2611.00004"),
        ]
    )
    yield store
    store.close()


def names(found: list[Entry]) -> list[str]:
    return [entry.title for entry in found]


def test_votes_fade_with_age(store) -> None:
    first = names(trending(store, None, NOW, 4))
    # 4 / 14^1.8 = .0346, 20 / 38^1.8 = .0287, 500 / 518^1.8 = .0065
    assert first == ["New", "Yesterday", "Old and loved", "Newest without votes"]
    # 500 / 590^1.8 = .0051, 20 / 110^1.8 = .0042, 4 / 86^1.8 = .0013
    later = names(trending(store, {}, NOW + timedelta(days=3), 3))
    assert later == ["Old and loved", "Yesterday", "New"]


def test_own_votes_are_added(store) -> None:
    assert names(trending(store, {"2611.00003": 5}, NOW, 2)) == ["Yesterday", "New"]
    assert names(trending(store, {"2611.00004": 5, "gone": 99}, NOW, 2))[0] == (
        "Newest without votes"
    )


def test_only_recent_papers_and_those_with_votes_are_looked_at(store, monkeypatch) -> None:
    monkeypatch.setattr("etude.papers.trending.RECENT", 2)
    assert names(trending(store, None, NOW, 9)) == ["New", "Newest without votes"]
    found = names(trending(store, {"2611.00001": 1}, NOW, 9))
    assert found == ["New", "Old and loved", "Newest without votes"]


def test_refusals(store) -> None:
    with pytest.raises(EtudeError, match="k must be at least 1"):
        trending(store, None, NOW, 0)
    with pytest.raises(EtudeError, match="now must be a time with a zone"):
        trending(store, None, datetime(2026, 1, 1), 1)
