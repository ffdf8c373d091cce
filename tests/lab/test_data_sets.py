"""Columns of vectors and of sets of vectors: what is read, and what is refused."""

import numpy as np
import polars as pl
import pytest

from etude.core import EtudeError
from etude.lab.data import describe, load_dataset

SETS = [np.random.default_rng(n).normal(size=(2 + n % 3, 4)) for n in range(9)]


def saved(path, **columns):
    pl.DataFrame(columns, strict=False).write_parquet(path)
    return path


def lists():
    return pl.Series("sets", [s.tolist() for s in SETS], dtype=pl.List(pl.List(pl.Float64)))


def test_lists_of_vectors_are_sets_of_any_number(tmp_path):
    path = saved(tmp_path / "a.parquet", sets=lists(), page=range(9), kind=list("abcabcabc"))
    data = load_dataset(path, need_labels=False)
    assert data.tokens.shape == (9,)
    for ours, given in zip(data.tokens, SETS, strict=True):
        np.testing.assert_array_equal(ours, given.astype(np.float32))
    np.testing.assert_allclose(data.x, [s.mean(axis=0) for s in SETS], atol=1e-6)
    assert data.y is None
    assert [one["name"] for one in data.schema["ignored"]] == ["page", "kind"]
    labeled = load_dataset(path)
    assert labeled.classes == ("a", "b", "c")
    assert labeled.y.tolist() == [0, 1, 2] * 3
    assert describe(path)["tokens"] == [9, "2-4", 4]
    some = load_dataset(path, need_labels=False, limit=5)
    assert len(some.tokens) == len(some.x) == 5


def test_the_hash_is_of_the_content(tmp_path):
    first = load_dataset(saved(tmp_path / "a.parquet", sets=lists()), need_labels=False)
    again = load_dataset(saved(tmp_path / "b.parquet", v=lists()), need_labels=False)
    assert first.hash == again.hash
    other = [s.copy() for s in SETS]
    other[4][0, 0] += 1e-3
    other = pl.Series([s.tolist() for s in other], dtype=pl.List(pl.List(pl.Float32)))
    assert (
        load_dataset(saved(tmp_path / "c.parquet", v=other), need_labels=False).hash != first.hash
    )
    flat, lengths = np.concatenate(SETS), [len(s) for s in SETS]
    np.savez(tmp_path / "d.npz", tokens=flat, lengths=lengths)
    assert load_dataset(tmp_path / "d.npz", need_labels=False).hash == first.hash
    # the same numbers cut elsewhere are other sets
    np.savez(tmp_path / "e.npz", tokens=flat, lengths=[3, 2, *lengths[2:]], x=first.x)
    moved = load_dataset(tmp_path / "e.npz", need_labels=False)
    assert moved.hash != first.hash


@pytest.mark.parametrize("dtype", [pl.Array(pl.Float32, 4), pl.List(pl.Int64)])
def test_one_vector_a_row(tmp_path, dtype):
    rows = np.arange(36).reshape(9, 4)
    series = pl.Series(rows.tolist(), dtype=pl.List(pl.Int64)).cast(pl.List(dtype.inner))
    path = saved(tmp_path / "a.parquet", v=series.cast(dtype))
    data = load_dataset(path, need_labels=False)
    np.testing.assert_array_equal(data.x, rows)
    assert data.tokens is None
    assert data.schema["why"] == "column 'v': one vector of 4 numbers a row"
    assert describe(path)["features"] == 4
    assert describe(path)["target"] is None
    with pytest.raises(EtudeError, match="vectors only; add a column of labels"):
        load_dataset(path)


def test_sets_of_one_size_are_one_array(tmp_path):
    cube = np.random.default_rng(0).normal(size=(6, 3, 2)).astype(np.float32)
    kind = pl.Array(pl.Array(pl.Float32, 2), 3)
    data = load_dataset(
        saved(tmp_path / "a.parquet", v=pl.Series(cube.tolist(), dtype=kind)), need_labels=False
    )
    np.testing.assert_array_equal(data.tokens, cube)
    assert data.tokens.dtype == np.float32


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ([[[1.0, 2]], [[1, 2], [3]], [[1, 2]]], "row 2, column 'v' must hold vectors of 2 numbers"),
        ([[[1.0, 2]], [], [[1, 2]]], "row 2, column 'v' must be a set of at least one vector"),
        ([[[1.0, 2]], [[1, 2]], [[1, float("inf")]]], "row 3, column 'v' must hold finite"),
        ([[[1.0, 2]], [[1, 2]], [[1, None]]], "row 3, column 'v' must hold finite"),
        ([[[1.0, 2]], [[1, 2]], None], "row 3 must have a value in 'v'"),
    ],
)
def test_broken_cells_are_named(tmp_path, cells, says):
    path = saved(tmp_path / "a.parquet", v=pl.Series(cells, dtype=pl.List(pl.List(pl.Float64))))
    with pytest.raises(EtudeError, match=says):
        load_dataset(path, need_labels=False)
    if cells[-1] is None:
        kept = load_dataset(path, need_labels=False, missing="drop")
        assert len(kept.x) == 2
        assert kept.schema["dropped_rows"] == 1


def test_refusals(tmp_path):
    words = pl.Series([[["a"]], [["b"]]], dtype=pl.List(pl.List(pl.String)))
    with pytest.raises(EtudeError, match="must hold vectors of numbers"):
        load_dataset(saved(tmp_path / "w.parquet", v=words), need_labels=False)
    two = saved(tmp_path / "two.parquet", a=lists(), b=lists())
    with pytest.raises(EtudeError, match=r"one column of vectors, got a, b; .*--as b=ignore"):
        load_dataset(two, need_labels=False)
    assert len(load_dataset(two, need_labels=False, kinds={"b": "ignore"}).tokens) == 9
    with pytest.raises(EtudeError, match="no column 'c'"):
        load_dataset(two, target="c", kinds={"b": "ignore"})
    for lengths, says in (([2, 3], "they sum to 5"), ([[1, 2]], "with lengths"), ([9, 0], "pos")):
        np.savez(tmp_path / "n.npz", tokens=np.ones((9, 2)), lengths=np.array(lengths))
        with pytest.raises(EtudeError, match=says):
            load_dataset(tmp_path / "n.npz", need_labels=False)
