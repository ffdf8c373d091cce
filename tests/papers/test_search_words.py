"""Words: stems against SQLite's own Porter, folding, terms."""

import sqlite3

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from etude.papers.catalogue import papers
from etude.papers.search.words import names, split, stem, stems, term


def sqlite_stems(words: list[str]) -> list[str]:
    """The stems of an independent implementation: SQLite's `porter` tokenizer."""
    base = sqlite3.connect(":memory:")
    base.execute("CREATE VIRTUAL TABLE t USING fts5(x, tokenize='porter ascii')")
    base.execute("CREATE VIRTUAL TABLE v USING fts5vocab(t, 'instance')")
    base.executemany("INSERT INTO t(rowid, x) VALUES (?, ?)", enumerate(words, 1))
    found = dict(base.execute("SELECT doc, term FROM v"))
    return [found[i] for i in range(1, len(words) + 1)]


def test_stems_are_those_of_sqlite_on_the_catalogue() -> None:
    words = sorted({w for p in papers() for w in split(f"{p.title} {p.move}") if w.isascii()})
    assert len(words) > 2_000
    assert [stem(word) for word in words] == sqlite_stems(words)


SUFFIXES = ["ational", "ization", "iveness", "eed", "ing", "ies", "bly", "y", "ement", "ll", "ss"]


@example("yy", "ing")
@given(st.text("abcdelotysz", min_size=1, max_size=7), st.sampled_from(SUFFIXES))
def test_stems_are_those_of_sqlite_on_made_words(start: str, suffix: str) -> None:
    word = start + suffix
    assert [stem(word)] == sqlite_stems([word])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Self-Supervised k-NN, x_1", ["self", "supervised", "k", "nn", "x", "1"]),
        ("Café ﬁne NAÏVE", ["cafe", "fine", "naive"]),
        ("嵌入 étude²", ["嵌入", "etude2"]),
        ("\x00\x1b[31m", ["31m"]),
        ("", []),
    ],
)
def test_split_folds(text: str, words: list[str]) -> None:
    assert split(text) == words


def test_names_are_not_stemmed() -> None:
    assert names("Running Hastings") == ["running", "hastings"]
    assert stems("running hastings") == ["run", "hast"]


def test_terms_keep_kinds_apart() -> None:
    assert len({term("graph"), term("graph", "author"), term("graphs")}) == 3
