"""The index against slow loops: BM25, vectors, histories that must not matter, filters."""

import math
import random
from collections import Counter

import numpy as np
import pytest

from etude.core import EtudeError
from etude.papers.search import Document, Index
from etude.papers.search.words import EMPTY, split, stem

WORDS = """graph graphs embedding embeddings network networks noisy labels robust loss deep wing
flow heat transfer search vectors codes the of and for with retrieval ranking attention layers
""".split()  # noqa: SIM905
DIM = 16


def make(n: int, seed: int = 0) -> tuple[list[Document], np.ndarray]:
    """n documents of random words, and unit vectors."""
    rng = random.Random(seed)
    found = []
    for i in range(n):
        title = " ".join(rng.choices(WORDS, k=rng.randint(1, 5)))
        text = " ".join(rng.choices(WORDS, k=rng.randint(0, 40)))
        authors = tuple(rng.sample(["Ada Lovelace", "Alan Turing", "Grace Hopper"], 2))
        found.append(
            Document(
                f"d{seed}-{i}",
                title,
                text,
                authors,
                (rng.choice(["cs.LG", "cs.CL", "stat.ML"]),),
                f"20{rng.randint(10, 26)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}",
                rng.choice(["losses", "heads", ""]),
                rng.random() < 0.3,
            )
        )
    vectors = np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)
    return found, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def fake(texts: list[str]) -> np.ndarray:
    """Vectors that depend on the text only."""
    rows = [np.random.default_rng(abs(sum(map(ord, t)))).standard_normal(DIM) for t in texts]
    found = np.array(rows, np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def telling(text: str) -> list[str]:
    empty = {stem(word) for word in EMPTY}
    return [s for s in map(stem, split(text)) if s not in empty]


def slow_bm25(documents: list[Document], query: str) -> dict[str, float]:
    """BM25 in float64 loops: k1 1.2, b 0.75, a word of the title counts once more."""
    bags = {d.id: Counter(telling(f"{d.title} {d.text}")) for d in documents}
    titles = {d.id: set(telling(d.title)) for d in documents}
    mean = sum(sum(bag.values()) for bag in bags.values()) / len(bags)
    scores = {}
    for i, bag in bags.items():
        score, length = 0.0, sum(bag.values())
        for word, said in Counter(telling(query)).items():
            n = sum(word in other for other in bags.values())
            idf = math.log(1 + (len(bags) - n + 0.5) / (n + 0.5))
            tf = bag[word] + (word in titles[i])
            score += math.sqrt(said) * idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * length / mean))
        if score > 0:
            scores[i] = score
    return scores


QUERIES = ["graph embeddings", "noisy labels loss noisy", "wing", "the robust network of codes"]


@pytest.mark.parametrize("query", QUERIES)
def test_words_are_ranked_by_bm25(query: str) -> None:
    documents, _ = make(120)
    found = dict(Index.build(documents).search(query, 1_000))
    wanted = slow_bm25(documents, query)
    assert found.keys() == wanted.keys()
    np.testing.assert_allclose([found[i] for i in wanted], list(wanted.values()), rtol=1e-5)


def test_best_come_first_and_k_cuts() -> None:
    documents, _ = make(300)
    scores = slow_bm25(documents, "graph embeddings")
    best = sorted(scores.values(), reverse=True)
    found = Index.build(documents).search("graph embeddings", 7)
    np.testing.assert_allclose([s for _, s in found], best[:7], rtol=1e-5)


def test_similar_is_brute_force() -> None:
    documents, vectors = make(200)
    index = Index.build(documents, vectors=vectors)
    for place in (0, 17, 199):
        scores = vectors @ vectors[place]
        order = [i for i in np.argsort(-scores) if i != place][:5]
        found = index.similar(documents[place].id, 5)
        assert [i for i, _ in found] == [documents[i].id for i in order]
        np.testing.assert_allclose([s for _, s in found], scores[order], atol=2e-3)
    assert index.similar("unknown") == []


def test_codes_find_the_nearest_of_many() -> None:
    """5,000 vectors in clusters, of which the codes leave 2,000 to be verified."""
    rng = np.random.default_rng(3)
    centers = rng.standard_normal((50, 384))
    vectors = (centers[np.arange(5_000) % 50] + 0.8 * rng.standard_normal((5_000, 384))).astype(
        "f4"
    )
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = Index.build([Document(f"v{i}", "x") for i in range(5_000)], vectors=vectors)
    for place in range(0, 5_000, 500):
        exact = np.argsort(-(vectors @ vectors[place]))[1:11]
        found = {i for i, _ in index.similar(f"v{place}", 10)}
        assert len(found & {f"v{i}" for i in exact}) >= 9


def test_meaning_finds_what_shares_no_word() -> None:
    documents = [Document("a", "graph"), Document("b", "wing"), Document("c", "heat")]

    def encode(texts: list[str]) -> np.ndarray:
        known = {"graph": (1, 0), "wing": (0, 1), "network": (0.9, 0.43589), "heat": (-1, 0)}
        return np.array([known[text] for text in texts], np.float32)

    found = Index.build(documents, encode=encode).search("network", 3)
    assert [i for i, _ in found] == ["a", "b", "c"]


def test_fusion_is_between_its_parts() -> None:
    """Where both rankings agree on the first it stays first, with all of the score."""
    documents, vectors = make(150)
    index = Index.build(documents, vectors=vectors, encode=lambda texts: vectors[[3]])
    query = f"{documents[3].title} {documents[3].text}"
    found = index.search(query, 150)
    assert found[0][0] == documents[3].id
    assert found[0][1] == pytest.approx(1.0, abs=1e-6)
    assert all(score <= 1 for _, score in found)
    assert [s for _, s in found] == sorted((s for _, s in found), reverse=True)


def answers(index: Index) -> list:
    filters = ({}, {"family": "losses"}, {"first": "2015", "last": "2019-06"}, {"runnable": True})
    return [index.search(query, 40, **kept) for query in QUERIES for kept in filters]


def same(one: list, other: list) -> None:
    for a, b in zip(one, other, strict=True):
        assert [i for i, _ in a] == [i for i, _ in b]
        np.testing.assert_allclose([s for _, s in a], [s for _, s in b], atol=1e-5)


def test_history_does_not_matter(tmp_path) -> None:
    documents, vectors = make(260)
    whole = Index.build(documents, encode=fake, vectors=vectors)
    halves = Index.build(documents[:130], encode=fake, vectors=vectors[:130])
    halves.extend(documents[130:], vectors[130:])
    same(answers(whole), answers(halves))
    bits = Index.build([], tmp_path / "i", encode=fake)
    for start in range(0, 260, 13):  # more segments than are left unjoined
        bits.extend(documents[start : start + 13], vectors[start : start + 13])
    assert len(bits.snapshot.segments) <= 16
    same(answers(whole), answers(bits))
    same(answers(whole), answers(Index.load(tmp_path / "i", fake)))
    whole.save(tmp_path / "j")
    same(answers(whole), answers(Index.load(tmp_path / "j", fake)))


def test_replaced_and_removed_leave_no_trace() -> None:
    documents, vectors = make(120)
    others, _ = make(120, seed=5)
    old = [Document(d.id, o.title, o.text) for d, o in zip(documents, others, strict=True)]
    index = Index.build(old[:40] + documents[40:], vectors=vectors)
    index.extend(documents[:40], vectors[:40])
    gone = [Document(f"gone{i}", o.title, o.text) for i, o in enumerate(others[:30])]
    index.extend(gone, vectors[:30])
    assert index.remove([d.id for d in gone] + ["unknown"]) == 30
    assert len(index) == 120
    assert "gone3" not in index
    assert documents[3].id in index
    for query in QUERIES:
        found, wanted = dict(index.search(query, 500)), slow_bm25(documents, query)
        assert found.keys() == wanted.keys()
        np.testing.assert_allclose([found[i] for i in wanted], list(wanted.values()), rtol=1e-5)
    assert index.remove([d.id for d in documents]) == 120
    assert index.search("graph") == []


def test_a_known_text_is_not_encoded_again() -> None:
    seen: list[str] = []

    def encode(texts: list[str]) -> np.ndarray:
        seen.extend(texts)
        return fake(texts)

    index = Index.build([Document("a", "graph"), Document("b", "wing")], encode=encode)
    assert seen == ["graph", "wing"]
    told: list[tuple[int, int]] = []
    index.extend(
        [Document("a", "graph", date="2026"), Document("b", "heat")],
        tell=lambda done, total: told.append((done, total)),
    )
    assert seen == ["graph", "wing", "heat"]
    assert told == [(1, 2), (2, 2)]
    index.extend([Document("b", "loss"), Document("a", "graph")])
    assert seen[3:] == ["loss"]
    both = fake(["loss", "graph"])
    assert dict(index.similar("b", 2))["a"] == pytest.approx(float(both[0] @ both[1]), abs=2e-3)


@pytest.mark.parametrize(
    ("kept", "passes"),
    [
        ({"first": "2015-06-10"}, lambda d: d.date >= "2015-06-10"),
        ({"last": "2015-06"}, lambda d: d.date < "2015-07"),
        ({"first": "2012", "last": "2013"}, lambda d: "2012" <= d.date < "2014"),
        ({"family": "heads"}, lambda d: d.family == "heads"),
        ({"runnable": False}, lambda d: not d.runnable),
        ({"family": "losses", "runnable": True}, lambda d: d.family == "losses" and d.runnable),
        ({"family": "nothing"}, lambda d: False),
    ],
)
def test_filters(kept: dict, passes) -> None:
    documents, vectors = make(150)
    index = Index.build(documents, vectors=vectors, encode=fake)
    found = {i for i, _ in index.search("graph network", 500, **kept)}
    assert found == {d.id for d in documents if passes(d)}


def test_months_lie_within_themselves_and_unknown_dates_nowhere() -> None:
    dates = {"m": "2024-02", "y": "2024", "d": "2024-02-29", "n": ""}
    index = Index.build([Document(i, "graph", date=date) for i, date in dates.items()])

    def found(**kept: str) -> set[str]:
        return {i for i, _ in index.search("graph", **kept)}

    assert found(first="2024-02-01", last="2024-02-29") == {"m", "d"}
    assert found(first="2024", last="2024") == {"m", "y", "d"}
    assert found(last="2025") == {"m", "y", "d"}
    assert found() == {"m", "y", "d", "n"}


@pytest.mark.parametrize("name", ["first", "last"])
@pytest.mark.parametrize("date", ["yesterday", "2024-13", "2024-1-1", "2024-01-01; DROP"])
def test_a_wrong_date_is_refused(name: str, date: str) -> None:
    index = Index.build([Document("a", "graph")])
    with pytest.raises(EtudeError, match=f"{name} must be a date: YYYY-MM-DD, YYYY-MM or YYYY"):
        index.search("graph", **{name: date})


def test_vectors_must_fit() -> None:
    documents, vectors = make(10)
    with pytest.raises(EtudeError, match="vectors must be 10 as documents"):
        Index.build(documents, vectors=np.concatenate([vectors, vectors]))
    with pytest.raises(EtudeError, match="vectors must be"):
        Index.build(documents, vectors=vectors[:9])
    index = Index.build(documents, vectors=vectors)
    with pytest.raises(EtudeError, match=r"vectors must be of shape \(1, 16\)"):
        index.extend([Document("x", "y")], np.ones((1, 8), np.float32))
    assert len(index) == 10
    with pytest.raises(EtudeError, match="k must be at least 1, got 0"):
        index.search("graph", 0)
