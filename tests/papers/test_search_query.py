"""The query syntax, and queries that were made to break something."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.core import EtudeError
from etude.papers.search import Document, Index
from etude.papers.search.query import parse

DOCUMENTS = [
    Document("2405.19504", "Graph embeddings by search", "a survey of noisy networks",
             ("Geoffrey Hinton", "Ada Lovelace"), ("cs.LG",)),
    Document("1706.03762", "Attention is all you need", "transformers search without recurrence",
             ("Ada Hinton", "Geoffrey Turing"), ("cs.CL", "stat.ML")),
    Document("t0123", "Noisy labels", "robust self-supervised loss for a deep graph; supervised",
             ("Grace Hopper",), ("stat.ML",)),
    Document("cs/9901001", "Supervised self", "the embedding graphs", (), ()),
]  # fmt: skip


@pytest.fixture(scope="module")
def index() -> Index:
    return Index.build(DOCUMENTS)


A, B, C, D = (document.id for document in DOCUMENTS)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("graph", {A, C, D}),
        ('"graph embeddings"', {A}),
        ('"embedding graphs"', {D}),
        ('"by search a survey"', set()),  # no phrase reaches from the title into the text
        ("“all you need”", {B}),
        ("graph -survey", {C, D}),
        ('graph -"embedding graph"', {A, C}),
        ("ti:graph", {A}),
        ("ti: graph", {A}),
        ("TI:graph", {A}),
        ('ti:"embeddings by"', {A}),
        ("ti:search graph", {A}),
        ("graph -ti:graph", {C, D}),
        ("au:hinton", {A, B}),
        ("au:Geoffrey au:Ada", {A, B}),
        ('au:"geoffrey hinton"', {A}),
        ('au:"hinton ada"', set()),  # nor from one author into the next
        ("au:hinton -au:lovelace", {B}),
        ("cat:cs.LG", {A}),
        ("cat:cs", {A, B}),
        ("cat:stat search", {B}),
        ("id:1706.03762", {B}),
        ("id:1706.03762v7", {B}),
        ("id:arXiv:1706.03762", {B}),
        ("id:CS/9901001", {D}),
        ("id:nothing", set()),
        ("self-supervised", {C, D}),
        ('"self-supervised"', {C}),
        ("ti:self-supervised", set()),
        ("to be all", {B}),
        ("is", {B}),
        ('"unclosed graph', {A, C, D}),
        ("- graph", {A, C, D}),
        ("ti: ", set()),
        ("graph AND", {A, C, D}),
        ('graph"labels', {A, C, D}),
        ('graph ""', {A, C, D}),
        ("gräph", {A, C, D}),
    ],
)
def test_syntax(index: Index, query: str, found: set[str]) -> None:
    answer = [i for i, _ in index.search(query)]
    assert set(answer) == found
    assert len(answer) == len(found)


def test_field_words_rank_and_are_encoded_but_denied_ones_are_not() -> None:
    read = parse('ti:graph "deep loss" noisy noisy -survey au:hinton the')
    assert dict(read.words) == {"graph": 1, "deep": 1, "loss": 1, "noisi": 2}
    assert read.text == "graph deep loss noisy noisy the"
    assert [c.no for c in read.clauses] == [False, False, True, False]


def test_conditions_alone_are_answered_newest_first() -> None:
    dates = ("2024-01", "", "2026-11-20", "2025")
    index = Index.build([Document(f"d{n}", "x", "", ("A B",), date=d) for n, d in enumerate(dates)])
    assert index.search("au:b") == [("d2", 0.0), ("d3", 0.0), ("d0", 0.0), ("d1", 0.0)]


@pytest.mark.parametrize(
    "query", ["", " ", "\n\x00", "\"'!?", "-", "()[]{}", "---", '""', "\udcff"]
)
def test_nothing_to_look_for_is_refused(index: Index, query: str) -> None:
    with pytest.raises(EtudeError, match="query must be words, such as 'graph embeddings'"):
        index.search(query)


def test_only_denials_are_refused(index: Index) -> None:
    with pytest.raises(EtudeError, match="query must be what to find, not only what to leave out"):
        index.search("-graph -au:hinton")


def test_a_long_query_is_refused(index: Index) -> None:
    with pytest.raises(EtudeError, match="query must be at most 4,000 characters, got 10000"):
        index.search("a" * 10_000)
    assert len(index.search("graph " * 600)) == 3


def answer_of(index: Index, query: str) -> tuple[str, list]:
    """The refusal, or "" and the answer; any other error passes."""
    try:
        return "", index.search(query, 3)
    except EtudeError as error:
        return str(error), []


HOSTILE = [
    "graph\x00embeddings", "'; DROP TABLE papers; --", "NEAR(graph, 2) OR *", "ti:(graph", "au:\"",
    "ti:ti:ti:graph", "-" * 3_000 + "graph", '"' * 3_999 + "a", "id:" + "9" * 3_000,
    "cat:" + "x" * 3_000, "\u202egraph\u202c", "嵌入 グラフ", "𝔤𝔯𝔞𝔭𝔥", "a\u0301" * 1_000,
    "graph\x1b[31m",
    "ti:" * 1_300, "\\", "%s %n {} ${x}", "<script>alert(1)</script>", "\ud800 graph", "١٢٣",
    " ".join(f"w{n}" for n in range(700)), "-ti:\"a b\" " * 300 + "graph", "\u0000" * 100 + "x",
]  # fmt: skip


@pytest.mark.parametrize("query", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_queries_are_words_or_refused_in_a_line(index: Index, query: str) -> None:
    said, found = answer_of(index, query)
    assert "\n" not in said
    assert len(said) < 300
    assert len(found) <= len(DOCUMENTS)
    assert len(index.search("graph")) == 3


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from('abti:au"- \x00cadg()*é'), max_size=40))
def test_any_text_is_answered_or_refused(query: str) -> None:
    said, found = answer_of(SMALL, query)
    assert said.startswith("query must be ") or (not said and len(found) <= 3)


SMALL = Index.build(
    DOCUMENTS, vectors=np.eye(4, dtype=np.float32), encode=lambda t: np.eye(4, dtype=np.float32)[:1]
)
