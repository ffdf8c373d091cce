"""The index's compiled loops against plain numpy."""

import numpy as np
import pytest

from etude.papers.search import Document, Index
from etude.papers.search.codes import ask, encode
from etude.papers.search.kernels import add_words, best_rows, products, score_rows
from etude.papers.search.ranking import by_meaning


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 5_000])
@pytest.mark.parametrize("k", [1, 7, 100, 6_000])
@pytest.mark.parametrize("n_values", [3, 1_000_000])  # many ties, and next to none
def test_best_rows_are_the_highest_and_of_equal_ones_the_first(
    n: int, k: int, n_values: int
) -> None:
    rng = np.random.default_rng(n + k)
    scores = (rng.integers(n_values, size=n) / n_values).astype(np.float32)
    for mask in (np.empty(0, bool), rng.random(n) < 0.3):
        kept = np.flatnonzero((scores > 0) & (mask if len(mask) else True))
        wanted = np.sort(kept[np.argsort(-scores[kept], kind="stable")[:k]])
        np.testing.assert_array_equal(best_rows(scores.copy(), mask, k), wanted)


@pytest.mark.parametrize("n_rows", [0, 1, 2, 50, 4_000])
def test_a_term_scores_some_rows_as_it_scores_all(n_rows: int) -> None:
    rng = np.random.default_rng(n_rows)
    rows = np.sort(rng.choice(5_000, n_rows, replace=False)).astype(np.uint32)
    marks = rng.integers(1, 256, n_rows).astype(np.uint8)
    norms = rng.random(5_000).astype(np.float32)
    title, k1 = np.float32(1), np.float32(1.2)
    every = np.zeros(5_000, np.float32)
    add_words(every, rows, marks, norms, np.float32(1.5), title, k1)
    for wanted in (np.arange(5_000), np.sort(rng.choice(5_000, 300)), np.array([4_999]), rows[:0]):
        some = np.zeros(len(wanted), np.float32)
        score_rows(some, wanted, rows, marks, norms, np.float32(1.5), title, k1)
        np.testing.assert_array_equal(some, every[wanted])


def test_products_of_halves_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((300, 70)).astype(np.float16)
    vectors[:2] = [[np.float16(6e-8)], [np.float16(-0.0)]]  # the smallest there is
    vectors[2, ::2] = np.float16(-65504)  # and the largest
    query, rows = rng.standard_normal(70).astype(np.float32), rng.integers(300, size=500)
    found = np.empty(500, np.float32)
    products(vectors.view(np.uint16), rows, query, found)
    wanted = vectors[rows].astype(float) @ query.astype(float)
    size = np.abs(vectors[rows].astype(float)) @ np.abs(query.astype(float))
    assert (np.abs(found - wanted) <= 1e-6 * size).all()


def test_estimates_are_near_the_products() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((2_000, 384)).astype(np.float32)
    query = rng.standard_normal(384).astype(np.float32)
    codes, factors = encode(vectors)
    _, table = ask(query)
    signs = np.unpackbits(codes.view(np.uint8), axis=1)
    rough = factors * table[np.arange(48), codes.view(np.uint8)].sum(axis=1)
    exact = vectors @ query
    # The codes' error has a spread of sqrt(pi / 2 - 1) of the products'.
    assert signs.shape == (2_000, 384)
    assert np.std(rough - exact) == pytest.approx((np.pi / 2 - 1) ** 0.5 * np.std(exact), rel=0.1)
    assert abs(np.mean(rough - exact)) < 0.1 * np.std(exact)


def test_the_two_steps_find_most_of_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """60,000 independent vectors, the worst case: of their 30 nearest, most survive both cuts."""
    monkeypatch.setattr("etude.papers.search.ranking.NEAR", 6_000)
    monkeypatch.setattr("etude.papers.search.index.CHUNK", 20_000)  # three segments
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((60_000, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    now = Index.build([Document(f"{i}", "x") for i in range(60_000)], vectors=vectors).snapshot
    assert len(now.segments) == 3
    hits = 0
    for query in vectors[:20]:
        exact = np.argsort(-(vectors @ query))[:30]
        numbers, scores = by_meaning(now, query, list(now.alive), 30)
        assert (np.diff(scores) <= 0).all()
        hits += len(set(exact.tolist()) & set(numbers.tolist()))
    assert hits / 600 >= 0.85  # 0.72 where unlike bits alone choose the last 2,000
