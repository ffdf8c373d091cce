"""Rows of several labels, and files about the classes: how they are read, and refusals."""

import json

import numpy as np
import pytest

from etude.core import EtudeError
from etude.lab import compare
from etude.lab.classes import read_descriptions, read_labels_metric
from etude.lab.data import describe, load_dataset
from etude.lab.plan import make_plan
from etude.lab.run import command_of

ROWS = [("1.0", "a; b"), ("2.0", ""), ("3.5", "b"), ("0.5", "c;a"), ("1.5", "b; c")]


@pytest.fixture
def lists(tmp_path):
    path = tmp_path / "lists.csv"
    path.write_text("x,tags\n" + "\n".join(f"{x},{tags}" for x, tags in ROWS) + "\n")
    return str(path)


@pytest.fixture
def columns(tmp_path):
    path = tmp_path / "columns.csv"
    lines = [f"{x},{int('a' in t)},{int('b' in t)},{int('c' in t)}" for x, t in ROWS]
    path.write_text("x,a,b,c\n" + "\n".join(lines) + "\n")
    return str(path)


WANTED = [[1, 1, 0], [0, 0, 0], [0, 1, 0], [1, 0, 1], [0, 1, 1]]


def test_lists_columns_and_arrays_give_the_same_labels(lists, columns, tmp_path):
    one = load_dataset(lists, target="tags", kinds={"tags": "labels"})
    two = load_dataset(columns, target="a, b,c")
    y = np.array(WANTED)
    np.savez(tmp_path / "n.npz", x=one.x, y=y)
    three = load_dataset(str(tmp_path / "n.npz"))
    for data in (one, two, three):
        np.testing.assert_array_equal(data.labels, y.astype(bool))
        assert data.y is None
        assert data.x.shape == (5, 1)
    assert one.classes == two.classes == ("a", "b", "c")
    assert three.classes == ("label_1", "label_2", "label_3")
    np.savez(tmp_path / "m.npz", x=one.x, y=y[:, ::-1])
    assert load_dataset(str(tmp_path / "m.npz")).hash != three.hash
    assert load_dataset(columns, target="a,b,c", limit=3).labels.shape == (3, 3)
    found = describe(columns, target="a,b,c")
    assert [c["rows"] for c in found["classes"]] == [2, 3, 2]


def test_bad_labels_are_refused(lists, columns, tmp_path):
    with pytest.raises(EtudeError, match="no column 'd' for the labels"):
        load_dataset(columns, target="a,d")
    with pytest.raises(EtudeError, match="row 2, column 'x' must be 0 or 1"):
        load_dataset(columns, target="x,b", kinds={})
    with pytest.raises(EtudeError, match="no cell of 'x' has two labels"):
        load_dataset(columns, target="x", kinds={"x": "labels"})
    with pytest.raises(EtudeError, match="--missing median, not drop"):
        load_dataset(lists, target="tags", kinds={"tags": "labels"}, missing="drop")
    np.savez(tmp_path / "n.npz", x=np.zeros((4, 2)), y=np.full((4, 3), 2))
    with pytest.raises(EtudeError, match="labels of 0 and 1 only"):
        load_dataset(str(tmp_path / "n.npz"))
    np.savez(tmp_path / "n.npz", x=np.zeros((4, 2)), y=np.eye(4)[:, :2] * 0)
    with pytest.raises(EtudeError, match="no row has the label 'label_1'"):
        load_dataset(str(tmp_path / "n.npz"))


def test_a_tree_and_its_matrix_are_one_metric(tmp_path):
    tree, matrix = tmp_path / "t.json", tmp_path / "m.csv"
    tree.write_text(json.dumps({"animal": {"cat": {}, "dog": {"pug": {}}}, "oak": {}}))
    wanted = np.array([[0, 3, 3], [3, 0, 4], [3, 4, 0]])  # cat, oak, pug
    matrix.write_text(",pug,cat,oak\ncat,3,0,3\noak,4,3,0\npug,0,3,4\n")
    for path in (tree, matrix):
        np.testing.assert_array_equal(read_labels_metric(path, ("cat", "oak", "pug")), wanted)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", ",a,b\na,0,1\nb,2,0\n", "equal in both directions"),
        ("m.csv", ",a,b\na,0,x\nb,2,0\n", "numbers elsewhere"),
        ("m.csv", ",a\na,0\n", "must name every class, it lacks 'b'"),
        ("t.json", '{"a": {}}', "lacks 'b'"),
        ("t.json", '{"a": {"b": 3}}', "must be a tree of names"),
        ("t.json", '{"a": {"b": {"a": {}}}}', "must name 'a' once"),
        ("t.json", "{", "must be JSON"),
        ("t.txt", "", "must end in .csv"),
        ("absent.json", None, "cannot be read"),
    ],
)
def test_bad_label_metrics_are_refused(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(EtudeError, match=message):
        read_labels_metric(tmp_path / name, ("a", "b"))


def test_descriptions_are_in_the_order_of_the_classes(tmp_path):
    path = tmp_path / "d.json"
    path.write_text('{"b": ["is round"]}')
    assert read_descriptions(path, ("a", "b")) == {"a": [], "b": ["is round"]}
    for text, message in (
        ('{"c": ["x"]}', "'c' is no class"), ('{"a": "x"}', "list of phrases for 'a'"),
        ("[]", "got a list"), ('{"a": []}', "it has no phrase"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(EtudeError, match=message):
            read_descriptions(path, ("a", "b"))


def test_a_run_with_a_label_metric_has_its_words_and_its_content_in_the_id(tmp_path):
    path, matrix = tmp_path / "t.json", tmp_path / "m.csv"
    path.write_text('{"0": {}, "1": {}, "2": {}}')
    matrix.write_text(",0,1,2\n0,0,2,2\n1,2,0,2\n2,2,2,0\n")
    iris = tmp_path / "i.csv"
    data = load_dataset("iris")
    lines = [f"{','.join(map(str, x))},{y}" for x, y in zip(data.x, data.y, strict=True)]
    iris.write_text("a,b,c,d,y\n" + "\n".join(lines) + "\n")
    options = {"methods": ["loki_frechet_mean"], "tune": 1, "seeds": 2}
    by_tree, _ = make_plan(str(iris), **options, labels_metric=str(path))
    by_matrix, _ = make_plan(str(iris), **options, labels_metric=str(matrix))
    assert by_tree.id == by_matrix.id  # the same distances
    matrix.write_text(",0,1,2\n0,0,1,2\n1,1,0,1\n2,2,1,0\n")
    other, _ = make_plan(str(iris), **options, labels_metric=str(matrix))
    assert other.id != by_tree.id
    assert f"--labels-metric {path}" in command_of(by_tree)
    board = compare(str(iris), **options, labels_metric=str(matrix), settings=["shots=5"])
    assert board.data == "i (shots=5)"
    assert "--setting shots=5" in board.run.command
    assert all(entry.value > 0.7 for entry in board.entries)
    with pytest.raises(EtudeError, match="needs distances between the classes"):
        make_plan(str(iris), **options)
