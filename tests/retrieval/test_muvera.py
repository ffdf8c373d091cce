"""MUVERA against loops, its guarantees, and the released code's numbers."""

import numpy as np
import pytest

from etude.core import EtudeError, check_names, get_state
from etude.retrieval import MuveraEncoder, chamfer, muvera, muvera_search


def token_sets(sizes, dim=6, seed=0, dtype=np.float64):
    generator = np.random.default_rng(seed)
    sets = [generator.standard_normal((size, dim)) for size in sizes]
    return [(s / np.linalg.norm(s, axis=1, keepdims=True)).astype(dtype) for s in sets]


def slow_chamfer(query, document):
    return sum(max(float(q @ p) for p in document) for q in query)


def slow_blocks(tokens, planes, projection, is_query, fill_empty):
    """One repetition by equations (2) to (4): loops, buckets as tuples of signs."""
    n_bits = planes.shape[1]
    signs = [tuple(int(x @ planes[:, j] > 0) for j in range(n_bits)) for x in tokens]
    projected = [x if projection is None else x @ projection for x in tokens]
    blocks = []
    for number in range(2**n_bits):
        bucket = tuple(number >> j & 1 for j in range(n_bits))
        inside = [p for p, s in zip(projected, signs, strict=True) if s == bucket]
        if inside:
            blocks.append(sum(inside) / (1 if is_query else len(inside)))
        elif is_query or not fill_empty or n_bits == 0:
            blocks.append(np.zeros(len(projected[0])))
        else:
            far = [sum(a != b for a, b in zip(bucket, s, strict=True)) for s in signs]
            blocks.append(projected[far.index(min(far))])
    return np.concatenate(blocks)


@pytest.mark.parametrize("k_sim", [0, 1, 3, 5])
@pytest.mark.parametrize("fill_empty", [True, False])
@pytest.mark.parametrize("projection_dim", [None, 4])
def test_encodings_equal_the_loops(k_sim, fill_empty, projection_dim):
    sets = token_sets([1, 7, 3, 12])
    encoder = MuveraEncoder(
        6, k_sim=k_sim, n_repetitions=3, projection_dim=projection_dim, fill_empty=fill_empty,
        seed=4,
    )  # fmt: skip
    draws = [encoder._draw(r, np.dtype(np.float64)) for r in range(3)]
    for is_query, encode in ((True, encoder.encode_queries), (False, encoder.encode_documents)):
        expected = [
            np.concatenate([slow_blocks(s, g, psi, is_query, fill_empty) for g, psi in draws])
            for s in sets
        ]
        np.testing.assert_allclose(encode(sets), expected, rtol=1e-12, atol=1e-12)


def test_agrees_with_the_released_code(monkeypatch):
    """google/graph-mining dca52ed, fixed_dimensional_encoding.cc, its steps followed in float64
    on these tokens with these hyperplanes in place of its random ones (identity projection,
    fill_empty_partitions on and off): inner products within 1e-12. Its buckets stand in Gray
    order, which inner products do not see.
    """
    n = np.arange(30.0)
    documents = [np.sin(1.3 * n).reshape(5, 6), np.cos(0.7 * n[:18] + 0.2).reshape(3, 6)]
    queries = [np.sin(0.9 * n[:24] + 1).reshape(4, 6), np.cos(2.1 * n[:12]).reshape(2, 6)]

    def planes(self, repetition, dtype):
        return np.sin(np.arange(1, 19) * (repetition + 1.7)).reshape(6, 3), None

    monkeypatch.setattr(MuveraEncoder, "_draw", planes)
    for fill_empty, expected in (
        (True, [[9.183572728525881, 13.844471097826244], [3.4379300986876045, 1.3438498330690052]]),
        (False, [[9.550044036099424, 8.925455734782867], [3.4379300986876045, 1.8478692293339751]]),
    ):
        encoder = MuveraEncoder(
            6, k_sim=3, n_repetitions=2, projection_dim=None, fill_empty=fill_empty
        )
        got = encoder.encode_queries(queries) @ encoder.encode_documents(documents).T
        np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("k_sim", [1, 3, 6])
def test_without_projection_no_repetition_exceeds_chamfer(k_sim):
    queries, documents = token_sets([4, 9, 2], seed=1), token_sets([5, 30, 1, 11], seed=2)
    encoder = MuveraEncoder(6, k_sim=k_sim, n_repetitions=40, projection_dim=None)
    q = encoder.encode_queries(queries).reshape(3, 40, -1)
    p = encoder.encode_documents(documents).reshape(4, 40, -1)
    estimates = np.einsum("qrm,prm->rqp", q, p)
    exact = chamfer(queries, documents)
    assert (estimates <= exact + 1e-12).all()
    assert estimates[:, :, [0, 1, 3]].mean() < exact[:, [0, 1, 3]].mean() - 0.1
    # A single document token is every bucket's: then the estimate is Chamfer itself.
    np.testing.assert_allclose(estimates[:, :, 2], np.tile(exact[:, 2], (40, 1)), rtol=1e-12)


def test_one_bucket_gives_sums_and_means():
    queries, documents = token_sets([4, 2], seed=1), token_sets([5, 3], seed=2)
    encoder = MuveraEncoder(6, k_sim=0, n_repetitions=1, projection_dim=None)
    np.testing.assert_allclose(encoder.encode_queries(queries), [q.sum(0) for q in queries])
    np.testing.assert_allclose(encoder.encode_documents(documents), [p.mean(0) for p in documents])


def test_a_projection_no_narrower_than_the_tokens_keeps_them():
    sets = token_sets([4, 2])
    whole = MuveraEncoder(6, k_sim=2, n_repetitions=2, projection_dim=None).encode_queries(sets)
    for width in (6, 9):
        encoder = MuveraEncoder(6, k_sim=2, n_repetitions=2, projection_dim=width)
        np.testing.assert_array_equal(encoder.encode_queries(sets), whole)


def test_queries_add_up_and_documents_do_not():
    one, two = token_sets([5, 8], seed=3)
    encoder = MuveraEncoder(6, k_sim=3, n_repetitions=4, projection_dim=3, final_dim=20)
    both = np.concatenate([one, two])
    q = encoder.encode_queries([one, two, both])
    np.testing.assert_allclose(q[0] + q[1], q[2], atol=1e-12)
    p = encoder.encode_documents([one, two, both])
    assert not np.allclose(p[0] + p[1], p[2], atol=0.1)


def test_order_of_query_tokens_and_of_sets_does_not_matter():
    sets = token_sets([5, 8, 1, 3], seed=3)
    encoder = MuveraEncoder(6, k_sim=3, n_repetitions=4, projection_dim=3)
    np.testing.assert_allclose(
        encoder.encode_queries(sets), encoder.encode_queries([s[::-1] for s in sets]), atol=1e-12
    )
    np.testing.assert_array_equal(
        encoder.encode_documents(sets[::-1]), encoder.encode_documents(sets)[::-1]
    )


def test_variance_falls_with_repetitions_and_bias_with_hyperplanes():
    queries, documents = token_sets([6], dim=16, seed=5), token_sets([20], dim=16, seed=6)
    exact = chamfer(queries, documents)[0, 0]

    def estimates(k_sim, n_repetitions, projection_dim=None):
        found = []
        for seed in range(60):
            encoder = MuveraEncoder(
                16, k_sim=k_sim, n_repetitions=n_repetitions, projection_dim=projection_dim,
                seed=seed,
            )  # fmt: skip
            q, p = encoder.encode_queries(queries), encoder.encode_documents(documents)
            found.append((q @ p.T).item() / n_repetitions)
        return np.array(found)

    few, many, fine = estimates(3, 2), estimates(3, 32), estimates(7, 32)
    assert np.isclose(few.std() / many.std(), 4, rtol=0.4)
    assert abs(few.mean() - many.mean()) < 0.2 * (exact - many.mean())
    assert exact - fine.mean() < 0.9 * (exact - many.mean())
    # The projection keeps the mean (5) and adds variance, less of it the wider it is.
    narrow, wide = estimates(3, 8, 2), estimates(3, 8, 12)
    assert abs(wide.mean() - many.mean()) < 0.25 * abs(many.mean())
    assert narrow.std() > 1.5 * wide.std()


def test_final_sketch_keeps_inner_products_on_average():
    # all numbers positive, so that numbers in one place add up where signs do not part them
    queries, documents = ([np.abs(s) for s in token_sets([n], seed=n)] for n in (6, 20))
    found = []
    for seed in range(300):
        whole = MuveraEncoder(6, k_sim=2, n_repetitions=2, projection_dim=None, seed=seed)
        short = MuveraEncoder(
            6, k_sim=2, n_repetitions=2, projection_dim=None, final_dim=24, seed=seed
        )
        assert short.encode_queries(queries).shape == (1, 24)
        exact = (whole.encode_queries(queries) @ whole.encode_documents(documents).T).item()
        sketched = (short.encode_queries(queries) @ short.encode_documents(documents).T).item()
        found.append(sketched - exact)
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(300)
    assert 0 < np.std(found) < 40
    # without planes and projection the seed shows in the sketch alone
    plain = {"k_sim": 0, "n_repetitions": 1, "projection_dim": None, "final_dim": 4}
    one, other = (MuveraEncoder(6, **plain, seed=s).encode_queries(queries) for s in (0, 1))
    assert not np.allclose(one, other)


def test_chamfer_equals_the_loops_and_is_not_symmetric():
    queries, documents = token_sets([4, 9, 1], seed=1), token_sets([5, 30, 1, 11], seed=2)
    expected = [[slow_chamfer(q, p) for p in documents] for q in queries]
    np.testing.assert_allclose(chamfer(queries, documents), expected, rtol=1e-12)
    assert not np.allclose(chamfer(documents, queries).T, expected)
    one = token_sets([7])[0]
    np.testing.assert_allclose(chamfer([one], [one]), [[7.0]])


def test_equal_forms_of_input():
    sets = token_sets([5] * 8, dtype=np.float32)
    stacked = np.stack(sets)
    encoder = MuveraEncoder(6, k_sim=2, n_repetitions=3, projection_dim=4)
    codes = encoder.encode_documents(sets)
    np.testing.assert_array_equal(codes, encoder.encode_documents(stacked))
    assert codes.dtype == np.float32
    assert codes.shape == (8, encoder.code_dim) == (8, 3 * 4 * 4)
    np.testing.assert_array_equal(chamfer(sets, sets[:3]), chamfer(stacked, stacked[:3]))
    vectors = stacked[:, 0]
    np.testing.assert_array_equal(
        encoder.encode_documents(vectors), encoder.encode_documents(vectors[:, None])
    )


def test_small_memory_gives_the_same(monkeypatch):
    queries, documents = token_sets([3, 8, 5], seed=1), token_sets([5, 30, 1, 11, 9], seed=2)
    encoder = MuveraEncoder(6, k_sim=3, n_repetitions=3, projection_dim=4, final_dim=40)

    def everything():
        return (
            encoder.encode_documents(documents), chamfer(queries, documents),
            *muvera_search(queries, documents, encoder=encoder, n_candidates=3, n_results=2),
        )  # fmt: skip

    whole = everything()
    for budget in (1, 2000):
        monkeypatch.setattr(muvera, "WORK_BYTES", budget)
        for a, b in zip(whole, everything(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_search_with_all_candidates_is_exhaustive_search():
    queries, documents = token_sets([4, 9], seed=1), token_sets([5, 30, 1, 11, 7], seed=2)
    exact = chamfer(queries, documents)
    ids, scores = muvera_search(queries, documents, n_candidates=99, n_results=3)
    np.testing.assert_array_equal(ids, np.argsort(-exact, axis=1)[:, :3])
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :3], rtol=1e-12)
    encoder = MuveraEncoder(6, k_sim=2, n_repetitions=5, projection_dim=None)
    codes = encoder.encode_documents(documents)
    ids, _ = muvera_search(
        queries, documents, encoder=encoder, codes=codes, n_candidates=1, n_results=3
    )
    np.testing.assert_array_equal(
        ids, (encoder.encode_queries(queries) @ codes.T).argmax(1)[:, None]
    )


def test_search_orders_equal_documents_by_id():
    documents = token_sets([5, 3]) * 40
    ids, _ = muvera_search(documents[:1], documents, n_candidates=80, n_results=40)
    np.testing.assert_array_equal(ids, [2 * np.arange(40)])


def test_encodings_find_documents_that_the_mean_token_misses():
    """A document with one perfect token for each query token and much besides."""
    generator = np.random.default_rng(0)
    documents = generator.standard_normal((300, 40, 32))
    documents /= np.linalg.norm(documents, axis=2, keepdims=True)
    queries = documents[:40, :4]
    encoder = MuveraEncoder(32, k_sim=5, n_repetitions=20, projection_dim=None)
    found = muvera_search(queries, documents, encoder=encoder, n_candidates=10, n_results=1)[0]
    means = (queries.sum(1) @ documents.mean(1).T).argsort(1)[:, -10:]
    ours = (found[:, 0] == np.arange(40)).mean()
    assert ours > 0.9
    assert ours > (means == np.arange(40)[:, None]).any(1).mean() + 0.1


def test_same_seed_same_codes_and_nothing_is_kept():
    sets = token_sets([4, 6])
    make = {"k_sim": 3, "n_repetitions": 4, "projection_dim": 4}
    encoder = MuveraEncoder(6, **make)
    codes = encoder.encode_documents(sets)
    np.testing.assert_array_equal(codes, MuveraEncoder(6, **make).encode_documents(sets))
    assert not np.allclose(codes, MuveraEncoder(6, **make, seed=1).encode_documents(sets))
    longer = MuveraEncoder(6, **(make | {"n_repetitions": 6})).encode_documents(sets)
    np.testing.assert_array_equal(codes, longer[:, : codes.shape[1]])
    assert get_state(encoder) == {}
    check_names(MuveraEncoder)
    check_names(chamfer)
    check_names(muvera_search)


def test_refusals():
    encoder = MuveraEncoder(6)
    with pytest.raises(EtudeError, match="documents must be tokens of width 6"):
        encoder.encode_documents(token_sets([3], dim=5))
    with pytest.raises(EtudeError, match="queries must be sets of at least one token"):
        encoder.encode_queries([np.ones((2, 6)), np.ones((0, 6))])
    with pytest.raises(EtudeError, match="documents must be at least one set"):
        encoder.encode_documents([])
    with pytest.raises(EtudeError, match=r"documents must be \(T, D\) arrays of one width"):
        encoder.encode_documents([np.ones((2, 6)), np.ones((2, 5))])
    with pytest.raises(EtudeError, match=r"documents must be \(T, D\) arrays of one width"):
        encoder.encode_documents([np.ones(6), np.ones(6)])
    with pytest.raises(EtudeError, match="documents must be finite"):
        encoder.encode_documents(np.full((2, 3, 6), np.nan))
    with pytest.raises(EtudeError, match="documents must be tokens of width 6"):
        chamfer(np.ones((2, 3, 6)), np.ones((2, 3, 5)))
    with pytest.raises(EtudeError, match="k_sim must be from 0 to 16"):
        MuveraEncoder(6, k_sim=17)
    with pytest.raises(EtudeError, match="projection_dim must be at least 1, or None"):
        MuveraEncoder(6, projection_dim=0)
    with pytest.raises(EtudeError, match="codes must be the documents' encodings"):
        muvera_search(np.ones((2, 3, 6)), np.ones((4, 3, 6)), codes=np.ones((4, 7)))
    with pytest.raises(EtudeError, match="n_candidates must be at least 1"):
        muvera_search(np.ones((2, 3, 6)), np.ones((4, 3, 6)), n_candidates=0)
