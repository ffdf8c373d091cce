"""The funnel of prefixes against exact search."""

import numpy as np
import pytest

from etude.core import EtudeError
from etude.core.funnel import Funnel
from etude.core.nearest import Exact


def data(n=4000, dim=48, n_queries=15):
    """Early coordinates tell most, as those of Matryoshka embeddings do."""
    generator = np.random.default_rng(0)
    fall = np.exp(-np.arange(dim) / 10)
    rows, queries = (generator.standard_normal((m, dim)) * fall for m in (n, n_queries))
    return rows.astype(np.float32), queries.astype(np.float32)


def test_keeping_everything_equals_exact_search():
    rows, queries = data()
    for sizes, n_kept in (((8,), (4000,)), ((8, 16, 48), (4000, 4000, 4000))):
        for n_threads in (1, 2):
            funnel = Funnel(rows, sizes=sizes, n_kept=n_kept, n_threads=n_threads)
            for some in (queries, queries[:1]):
                found, expected = funnel.search(some, 10), Exact(rows).search(some, 10)
                np.testing.assert_array_equal(found[0], expected[0])
                np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)


def test_a_full_prefix_needs_few_rows_and_a_middle_one_helps():
    rows, queries = data()
    true = Exact(rows).search(queries, 10)[0]

    def recall(sizes, n_kept):
        found = Funnel(rows, sizes=sizes, n_kept=n_kept).search(queries, 10)[0]
        return (found[:, :, None] == true[:, None, :]).any(1).mean()

    assert recall((48,), (60,)) > 0.98
    assert recall((6,), (60,)) < 0.9
    assert recall((6, 30), (1000, 60)) > recall((6,), (60,)) + 0.05


def test_the_shortlist_is_that_of_the_prefix_in_whole_numbers():
    rows, queries = data()
    funnel = Funnel(rows, sizes=(8, 16), n_kept=(4000, 50))
    scale = 127 / (5 * np.sqrt((rows[:, :16].astype(float) ** 2).mean(axis=0).max()))
    codes = np.rint(rows[:, :16] * np.float32(scale)).clip(-127, 127).astype(np.int64)
    query = queries[0, :16]
    scores = codes @ np.rint(query * (127 / np.abs(query).max())).astype(np.int64)
    listed = funnel._shortlist(queries[0], 10, 1)
    assert len(listed) == 50
    assert scores[listed].min() >= np.sort(scores)[-51]
    assert funnel.memory_bytes == 4000 * 16
    alone = Funnel(rows, sizes=(8,), n_kept=(1000,))  # the sample is all scores, and a bit to spare
    assert len(alone._shortlist(queries[0], 10, 1)) == 1000


def test_few_rows_equal_rows_none_and_a_memory_map(tmp_path):
    rows, queries = data()
    small = {"sizes": (8,), "n_kept": (5,)}
    assert Funnel(rows[:3], **small).search(queries, 10)[0].shape == (15, 3)
    assert Funnel(rows[:0], **small).search(queries, 10)[0].shape == (15, 0)
    same = Funnel(np.repeat(rows[:1], 500, axis=0), **small).search(queries, 10)[0]
    np.testing.assert_array_equal(same, np.tile(np.arange(10), (15, 1)))
    assert Funnel(np.zeros((20, 48), np.float32), **small).search(queries, 3)[1].max() == 0
    np.save(tmp_path / "x.npy", rows)
    mapped = Funnel(np.load(tmp_path / "x.npy", mmap_mode="r"), **small)
    np.testing.assert_array_equal(
        mapped.search(queries, 5)[0], Funnel(rows, **small).search(queries, 5)[0]
    )


def test_refusals_name_what_is_wrong():
    rows, queries = data(n=20)
    for sizes in ((), (8, 8), (8, 49), (0, 4)):
        with pytest.raises(EtudeError, match="sizes must be growing, from 1 to 48"):
            Funnel(rows, sizes=sizes, n_kept=(5,) * len(sizes))
    for n_kept in ((5,), (4, 5), (4, 0)):
        with pytest.raises(EtudeError, match="n_kept must be as many as sizes"):
            Funnel(rows, sizes=(8, 16), n_kept=n_kept)
    with pytest.raises(EtudeError, match="k must be at least 1"):
        Funnel(rows, sizes=(8,), n_kept=(5,)).search(queries, 0)
    with pytest.raises(EtudeError, match="queries must be an array of shape"):
        Funnel(rows, sizes=(8,), n_kept=(5,)).search(queries[:, :8])
    with pytest.raises(EtudeError, match="n_threads"):
        Funnel(rows, sizes=(8,), n_kept=(5,), n_threads=0)
