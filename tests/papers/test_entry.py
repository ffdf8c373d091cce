"""Entries: what is cleaned, what is refused, and what two sources make of one paper."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.core import EtudeError
from etude.papers.entry import BOUNDS, Entry, arxiv_id, clean, day, entry_id, merged, title_key

HOSTILE = "\x1b[31mRed\x1b[0m \u202eevil\u202c\r\nBcc: all\x00 \ue000<b>bold</b>"


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("2405.19504", "2405.19504"), ("arXiv:2405.19504v12", "2405.19504"),
        (" HEP-TH/9901001v2 ", "hep-th/9901001"), ("math.AG/0601001", "math.ag/0601001"),
        ("0704.0001", "0704.0001"), ("2405.195", ""), ("2405.19504w2", ""), ("x2405.19504", ""),
    ],
)  # fmt: skip
def test_arxiv_ids(text, known) -> None:
    assert arxiv_id(text) == known


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("2026-11-22T10:00:00.000Z", "2026-11-22"), ("2024-02-29", "2024-02-29"),
        ("2026-02-31", "2026-02"), ("2026-13-01", "2026"), ("2026/03", "2026-03"), ("2026", "2026"),
        ("20261", ""), ("0000-01-01", ""), ("9999-12-31", ""), ("soon", ""), (None, ""),
        (2021, "2021"), ("٢٠٢٦-01-01", ""),
    ],
)  # fmt: skip
def test_day_keeps_what_the_calendar_has(text, known) -> None:
    assert day(text) == known


def test_clean_makes_hostile_text_harmless() -> None:
    found = clean(Entry(title=HOSTILE, abstract=HOSTILE, authors=(HOSTILE,), venue=HOSTILE))
    shown = "[31mRed[0m evil Bcc: all <b>bold</b>"
    assert (found.title, found.abstract, found.venue) == (shown, shown, shown)
    assert found.authors == (shown,)
    assert found.title.isprintable()


def test_clean_bounds_every_field() -> None:
    long = "word " * 100_000
    found = clean(
        Entry(
            title=long, abstract=long, authors=("A",) * 9_999,
            categories=(long, *map(str, range(99))), sources=tuple(map(str, range(99))),
            venue=long, doi=long, votes=10**30,
        )
    )  # fmt: skip
    assert len(found.title) <= BOUNDS["title"]
    assert len(found.abstract) <= BOUNDS["abstract"]
    assert (len(found.authors), len(found.categories), len(found.sources)) == (3_000, 50, 50)
    assert len(found.categories[0]) <= 200
    assert found.votes == 10**9


def test_clean_takes_separators_out_of_names() -> None:
    found = clean(Entry(title="T", authors=("Sammy Davis, Jr.", ", ;"), categories=("a;b", "a;b")))
    assert found.authors == ("Sammy Davis Jr.",)
    assert found.categories == ("a b",)


@pytest.mark.parametrize(
    ("facts", "rule"),
    [
        ({"title": " \u200b—!"}, "title must be words"),
        ({"arxiv": "12.3"}, "arxiv must be an id"),
        ({"date": "2026-02-30"}, "date must be YYYY-MM-DD"),
        ({"date": "2026-11-22\n"}, "date must be"),
        ({"date": str(datetime.now(UTC).year + 2)}, "at most next year"),
        ({"url": "javascript:alert(1)"}, "url must be an http"),
        ({"url": 'https://a.b/"onclick'}, "url must be an http"),
        ({"votes": -1}, "votes must be at least 0"),
    ],
)
def test_refusals(facts, rule) -> None:
    with pytest.raises(EtudeError, match=rule):
        clean(replace(Entry(title="A title"), **facts))


@given(st.text(min_size=1, max_size=80))
def test_clean_is_done_once(text) -> None:
    try:
        once = clean(Entry(title=f"a{text}", authors=(text,), categories=(text,), venue=text))
    except EtudeError:
        return
    assert clean(once) == once


def test_copies_of_a_title_share_key_and_id() -> None:
    copies = ["Étude: on ﬁt!", "E\u0301TUDE  on fit", "étude—on (FIT)"]
    assert len({title_key(title) for title in copies}) == 1
    assert entry_id(Entry(title=copies[0])) == "t" + title_key(copies[1])[:15]
    assert entry_id(Entry(title=copies[0], arxiv="2405.19504")) == "2405.19504"
    assert title_key("Étude") != title_key("Étudé")


def test_merged_keeps_the_first_and_fills_it() -> None:
    old = Entry(title="T", abstract="short", date="2026-11", votes=3, sources=("a",), id="t1")
    new = Entry(
        title="t", abstract="a longer one", date="2025-01-02", votes=2, sources=("b", "a"),
        arxiv="2405.19504", authors=("A",), id="other",
    )  # fmt: skip
    found = merged(old, new)
    assert found == Entry(
        title="T", abstract="a longer one", date="2025-01-02", votes=3, sources=("a", "b"),
        arxiv="2405.19504", authors=("A",), id="t1",
    )  # fmt: skip


def test_the_day_of_a_feed_wins_in_either_order() -> None:
    arxiv = Entry(title="T", date="2026-11-19", sources=("arxiv",))
    feed = Entry(title="T", date="2026-11-22", sources=("hf:2026-11-22",))
    assert merged(arxiv, feed).date == merged(feed, arxiv).date == "2026-11-22"
    later = replace(feed, date="2026-11-23", sources=("hf:2026-11-23",))
    assert merged(merged(arxiv, feed), later).date == "2026-11-22"
    assert merged(feed, replace(arxiv, date="")).date == "2026-11-22"
