"""Search: needs in plain words, written before any result was seen; hostile queries; fusion."""

import sys
import threading

import numpy as np
import pytest

from etude.core import EtudeError
from etude.papers import find as module
from etude.papers.catalogue import paper_of, papers
from etude.papers.find import by_words, find, fuse, similar
from etude.papers.vectors import catalogue_hash, text_of, vectors

NEEDS = [
    ("smaller embeddings without losing recall", "matryoshka_representation", 5),
    ("robust loss when many labels are wrong", "label_dro_loss", 5),
    ("classify from a handful of labeled examples on frozen features", "naive_bayes_probe", 5),
    ("search over token embeddings like ColBERT but fast", "muvera", 3),
    ("embed the nodes of a big network quickly", "fast_rp", 3),
    ("detect inputs that look nothing like the training data", "mahalanobis_ood", 5),
    ("which self-supervised checkpoint is best, without labels", "rankme", 3),
    ("detector removes overlapping boxes in crowds", "soft_nms", 3),
    ("upgrade the embedding model without re-indexing everything", "bt2_compatible", 3),
    ("each sample has many correct labels out of thousands", "decoupled_softmax", 5),
    ("users who clicked by accident", "pld_resampling", 5),
    ("adapt a model that I can only query through an API", "blackvip", 3),
    ("the same few items show up in every search result", "dbnorm", 3),
    ("remove the echo from a phone call", "complex_multidilated_aec", 3),
    ("forecast several related time series cheaply", "olinear", 5),
]


@pytest.fixture
def meaning() -> None:
    """Skips where the encoder's extra is not installed."""
    try:
        module.by_meaning("probe")
    except EtudeError as error:
        if module.INSTALL not in str(error):
            raise
        pytest.skip(str(error))


@pytest.fixture
def no_text(monkeypatch) -> None:
    """As if etude[text] were not installed."""
    monkeypatch.setitem(sys.modules, "etude.nets.minilm", None)


@pytest.mark.usefixtures("meaning")
@pytest.mark.parametrize(("need", "slug", "top"), NEEDS, ids=[slug for _, slug, _ in NEEDS])
def test_need_finds_its_paper(need: str, slug: str, top: int) -> None:
    assert slug in [hit.paper.slug for hit in find(need, top)]


@pytest.mark.usefixtures("no_text")
def test_words_alone_find_most_and_say_so() -> None:
    found = [slug in [h.paper.slug for h in find(need, 10)] for need, slug, _ in NEEDS]
    assert sum(found) >= 12
    hits = find("smaller embeddings")
    assert "found by words only" in hits.note
    assert 'pip install "etude[text]"' in hits.note
    assert all(hit.meaning is None for hit in hits)
    assert hits[0].words == 1


@pytest.mark.usefixtures("meaning")
def test_meaning_finds_what_shares_no_word() -> None:
    query = "vocal recordings polluted by loudspeaker reverberation"
    position = papers().index(paper_of("complex_multidilated_aec"))
    assert position not in by_words(query)[:3]
    hits = find(query, 3)
    assert "complex_multidilated_aec" in [hit.paper.slug for hit in hits]
    assert hits.note == ""


def test_stems_meet() -> None:
    assert papers()[by_words("quantizing")[0]].slug in {
        papers()[i].slug for i in by_words("quantized")
    }
    assert by_words("quantizing") == by_words("quantized")


@pytest.mark.parametrize("query", ["", "   ", "\n\t"])
def test_empty_query_is_refused(query: str) -> None:
    with pytest.raises(EtudeError, match="query must be a need in words"):
        find(query)


def test_long_query_is_refused() -> None:
    with pytest.raises(EtudeError, match="query must be at most 500 characters"):
        find("a" * 501)
    find("a " * 249)


def test_k_is_checked_and_cut() -> None:
    with pytest.raises(EtudeError, match="k must be at least 1, got 0"):
        find("embeddings", 0)
    assert len(find("embeddings", 4)) == 4
    assert len(find("embeddings", 10_000)) <= len(papers())


HOSTILE = [
    '"', "'", '""" OR *', "title:(", "a AND", "NOT", "NEAR(a b, 2)", "x*", "^x", "-embeddings",
    "{a b}: c", "'; DROP TABLE paper; --", "\x00", "a\x00b", "((((((", "move : x OR", "+", "%_",
    "\ud7ff\u200f", "嵌入", "²³", "NEAR NEAR NEAR", "\x1b[31m", "a" * 500, "\\", "_ _", "\udcff",
]  # fmt: skip


@pytest.mark.parametrize("query", HOSTILE)
@pytest.mark.usefixtures("no_text")
def test_hostile_query_is_only_words(query: str) -> None:
    hits = find(query)
    assert len(hits) <= 10
    assert len(by_words("embedding")) > 10  # the table is still there


@pytest.mark.usefixtures("meaning")
def test_hostile_queries_reach_the_encoder_safely() -> None:
    for query in HOSTILE:
        assert len(find(query)) == 10


@pytest.mark.usefixtures("no_text")
def test_operators_are_words() -> None:
    plain = [hit.paper.slug for hit in find("noisy labels")]
    assert [hit.paper.slug for hit in find('(noisy) "labels"*')] == plain
    assert [hit.paper.slug for hit in find("NOT noisy, labels:")] == plain


def test_fusion_adds_reciprocal_ranks() -> None:
    scores = fuse([[7, 3, 5], [3, 9]])
    assert list(scores) == [3, 7, 9, 5]
    assert scores[3] == pytest.approx(1 / 62 + 1 / 61)
    assert scores[7] == pytest.approx(1 / 61)
    assert fuse([]) == {}


def test_runnable_only() -> None:
    hits = find("network embeddings of a graph", 50, runnable=True)
    assert all(hit.runnable for hit in hits)
    assert "fast_rp" in [hit.paper.slug for hit in hits]


def test_threads_share_the_index() -> None:
    answers: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: answers.append(by_words("noisy labels"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8
    assert all(answer == answers[0] and answer for answer in answers)


def test_shipped_vectors_are_of_this_catalogue() -> None:
    from etude.papers.vectors import VECTORS

    with np.load(VECTORS, allow_pickle=False) as file:
        assert str(file["catalogue"]) == catalogue_hash(), "run: python -m etude.papers.vectors"
        assert file["vectors"].dtype == np.float16
        assert file["vectors"].shape == (297, 384)
    assert np.linalg.norm(vectors(), axis=1) == pytest.approx(1, abs=1e-6)


@pytest.mark.usefixtures("meaning")
def test_shipped_vectors_are_what_the_encoder_gives() -> None:
    from etude.nets.minilm import encode

    some = [0, 100, 296]
    fresh = np.asarray(encode([text_of(papers()[i]) for i in some]))
    assert vectors()[some] == pytest.approx(fresh, abs=2e-3)


def test_stale_vectors_are_refused_and_words_remain(tmp_path, monkeypatch) -> None:
    import etude.papers.vectors as shelf

    stale = tmp_path / "vectors.npz"
    np.savez(stale, vectors=np.ones((297, 384), np.float16), catalogue=np.array("0" * 64))
    monkeypatch.setattr(shelf, "VECTORS", stale)
    monkeypatch.setattr(shelf, "vectors", shelf.vectors.__wrapped__)
    with pytest.raises(EtudeError, match="made from another catalogue; make it with: python -m"):
        shelf.vectors()
    hits = find("noisy labels")
    assert hits
    assert "another catalogue" in hits.note


def test_missing_and_pickled_vectors_are_refused(tmp_path, monkeypatch) -> None:
    import etude.papers.vectors as shelf

    load = shelf.vectors.__wrapped__
    monkeypatch.setattr(shelf, "VECTORS", tmp_path / "absent.npz")
    with pytest.raises(EtudeError, match="missing or damaged"):
        load()
    pickled = tmp_path / "vectors.npz"
    np.savez(pickled, vectors=np.array([{}], dtype=object), catalogue=np.array(catalogue_hash()))
    monkeypatch.setattr(shelf, "VECTORS", pickled)
    with pytest.raises(EtudeError, match="missing or damaged"):
        load()


def test_similar_papers_are_related_and_other() -> None:
    near = [paper.slug for paper in similar(paper_of("muvera"))]
    assert len(near) == 3
    assert "muvera" not in near
    assert "crisp_multivector" in near
    near = [paper.slug for paper in similar(paper_of("stationary_compatible"))]
    assert "bt2_compatible" in near
