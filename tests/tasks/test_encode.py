"""Codes and indexes: what each finds, what it takes, and which setting is chosen."""

import numpy as np
import pytest
from click.testing import CliRunner

from etude.cli.compare import command
from etude.cli.try_ import command as tried
from etude.core import EtudeError
from etude.lab import compare
from etude.lab.ledger import Ledger
from etude.lab.run import keep
from etude.tasks import restore
from etude.tasks.base import Dataset, Split
from etude.tasks.encode import ARMS, Encode, _hits, unit
from etude.tasks.indexes import has_faiss

CODES = [name for name in ARMS if not name.startswith("faiss")]


def vectors(n=400, dim=32, seed=0):
    """Around a few centers, in a space whose later directions hold little."""
    generator = np.random.default_rng(seed)
    centers = generator.normal(size=(12, dim))
    x = centers[generator.integers(0, 12, n)] + 0.7 * generator.normal(size=(n, dim))
    return (x * np.linspace(1, 0.2, dim)).astype(np.float32)


@pytest.fixture(scope="module")
def data():
    return Dataset(name="d", x=vectors(), y=None)


def fitted(task, name, data, knobs=None):
    split = task.split(data, 0)
    return task.fit(ARMS[name], data, split, knobs or {}, seed=0, budget_s=None), split


@pytest.mark.parametrize("name", list(ARMS))
def test_every_arm_finds_neighbors_and_more_of_them_by_its_dearest_setting(name, data):
    if name.startswith("faiss") and not has_faiss():
        pytest.skip("needs faiss")
    task = Encode(["recall=0.1"])
    predictor, split = fitted(task, name, data, {"rung": 0})
    method = predictor.parts["method"]
    first = _hits(method, data, split, "test").mean()
    size = method.n_bytes
    method.turn(len(method.rungs) - 1)
    last = _hits(method, data, split, "test").mean()
    assert last >= first > 10 / len(split.train) * 3
    assert last > (0.99 if "verified" in name or name in ("exact", "faiss_hnsw") else 0.55)
    assert method.n_bytes >= size > 0


def test_hits_by_loops(data):
    task = Encode(["recall=0.1"])
    predictor, split = fitted(task, "one_bit", data)
    found = task.predict(predictor, data.x[split.test])
    unit = data.x / np.linalg.norm(data.x, axis=1, keepdims=True)
    oracle = []
    for row, ids in zip(split.test, found, strict=True):
        true = np.argsort(-(unit[split.train] @ unit[row]))[:10]
        oracle.append(len(set(true.tolist()) & set(ids.tolist())) / 10)
    np.testing.assert_allclose(_hits(predictor.parts["method"], data, split, "test"), oracle)


def test_bytes_are_those_of_the_arrays(data):
    task = Encode(["recall=0.1"])
    for name, arrays in (("eight_bits", ("codes_",)), ("one_bit", ("codes_", "factors_")),
                         ("components", ("reduced_",)), ("product_codes", ("codes_",)),
                         ("exact", ("vectors_",))):  # fmt: skip
        method = fitted(task, name, data, {"rung": 0})[0].parts["method"]
        held = sum(getattr(method, array).nbytes for array in arrays)
        assert method.n_bytes == held / 240, name


def test_the_cheapest_setting_that_reaches_the_recall_is_taken():
    rungs, data = [], Dataset(name="d", x=vectors(dim=128), y=None)
    for goal in (0.3, 0.75, 0.9):
        task = Encode([f"recall={goal}"])
        predictor, split = fitted(task, "components", data)
        rungs.append(predictor.knobs["rung"])
        hits = _hits(predictor.parts["method"], data, split, "validation")
        assert hits.mean() >= goal
        if rungs[-1] > 0:
            predictor.parts["method"].turn(rungs[-1] - 1)
            hits = _hits(predictor.parts["method"], data, split, "validation")
            assert hits.mean() - hits.std() / len(hits) ** 0.5 < goal
    assert rungs == sorted(rungs)
    assert rungs[-1] > rungs[0]
    with pytest.raises(EtudeError, match=r"one_bit finds at most 0\.\d+ of the 10 best"):
        fitted(Encode(["recall=0.999"]), "one_bit", data)  # its codes alone never reach that


def test_what_falls_short_on_the_test_queries_is_a_failure(data):
    task = Encode(["recall=0.99"])
    predictor, split = fitted(task, "one_bit", data, {"rung": 0})
    assert "recall_at_10" in task.measure(predictor, data, split, "validation")
    with pytest.raises(EtudeError, match=r"of the test queries, 0\.99 was asked"):
        task.measure(predictor, data, split, "test")


def test_the_largest_code_that_fits_is_taken(data):
    task = Encode(["bytes=70"])
    predictor, _ = fitted(task, "components", data)
    assert predictor.knobs["n_components"] == 16
    assert predictor.parts["method"].n_bytes == 64
    with pytest.raises(EtudeError, match="components takes 64 bytes a vector at least, more"):
        fitted(Encode(["bytes=30"]), "components", data)
    assert task.why_not(ARMS["exact"], data) == "takes more than 70 bytes a vector"
    assert task.why_not(ARMS["one_bit"], data) is None
    assert next(iter(task.baselines)) == "components"
    assert next(iter(Encode(["recall=0.9"]).baselines)) == "exact"


def test_settings_are_refused_in_words():
    with pytest.raises(EtudeError, match="exclude each other"):
        Encode(["recall=0.9", "bytes=9"])
    with pytest.raises(EtudeError, match=r"a number from 0\.1 to 1"):
        Encode(["recall=95"])


@pytest.mark.parametrize("name", CODES)
def test_a_kept_arm_answers_as_before(name, data):
    task = Encode(["recall=0.1"])
    none = np.arange(0)
    everything = Split(np.arange(len(data.x)), none, none)
    predictor = task.fit(ARMS[name], data, everything, {"rung": 0}, seed=0, budget_s=None)
    again = restore(predictor.config(), predictor.state())
    asked = vectors(5, seed=9)
    np.testing.assert_array_equal(again.predict(asked), predictor.predict(asked))


def test_the_command_answers_which_how_large_how_fast(tmp_path, data):
    np.save(tmp_path / "v.npy", data.x)
    ledger = str(tmp_path / "l.db")
    found = CliRunner().invoke(
        command, [str(tmp_path / "v.npy"), "--task", "search", "--recall", "0.9", "--seeds", "2",
                  "--tune", "1", "--report", str(tmp_path / "r"), "--ledger", ledger,
                  "--methods", "retrieval.bidr,eight_bits,one_bit"],
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    words = " ".join(found.output.split())
    assert "encode on v (recall=0.9)" in words
    assert "Smallest: Signs, then full vectors (BiDR)," in words
    assert "20 B a vector" in words
    assert "n_verified=" in words
    shown = [line for line in found.output.splitlines() if not line.startswith("report")]
    assert max(map(len, shown)) <= 80
    refused = CliRunner().invoke(command, [str(tmp_path / "v.npy"), "--task", "probe",
                                           "--recall", "0.9"])  # fmt: skip
    assert "--recall must be given with --task search or encode" in str(refused.exception)


def test_keep_takes_the_setting_that_was_chosen(tmp_path, data):
    np.save(tmp_path / "v.npy", data.x)
    ledger = str(tmp_path / "l.db")
    board = compare(tmp_path / "v.npy", methods=["retrieval.bidr"], task="encode", seeds=2,
                    tune=1, settings=("recall=0.97",), ledger=ledger)  # fmt: skip
    rows = [r for r in Ledger(ledger).rows(board.run.id) if r.method == "retrieval.bidr"]
    chosen = {r.params["n_verified"] for r in rows}
    kept = keep(board.run.id, tmp_path / "kept", "retrieval.bidr", ledger)
    assert kept["metric"] == "queries_per_s"
    entry = next(e for e in board.entries if e.method == "retrieval.bidr")
    assert entry.params["n_verified"] in chosen
    assert unit(data.x).dtype == np.float32


def test_bidr_is_tried_by_its_own_name(tmp_path, data):
    np.save(tmp_path / "v.npy", data.x)
    found = CliRunner().invoke(
        tried, ["bidr", "--data", str(tmp_path / "v.npy"), "--setting", "recall=0.9", "--seeds",
                "1", "--tune", "1", "--report", str(tmp_path / "r"), "--ledger",
                str(tmp_path / "l.db")],
    )  # fmt: skip
    assert found.exit_code in (0, 1), found.output
    assert "Signs, then full vectors (BiDR)" in " ".join(found.output.split())
