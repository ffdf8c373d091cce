"""Bad tables: each gets one line that names the file, the place, the rule and the value."""

import numpy as np
import polars as pl
import pytest

from etude.core import EtudeError
from etude.lab.data import load_dataset

GOOD = "a,b,y\n" + "".join(f"{i / 2},{i * i},{'uv'[i % 2]}\n" for i in range(10))


def refused(path, match, **options):
    with pytest.raises(EtudeError, match=match) as caught:
        load_dataset(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def cells(**change):
    """GOOD with single cells changed: ``cells(b3="x")`` is row 3 of column b."""
    table = [line.split(",") for line in GOOD.splitlines()]
    for place, value in change.items():
        table[int(place[1:])]["aby".index(place[0])] = value
    return "\n".join(map(",".join, table)).encode()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (b"a,b,y\n", "has column names but no rows"),
        (b"\na,b,y\n1,2,u\n", "first line must name the columns, it is blank"),
        (b"1.5,2,3\n4,5,6\n", "first line must name the columns, got the numbers 1.5, 2, 3"),
        (b"a,b,a\n1,2,u\n", "column names must be unique, got 'a' for columns 1 and 3"),
        (b"a,b,y\n1,2,u\n1,2\n", "row 2 must have 3 cells as the header has, got 2"),
        (b"a,b,y\n1,2,u\n1,2,v,4\n", "row 2 must have 3 cells as the header has, got 4"),
        (b"a,b,y\n1,2,u\n\n1,2,v\n", "row 2 must have 3 cells as the header has, got 0"),
        (b"a,b,y\n1,2,u\n1,\xe9,v\n", "line 3 must be UTF-8 text, got the byte 0xe9"),
        (b"a,\xff,y\n1,2,u\n", "line 1 must be UTF-8 text, got the byte 0xff"),
        (b"a,b,y\n1,2,u\n1,2,v\xc3", "line 3 must be UTF-8 text, got the byte 0xc3"),
        (b"a,b,y\n1,2,u\n1,\0,v\n", "line 3 must be UTF-8 text, got the byte 0x00"),
        (b"a,b,y\r1,2,u\r", "lines must end in"),
        (b'a,b,y\n1,2,u\n1,"2,v\n', "line 3 opens a quotation mark that nothing closes"),
        (b'a,b,y\n"1"x,2,u\n', "not readable as CSV"),
        (cells(b3="x"), "row 3, column 'b' must be a number as 9 other cells are, got 'x'"),
        (cells(b3="1,5".replace(",", ";")), "row 3, column 'b' must be a number"),
        (cells(b3="inf"), "row 3, column 'b' must be a finite float32 number, got inf"),
        (cells(b3="-1e39"), "row 3, column 'b' must be a finite float32 number, got -1e"),
        (cells(b3="NaN"), "row 3, column 'b' must have a value.*--missing drop"),
        (cells(b3=""), "row 3, column 'b' must have a value.*--missing median"),
        (cells(y3=""), "row 3, column 'y' must have a value"),
        (GOOD.replace("v", "u").encode(), "the target 'y' must have two classes or more, got only"),
        (cells(y1="w"), r"class 'w' has 1 row\(s\); a split into train, validation and test"),
        (b"a,y\n" + b"".join(b"1,%d.5\n" % i for i in range(20)), "got 20 different numbers"),
        (b"a,y\n" + b"".join(b"1,%d\n" % i for i in range(60)), "got 60 different numbers"),
        (b"a,y\n" + b"".join(b"1,w%d\n" % i for i in range(60)), "must be classes that repeat"),
        (b"y\nu\nv\n", "must have a column of features besides the target 'y'"),
        (b"a,b,y\n" + b"1,,u\n1,,v\n" * 5, "column 'b' must have values, every cell is empty"),
    ],
)  # fmt: skip
def test_bad_csv(tmp_path, content, match):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    refused(path, match)


def test_the_good_one_is_good(tmp_path):
    (tmp_path / "t.csv").write_bytes(cells())
    assert load_dataset(tmp_path / "t.csv").x.shape == (10, 2)


def test_a_word_among_many_numbers_is_an_error_even_late(tmp_path):
    lines = ["a,y"] + [f"{i},{'uv'[i % 2]}" for i in range(3000)]
    lines[2900] = "broken,u"
    (tmp_path / "t.csv").write_text("\n".join(lines))
    refused(tmp_path / "t.csv", "row 2900, column 'a' must be a number.*--as a=category")


def test_the_row_is_right_across_chunks_and_quoted_line_ends(tmp_path):
    body = "".join(f'"two\nlines {i}",{i},{"uv"[i % 2]}\n' for i in range(120_000))
    (tmp_path / "t.csv").write_text("a,b,y\n" + body + "x,1\n")
    assert (tmp_path / "t.csv").stat().st_size > 2 << 20
    refused(tmp_path / "t.csv", "row 120001 must have 3 cells as the header has, got 2")


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_where_a_chunk_ends_does_not_matter(tmp_path, monkeypatch, chunk):
    from etude.lab import tables

    rows = "".join(f'"é, {i}\r\n""q""",{i},{"uv"[i % 2]}\r\n' for i in range(10))
    (tmp_path / "good.csv").write_bytes(f"a,b,y\r\n{rows}\r\n\r\n".encode())
    (tmp_path / "bad.csv").write_bytes(f"a,b,y\r\n{rows}\r\n{rows}".encode())
    (tmp_path / "bytes.csv").write_bytes(f"a,b,y\r\n{rows}".encode() + b"1,\xc3,u\r\n")
    expected = tables.read_csv(tmp_path / "good.csv")
    assert expected.height == 10
    monkeypatch.setattr(tables, "CHUNK", chunk)
    assert tables.read_csv(tmp_path / "good.csv").equals(expected)
    refused(tmp_path / "bad.csv", "row 11 must have 3 cells as the header has, got 0")
    refused(tmp_path / "bytes.csv", "line 22 must be UTF-8 text, got the byte 0xc3")


@pytest.mark.parametrize("head", ["", "a,b,y\n1,2,u\n"])
def test_a_line_of_200_mb_is_refused_in_little_memory(tmp_path, head):
    import tracemalloc

    path = tmp_path / "t.csv"
    with path.open("w") as file:
        file.write(head)
        for _ in range(200):
            file.write("x" * 1_000_000)
    tracemalloc.start()
    refused(path, f"line {3 if head else 1} must be at most 16 MB long")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6


def test_a_quoted_cell_without_end_is_refused_in_little_memory(tmp_path):
    (tmp_path / "t.csv").write_text('a,y\n"' + "x\n" * 9_000_000 + '",u\n')
    refused(tmp_path / "t.csv", "must be at most 16 MB long")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"target": "z"}, "has no column 'z'; it has a, b, y"),
        ({"target": "yy"}, "has no column 'yy'; did you mean 'y'"),
        ({"kinds": {"c": "text"}}, "has no column 'c'"),
        ({"kinds": {"a": "word"}}, "--as a= must be one of number, category"),
        ({"kinds": {"y": "text"}}, "--as y= must be category for the target"),
        ({"missing": "mean"}, "--missing must be one of error, drop, median, got 'mean'"),
        ({"kinds": {"a": "ignore", "b": "ignore"}}, "must have a column of features"),
        ({"image_size": 8}, "image_size is for folders of images"),
    ],
)
def test_bad_options(tmp_path, options, match):
    (tmp_path / "t.csv").write_text(GOOD)
    with pytest.raises(EtudeError, match=match):
        load_dataset(tmp_path / "t.csv", **options)


def test_paths_that_are_not_data(tmp_path):
    import os

    refused(tmp_path / "no.csv", "there is no such file")
    with pytest.raises(EtudeError, match=r"did you mean digits"):
        load_dataset("digit")
    with pytest.raises(EtudeError, match=r"cannot be opened|no such file"):
        load_dataset("x" * 5000)
    with pytest.raises(EtudeError, match=r"cannot be opened|no such file"):
        load_dataset("a\0b")
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    refused(tmp_path / "t.xlsx", r"must end in .csv.* or be a folder of images, got '.xlsx'")
    os.mkfifo(tmp_path / "pipe.csv")
    refused(tmp_path / "pipe.csv", "must be a file or a folder; it is neither")
    with pytest.raises(EtudeError, match="wine has the target 'class' and no other"):
        load_dataset("wine", target="alcohol")


@pytest.mark.parametrize(
    ("column", "match"),
    [
        ([1.0, np.inf, 3.0], "row 2, column 'a' must be a finite float32 number, got inf"),
        ([1.0, 2.0, np.nan], "row 3, column 'a' must have a value"),
        ([1.0, None, 3.0], "row 2, column 'a' must have a value"),
        ([["u"], ["v"], ["w"]], r"column 'a' must hold vectors of numbers, got List"),
        ([b"x", b"y", b"z"], "column 'a' must hold numbers or words, got Binary"),
    ],
)
def test_bad_parquet_columns(tmp_path, column, match):
    frame = pl.DataFrame({"a": column * 4, "b": range(12), "y": ["u", "v", "v"] * 4}, strict=False)
    frame.write_parquet(tmp_path / "t.parquet")
    refused(tmp_path / "t.parquet", match)


def test_bad_parquet_files(tmp_path):
    path = tmp_path / "t.parquet"
    path.write_bytes(b"")
    refused(path, "is empty")
    path.write_bytes(GOOD.encode())
    refused(path, "not readable as Parquet")
    pl.DataFrame({"a": [1.0, 2.0] * 500, "y": ["u", "v"] * 500}).write_parquet(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "not readable as Parquet")
    path.write_bytes(whole[:50] + bytes(40) + whole[90:])
    with pytest.raises(EtudeError, match=r"Parquet|column"):
        load_dataset(path)
    pl.DataFrame({"a": [], "y": []}, schema={"a": pl.Float64, "y": pl.String}).write_parquet(path)
    refused(path, "has columns but no rows")


def test_a_small_parquet_file_of_a_billion_rows_is_not_unpacked(tmp_path, monkeypatch):
    from etude.lab import tables

    pl.DataFrame({"a": [0.0] * 100_000, "y": ["u"] * 100_000}).write_parquet(tmp_path / "t.parquet")
    monkeypatch.setattr(tables, "MOST_CELLS", 199_999)
    refused(
        tmp_path / "t.parquet", "must have at most 199,999 cells, it declares 100,000 rows of 2"
    )
