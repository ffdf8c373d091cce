"""Built-in names, tables that are read as they should be, the hash, the limit, the folder."""

import json

import numpy as np
import polars as pl
import pytest
from sklearn import datasets

from etude.core import EtudeError
from etude.lab import builtin
from etude.lab.data import describe, encode_rows, find_data, list_datasets, load_dataset


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def colors(n=30):
    """A table with a number, a category and a target, as CSV."""
    rows = [f"{i / 4},{('red', 'blue', 'green')[i % 3]},{('yes', 'no')[i % 2]}" for i in range(n)]
    return "size,color,bought\n" + "\n".join(rows) + "\n"


@pytest.mark.parametrize("name", ["digits", "wine", "breast_cancer", "iris"])
def test_builtin_equals_scikit_learn(name):
    bunch = getattr(datasets, f"load_{name}")()
    data = load_dataset(name)
    factor = 16 if name == "digits" else 1
    np.testing.assert_array_equal(data.x, (bunch.data / factor).astype(np.float32))
    np.testing.assert_array_equal(data.y, bunch.target)
    item = builtin.BUILTIN[name]
    assert (item.rows, item.columns, item.classes) == (*data.x.shape, data.n_classes)
    assert data.x.dtype == np.float32
    assert data.y.dtype == np.int64
    assert data.image_shape == ((1, 8, 8) if name == "digits" else None)
    np.testing.assert_array_equal(encode_rows(data.schema, data.x[:5].tolist()), data.x[:5])


@pytest.mark.skipif(not builtin.is_available("fashion_mnist"), reason="not on this machine")
def test_fashion_mnist_is_the_published_one():
    """The first labels and class sizes are those of Xiao et al. 2017 (arXiv:1708.07747)."""
    data = load_dataset("fashion_mnist")
    assert data.x.shape == (70_000, 784)
    assert data.x.dtype == np.float32
    assert data.x.min() == 0
    assert data.x.max() == 1
    assert [data.classes[k] for k in data.y[:3]] == ["Ankle boot", "T-shirt/top", "T-shirt/top"]
    assert data.classes[data.y[60_000]] == "Ankle boot"
    np.testing.assert_array_equal(np.bincount(data.y[60_000:]), 1000)
    some = load_dataset("fashion_mnist", limit=500)
    assert len(np.unique(some.y)) == 10
    assert any((some.x[0] == row).all() for row in data.x[data.y == some.y[0]])


def test_fashion_mnist_offline_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(builtin, "DEBIAN", tmp_path / "no")
    monkeypatch.setattr(builtin, "OFFICIAL", "http://127.0.0.1:9/none")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(EtudeError, match="apt-get install dataset-fashion-mnist"):
        load_dataset("fashion_mnist")
    assert not builtin.is_available("fashion_mnist")


def test_fashion_mnist_download_of_other_content_is_refused(monkeypatch, tmp_path):
    import gzip

    wrong = tmp_path / "train-images-idx3-ubyte.gz"
    wrong.write_bytes(gzip.compress(b"other"))
    monkeypatch.setattr(builtin, "DEBIAN", tmp_path / "no")
    monkeypatch.setattr(builtin, "OFFICIAL", tmp_path.as_uri())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(EtudeError, match="must unpack to sha256"):
        load_dataset("fashion_mnist")
    assert not list((tmp_path / "cache").rglob("*.gz"))


def test_limit_is_a_permutation_that_stays():
    whole, some, again = load_dataset("iris"), *(load_dataset("iris", limit=60) for _ in range(2))
    np.testing.assert_array_equal(some.x, again.x)
    assert some.hash == again.hash != whole.hash
    assert len(some.x) == 60
    assert len(np.unique(some.y)) == 3
    np.testing.assert_array_equal(load_dataset("iris", limit=30).x, some.x[:30])
    with pytest.raises(EtudeError, match="limit must be a positive number of rows, got 0"):
        load_dataset("iris", limit=0)


def test_csv_columns_become_features(tmp_path):
    data = load_dataset(write(tmp_path / "a.csv", colors()))
    assert data.name == "a"
    assert data.classes == ("no", "yes")
    np.testing.assert_array_equal(data.y[:4], [1, 0, 1, 0])
    kinds = [(c["name"], c["kind"], c.get("categories")) for c in data.schema["columns"]]
    assert kinds == [("size", "number", None), ("color", "category", ["blue", "green", "red"])]
    expected = np.zeros((30, 4), dtype=np.float32)
    for i in range(30):
        expected[i, 0] = i / 4
        expected[i, 1 + ["blue", "green", "red"].index(["red", "blue", "green"][i % 3])] = 1
    np.testing.assert_array_equal(data.x, expected)
    assert json.loads(json.dumps(data.schema)) == data.schema


@pytest.mark.parametrize("change", ["semicolon", "tab", "bom", "crlf", "blank end", "quotes"])
def test_the_same_table_written_otherwise_is_the_same_data(tmp_path, change):
    text = colors()
    other = {
        "semicolon": text.replace(",", ";"),
        "tab": text.replace(",", "\t"),
        "bom": "\ufeff" + text,
        "crlf": text.replace("\n", "\r\n"),
        "blank end": text + "\n\n",
        "quotes": text.replace("red", '" red "'),
    }[change]
    (tmp_path / "b.csv").write_bytes(other.encode())
    one, two = load_dataset(write(tmp_path / "a.csv", text)), load_dataset(tmp_path / "b.csv")
    np.testing.assert_array_equal(one.x, two.x)
    assert one.hash == two.hash
    assert one.hash != load_dataset(write(tmp_path / "c.csv", text.replace("0.25", "0.26"))).hash
    assert one.hash != load_dataset(write(tmp_path / "d.csv", text.replace("yes", "aye"))).hash


def test_parquet_and_csv_agree(tmp_path):
    frame = pl.read_csv(write(tmp_path / "a.csv", colors()))
    frame.with_columns(pl.col("color").cast(pl.Categorical)).write_parquet(tmp_path / "a.parquet")
    assert load_dataset(tmp_path / "a.csv").hash == load_dataset(tmp_path / "a.parquet").hash


def test_quoted_cells_may_hold_separators_and_line_ends(tmp_path):
    text = "note,n,y\n" + "".join(f'"a, ""b""\nc",{i},{"uv"[i % 2]}\n' for i in range(10))
    data = load_dataset(write(tmp_path / "a.csv", text))
    assert data.schema["columns"][0]["categories"] == ['a, "b"\nc']
    np.testing.assert_array_equal(data.x[:, 1], np.arange(10))


def test_target_may_be_any_column_and_integers(tmp_path):
    path = write(
        tmp_path / "a.csv",
        "k,a,b\n" + "".join(f"{i % 3 * 10},{i / 8},{i * i}\n" for i in range(12)),
    )
    data = load_dataset(path, target="k")
    assert data.classes == ("0", "10", "20")
    np.testing.assert_array_equal(data.y, np.arange(12) % 3)
    assert [c["name"] for c in data.schema["columns"]] == ["a", "b"]
    assert data.schema["target_why"] == "as asked"
    nothing = load_dataset(path, need_labels=False)
    assert nothing.y is None
    assert nothing.x.shape == (12, 3)


def test_integer_classes_sort_as_numbers(tmp_path):
    text = "a,y\n" + "".join(f"{i / 2},{(9, 10, 100)[i % 3]}\n" for i in range(12))
    assert load_dataset(write(tmp_path / "a.csv", text)).classes == ("9", "10", "100")


def test_kinds_override(tmp_path):
    text = "code,word,y\n" + "".join(f"{i % 4},w{i % 2},{'ab'[i % 2]}\n" for i in range(40))
    path = write(tmp_path / "a.csv", text)
    assert load_dataset(path).x.shape == (40, 3)
    data = load_dataset(path, kinds={"code": "category", "word": "ignore"})
    assert data.x.shape == (40, 4)
    np.testing.assert_array_equal(data.x.argmax(1), np.arange(40) % 4)
    assert data.schema["ignored"] == [{"name": "word", "why": "as asked"}]


def test_missing_cells(tmp_path):
    lines = ["n,c,y"] + [f"{i},{'pq'[i % 2]},{'ab'[i % 2]}" for i in range(20)]
    lines[3], lines[6] = "NA,p,a", "5,,b"
    path = write(tmp_path / "a.csv", "\n".join(lines))
    with pytest.raises(EtudeError, match=r"row 3, column 'n' must have a value.*--missing drop"):
        load_dataset(path)
    dropped = load_dataset(path, missing="drop")
    assert dropped.x.shape == (18, 3)
    assert dropped.schema["dropped_rows"] == 2
    np.testing.assert_array_equal(dropped.x[:3, 0], [0, 1, 3])
    filled = load_dataset(path, missing="median")
    median = float(np.median([i for i in range(20) if i != 2]))
    assert filled.x[2, 0] == median
    assert filled.schema["columns"][1]["categories"] == ["(missing)", "p", "q"]
    np.testing.assert_array_equal(filled.x[5, 1:], [1, 0, 0])
    served = encode_rows(filled.schema, [[None, "q"], {"n": 1, "c": None}])
    np.testing.assert_array_equal(served, [[median, 0, 0, 1], [1, 1, 0, 0]])


def test_missing_label_is_dropped_but_never_filled(tmp_path):
    lines = ["n,y"] + [f"{i},{'ab'[i % 2]}" for i in range(20)]
    lines[4] = "3,"
    path = write(tmp_path / "a.csv", "\n".join(lines))
    assert len(load_dataset(path, missing="drop").x) == 19
    with pytest.raises(EtudeError, match="row 4, column 'y' must have a value"):
        load_dataset(path, missing="median")


def test_ids_are_noted(tmp_path):
    text = ",key,y\n" + "".join(f"{i},k{i},{'ab'[i % 2]}\n" for i in range(30))
    found = describe(write(tmp_path / "a.csv", text))
    assert found["ignored"] == [{"name": "column_1", "why": "it has no name and counts the rows"}]
    assert "looks like an id" in found["columns"][0]["why"]
    named = describe(write(tmp_path / "b.csv", "id" + text))
    assert "counts up like a row number" in named["columns"][0]["why"]
    json.dumps(found)


def test_describe_says_what_is_there():
    found = describe("iris")
    assert (found["rows"], found["features"], found["image_shape"]) == (150, 4, None)
    assert found["classes"][0] == {"name": "setosa", "rows": 50}
    assert found["hash"] == load_dataset("iris").hash


def test_list_and_find(tmp_path, monkeypatch):
    write(tmp_path / "a.csv", colors())
    write(tmp_path / "b.csv", "a,a\n1,2\n")
    np.savez(tmp_path / "c.npz", other=np.zeros(3))
    np.savez(tmp_path / "d.npz", x=np.zeros((3, 2)))
    monkeypatch.setenv("ETUDE_DATA", str(tmp_path))
    listed = {item["name"]: item for item in list_datasets()}
    assert set(listed) == {*builtin.BUILTIN, "a.csv", "d.npz"}
    assert listed["a.csv"]["columns"] == 3
    assert listed["digits"]["available"]
    assert find_data("a.csv") == tmp_path / "a.csv"
    assert load_dataset("a.csv").hash == load_dataset(tmp_path / "a.csv").hash
    with pytest.raises(EtudeError, match="must lie inside ETUDE_DATA"):
        find_data("../x")
    with pytest.raises(EtudeError, match="is not in ETUDE_DATA"):
        find_data("x.csv")
    monkeypatch.setenv("ETUDE_DATA", str(tmp_path / "none"))
    with pytest.raises(EtudeError, match="ETUDE_DATA must name a folder"):
        find_data("a.csv")
    monkeypatch.delenv("ETUDE_DATA")
    with pytest.raises(EtudeError, match="set the environment variable ETUDE_DATA"):
        find_data("a.csv")


def test_find_data_does_not_follow_a_link_out(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    write(tmp_path / "secret.csv", colors())
    (tmp_path / "in" / "link.csv").symlink_to(tmp_path / "secret.csv")
    monkeypatch.setenv("ETUDE_DATA", str(tmp_path / "in"))
    with pytest.raises(EtudeError, match="must lie inside ETUDE_DATA"):
        find_data("link.csv")
