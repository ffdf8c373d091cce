"""Exact search, shortlists and codes."""

import mmap
import multiprocessing
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.core import EtudeError, scan
from etude.core.codec import Codec, random_rotation
from etude.core.nearest import (
    FEW,
    Exact,
    as_vectors,
    best,
    in_threads,
    inner_products,
    pages,
    read_ahead,
    shortlist,
)


def data(n=500, dim=24, n_queries=9, seed=0):
    generator = np.random.default_rng(seed)
    return (
        generator.standard_normal((n, dim), dtype=np.float32),
        generator.standard_normal((n_queries, dim), dtype=np.float32),
    )


def slow(vectors, queries, k):
    scores = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("n_queries", [1, FEW, FEW + 1, 1500])
def test_exact_equals_the_loop_in_float64(n_queries, n_threads):
    vectors, queries = data(n=700, n_queries=n_queries)
    ids, scores = Exact(vectors, n_threads=n_threads).search(queries, 10)
    true_ids, true_scores = slow(vectors, queries, 10)
    np.testing.assert_array_equal(ids, true_ids)
    np.testing.assert_allclose(scores, true_scores, rtol=1e-4, atol=1e-5)
    assert (ids.dtype, scores.dtype) == (np.int64, np.float32)


def test_exact_equals_faiss():
    faiss = pytest.importorskip("faiss")
    vectors, queries = data(n=5000, dim=96, n_queries=50)
    peer = faiss.IndexFlatIP(96)
    peer.add(vectors)
    scores, ids = peer.search(queries, 10)
    mine = Exact(vectors).search(queries, 10)
    np.testing.assert_array_equal(mine[0], ids)
    np.testing.assert_allclose(mine[1], scores, rtol=1e-4, atol=1e-5)


def test_equal_scores_go_to_the_lowest_row_across_blocks_and_threads():
    vectors, queries = data(n=40)
    many = np.tile(vectors, (1000, 1))  # 40,000 rows, three blocks, each row 1,000 times
    for n_threads in (1, 2):
        index = Exact(many, n_threads=n_threads)
        for some in (queries[:1], queries):
            ids, scores = index.search(some, 15)
            for row, query in zip(ids, some, strict=True):
                top = int((vectors @ query).argmax())
                np.testing.assert_array_equal(row, top + 40 * np.arange(15))
            assert (scores == scores[:, :1]).all()


def check_one_by_one(vectors, queries):
    index = Exact(vectors)
    ids, scores = index.search(queries, 25)
    for b in range(len(queries)):
        one = index.search(queries[b : b + 1], 25)
        np.testing.assert_array_equal(one[0][0], ids[b])
        np.testing.assert_array_equal(one[1][0], scores[b])


def test_a_batch_equals_its_queries_one_by_one_bit_for_bit():
    check_one_by_one(*data(n=20_000, dim=100, n_queries=40))


def test_what_rounding_alone_tells_apart_is_the_same_in_a_batch():
    vectors, queries = data(n=6000, dim=100, n_queries=20)
    check_one_by_one(vectors[:1] + np.float32(1e-7) * vectors, queries)


def test_scores_far_apart_in_size_stay_exact():
    vectors, queries = data(n=3000, dim=64, n_queries=20)
    vectors[::7] *= 1e4
    vectors[1::7] *= 1e-4
    ids, _ = Exact(vectors).search(queries, 5)
    np.testing.assert_array_equal(ids, slow(vectors, queries, 5)[0])


def test_few_vectors_none_and_no_queries():
    vectors, queries = data(n=3)
    assert Exact(vectors).search(queries, 10)[0].shape == (9, 3)
    assert Exact(vectors[:0]).search(queries, 10)[0].shape == (9, 0)
    assert Exact(vectors).search(queries[:0], 10)[0].shape == (0, 3)


def test_a_memory_map_and_other_types_are_read(tmp_path):
    vectors, queries = data()
    np.save(tmp_path / "x.npy", vectors)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    expected = Exact(vectors).search(queries, 7)
    for same in (mapped, vectors.astype(np.float64), np.asfortranarray(vectors)):
        found = Exact(same).search(queries, 7)
        np.testing.assert_array_equal(found[0], expected[0])
    assert Exact(vectors).vectors is vectors or np.shares_memory(Exact(vectors).vectors, vectors)


def test_refusals_name_what_is_wrong():
    vectors, queries = data()
    vectors[321, 3] = np.nan
    with pytest.raises(EtudeError, match="vectors, row 321, must be finite"):
        Exact(vectors)
    vectors[321, 3] = 0
    index = Exact(vectors)
    with pytest.raises(EtudeError, match=r"queries must be an array of shape \(N, 24\)"):
        index.search(queries[:, :5], 3)
    with pytest.raises(EtudeError, match="queries, row 1, must be finite"):
        index.search(np.where(np.arange(9)[:, None] == 1, np.inf, queries), 3)
    with pytest.raises(EtudeError, match="k must be at least 1"):
        index.search(queries, 0)
    with pytest.raises(EtudeError, match="n_threads must be"):
        Exact(vectors, n_threads=0)
    with pytest.raises(EtudeError, match="vectors must be numbers"):
        as_vectors(np.array([["a"]]), "vectors")


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(1, 400), count=st.integers(1, 60), words=st.integers(1, 3),
    values=st.integers(1, 4), seed=st.integers(0, 10**6), downhill=st.booleans(),
)  # fmt: skip
def test_near_codes_equal_sorting(n, count, words, values, seed, downhill):
    generator = np.random.default_rng(seed)
    # few distinct words make many ties
    pool = generator.integers(0, 2**64, values, dtype=np.uint64)
    codes = pool[generator.integers(0, values, (n, words))]
    query = tuple(codes[0] ^ np.uint64(7))
    unlike = np.array([sum((int(a) ^ int(b)).bit_count() for a, b in zip(c, query, strict=True))
                       for c in codes])  # fmt: skip
    if downhill:  # every row nearer than all before: the buffer fills again and again
        order = np.argsort(-unlike, kind="stable")
        codes, unlike = np.ascontiguousarray(codes[order]), unlike[order]
    expected = np.sort(np.argsort(unlike, kind="stable")[:count])
    for asked in (query, np.array(query)):  # unrolled, and as a loop
        rows, far = scan.near_codes(codes, asked, 0, n, count)
        np.testing.assert_array_equal(rows, expected)
        np.testing.assert_array_equal(far, unlike[expected])


def test_near_codes_when_every_row_is_nearer_than_the_last():
    codes = np.array([[(1 << max(0, 63 - n // 50)) - 1] for n in range(3000)], dtype=np.uint64)
    rows, far = scan.near_codes(codes, (np.uint64(0),), 0, 3000, 20)
    unlike = np.array([int(c).bit_count() for c in codes[:, 0]])
    np.testing.assert_array_equal(rows, np.sort(np.argsort(unlike, kind="stable")[:20]))
    assert (far == unlike[rows]).all()


@pytest.mark.parametrize("n_threads", [1, 2])
def test_shortlist_scores_equal_the_decoded_vectors(n_threads):
    vectors, queries = data(n=600, dim=100)
    codec = Codec(random_rotation(100, 0), vectors.mean(axis=0))
    codes, factors = codec.encode(vectors)
    assert codes.shape == (600, 16)
    table, signs, offset = codec.ask(queries[0])
    decoded = (np.unpackbits(codes, axis=1) * 2.0 - 1) * factors[:, None]
    scores = decoded @ (codec.rotation.astype(float) @ queries[0])
    expected = np.sort(np.argsort(-scores)[:30])
    for found in (
        shortlist(codes, factors, table, n_kept=30, n_threads=n_threads),
        shortlist(codes, factors, table, n_kept=30, signs=signs, n_near=600, n_threads=n_threads),
    ):
        np.testing.assert_array_equal(found[0], expected)
        np.testing.assert_allclose(found[1], scores[expected], rtol=1e-4)
    unlike = np.unpackbits(codes ^ signs, axis=1).sum(axis=1)
    near = np.argsort(unlike, kind="stable")[:50]
    rows, _ = shortlist(
        codes, factors, table, n_kept=50, signs=signs, n_near=50, n_threads=n_threads
    )
    np.testing.assert_array_equal(rows, np.sort(near))
    # the estimate: right on the vector itself, close for others
    own = factors * np.abs((vectors - codec.center) @ codec.rotation.T).sum(axis=1)
    np.testing.assert_allclose(own, ((vectors - codec.center) ** 2).sum(axis=1), rtol=1e-4)
    assert np.corrcoef(scores + offset, vectors @ queries[0])[0, 1] > 0.7


def test_a_query_s_signs_are_those_of_a_document_s_code():
    _, queries = data(dim=100)
    codec = Codec(random_rotation(100, 0), np.full(100, 0.7, np.float32))
    for query, code in zip(queries, codec.encode(queries)[0], strict=True):
        np.testing.assert_array_equal(codec.ask(query)[1], code)
        assert codec.ask(query)[2] == pytest.approx(0.7 * query.sum(), rel=1e-4)


def test_a_codebook_gives_the_nearest_row_and_its_product():
    generator = np.random.default_rng(0)
    vectors, queries = data(n=50, dim=12)
    codebook = generator.standard_normal((3, 16, 4), dtype=np.float32)
    turn = np.linalg.qr(generator.standard_normal((12, 12)))[0].astype(np.float32)
    codec = Codec(turn, np.zeros(12, np.float32), codebook)
    codes, factors = codec.encode(vectors)
    table, signs, offset = codec.ask(queries[0])
    assert signs is None
    assert offset == 0
    rows, scores = shortlist(codes, factors, table, n_kept=50)
    for n in range(50):
        parts = (turn @ vectors[n]).reshape(3, 4)
        near = [((codebook[p] - parts[p]) ** 2).sum(axis=1).argmin() for p in range(3)]
        assert codes[n].tolist() == near
        decoded = np.concatenate([codebook[p, near[p]] for p in range(3)])
        assert np.isclose(scores[n], decoded @ (turn @ queries[0]), rtol=1e-4, atol=1e-5)
    assert rows.tolist() == list(range(50))


def test_a_random_rotation_keeps_inner_products():
    vectors, queries = data(dim=70)
    turn = random_rotation(70, 3)
    assert turn.shape == (128, 70)
    np.testing.assert_allclose(
        (vectors @ turn.T) @ (turn @ queries.T), vectors @ queries.T, atol=1e-4
    )
    assert (turn == random_rotation(70, 3)).all()
    assert not (turn == random_rotation(70, 4)).all()


def test_best_and_threads_keep_the_order():
    ids, scores = best(np.array([1.0, 3, 3, 2]), np.array([5, 9, 4, 1]), 3)
    assert ids.tolist() == [4, 9, 1]
    assert scores.tolist() == [3, 3, 2]
    assert in_threads(lambda a, b: (a, b), 10, 3) == [(0, 3), (3, 6), (6, 10)]
    assert in_threads(lambda a, b: (a, b), 1, 8) == [(0, 1)]


def _in_child(vectors, queries, queue):
    queue.put(Exact(vectors, n_threads=2).search(queries, 5)[0])


def test_threads_work_after_a_fork_and_from_many_callers():
    vectors, queries = data(n=4000)
    index = Exact(vectors, n_threads=2)
    expected = index.search(queries, 5)[0]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(vectors, queries, queue), daemon=True)
    child.start()
    np.testing.assert_array_equal(queue.get(timeout=60), expected)
    child.join()
    found = [None] * 6

    def ask(n):
        found[n] = [index.search(queries[:1], 5)[0], index.search(queries, 5)[0]]

    callers = [threading.Thread(target=ask, args=(n,)) for n in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for one, every in found:
        np.testing.assert_array_equal(one, expected[:1])
        np.testing.assert_array_equal(every, expected)


def test_importing_the_module_compiles_nothing():
    code = (
        "import sys, etude.core.nearest, etude.core.codec, etude.core.segments\n"
        "assert 'numba' not in sys.modules and 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def mapped(tmp_path, n=900):
    np.save(tmp_path / "x.npy", data(n=n)[0])
    return np.load(tmp_path / "x.npy", mmap_mode="r")


@pytest.mark.parametrize("view", [slice(None), slice(101, None), slice(3, 700, 5)])
def test_the_pages_of_rows_on_disk_hold_them(tmp_path, view):
    vectors = mapped(tmp_path)[view]
    rows = np.array([0, 7, len(vectors) // 2, len(vectors) - 1])
    mapping, starts, sizes = pages(vectors, rows)
    for row, start, size in zip(rows, starts, sizes, strict=True):
        assert start % mmap.PAGESIZE == 0
        assert mapping[start : start + size].endswith(vectors[row].tobytes())
        assert size < mmap.PAGESIZE + vectors[row].nbytes


def test_rows_in_memory_have_no_pages_to_ask_for(tmp_path):
    vectors = mapped(tmp_path)
    assert pages(np.array(vectors), np.arange(3))[0] is None
    assert pages(vectors, np.arange(0))[0] is None


def test_rows_on_disk_are_asked_for_before_they_are_read(tmp_path, monkeypatch):
    vectors, rows, query = mapped(tmp_path), np.arange(0, 900, 9), data()[1][0]
    asked = []
    monkeypatch.setattr("etude.core.nearest.read_ahead", lambda *two: asked.append(two))
    found = inner_products(vectors, rows, query)
    assert [two[1] is rows for two in asked] == [True]
    np.testing.assert_allclose(found, vectors[rows] @ query, rtol=1e-5, atol=1e-5)
    read_ahead(vectors, rows)  # the system takes the advice
