"""CSV and Parquet files as tables of raw columns, every cell still as it was written."""

from __future__ import annotations

import codecs
import csv
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import polars as pl

from etude.core import EtudeError

__all__ = ["read_csv", "read_names", "read_parquet"]

LONGEST_LINE = 16 << 20  # bytes; a longer line is no table, and is refused before it is in memory
LARGEST_FILE = 4 << 30  # bytes
MOST_CELLS = 500_000_000  # a Parquet file of a few kilobytes can declare any number of rows
MOST_COLUMNS = 100_000
CHUNK = 1 << 20
SEPARATORS = (",", ";", "\t")
NEWLINE, RETURN, QUOTE = 10, 13, 34


@dataclass(frozen=True)
class Scan:
    """What one pass over the bytes of a CSV file has shown."""

    separator: str
    names: list[str]
    n_rows: int


def read_csv(path: Path) -> pl.DataFrame:
    """Every column as strings (an empty cell is null); the first line names the columns.

    Raises:
        EtudeError: the bytes are not UTF-8, a line is longer than 16 MB, a row has more or fewer
            cells than the header, or the header does not name each column once.
    """
    scan = scan_csv(path)
    try:
        frame = pl.read_csv(
            path, separator=scan.separator, infer_schema_length=0, new_columns=scan.names
        )
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise EtudeError(
            f"{path}: not readable as CSV ({reason}); put a cell that has a quotation mark "
            'between quotation marks and double the inner one: "5"" pipe"'
        ) from None
    if frame.height < scan.n_rows or frame.width != len(scan.names):
        raise EtudeError(
            f"{path}: {scan.n_rows} rows were counted but {frame.height} can be read; "
            "put cells that have quotation marks between quotation marks"
        )
    return frame.head(scan.n_rows)


def scan_csv(path: Path) -> Scan:
    """Check bytes, line lengths and the number of cells in each row, in bounded memory."""
    size = path.stat().st_size
    if size == 0:
        raise EtudeError(f"{path} is empty; it needs a line of column names and rows below it")
    if size > LARGEST_FILE:
        raise EtudeError(f"{path} must be at most 4 GB, got {size / 2**30:.1f} GB; take a part")
    separator, names = read_header(path)
    cells = cells_per_record(path, separator)
    # A record without a character, at the end: the file ends in blank lines, not in rows.
    blank = cells == 0
    n_records = len(cells) - int(np.argmin(blank[::-1]))
    cells, blank = cells[:n_records], blank[:n_records]
    wrong = np.flatnonzero(np.maximum(cells, 1) != len(names))
    if len(wrong):
        row = int(wrong[0])
        raise EtudeError(
            f"{path}: row {row} must have {len(names)} cells as the header has, "
            f"got {int(cells[row])}; correct the row, or put a cell that has a "
            f"{separator!r} between quotation marks"
        )
    if n_records < 2:
        raise EtudeError(f"{path} has column names but no rows; add rows below the first line")
    return Scan(separator, names, n_records - 1)


def read_names(path: Path) -> list[str]:
    """The names of the columns, only the first line read.

    Raises:
        EtudeError: the first line does not name each column once.
    """
    return read_header(path)[1]


def read_header(path: Path) -> tuple[str, list[str]]:
    """The separator that the first line uses, and the names."""
    header = first_record(path)
    separator = max(SEPARATORS, key="".join(header.split('"')[::2]).count)
    names = [name.strip() for name in split_header(path, header, separator)]
    check_names(path, names)
    return separator, names


def first_record(path: Path) -> str:
    """The header as text, at most ``LONGEST_LINE`` bytes of it read."""
    content = b""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            content += chunk
            end = content.find(b"\n")
            while end >= 0 and content.count(b'"', 0, end) % 2:
                end = content.find(b"\n", end + 1)
            if end >= 0:
                content = content[:end]
                break
            if len(content) > LONGEST_LINE:
                refuse_long(path, 1)
    try:
        header = content.decode("utf-8-sig").rstrip("\r")
    except UnicodeDecodeError as error:
        refuse_bytes(path, 1, content[error.start])
    if "\0" in header:
        refuse_bytes(path, 1, 0)
    if "\r" in header:
        raise EtudeError(f"{path}: lines must end in \\n or \\r\\n, got \\r alone; save it anew")
    return header


def split_header(path: Path, header: str, separator: str) -> list[str]:
    """The cells of the first record."""
    if not header.strip():
        raise EtudeError(f"{path}: the first line must name the columns, it is blank")
    if header.count(separator) >= MOST_COLUMNS:
        raise EtudeError(f"{path} must have at most {MOST_COLUMNS:,} columns; it has more")
    try:
        return next(csv.reader([header], delimiter=separator))
    except csv.Error as error:
        raise EtudeError(f"{path}: the first line must name the columns ({error})") from None


def check_names(path: Path, names: list[str]) -> None:
    """Name the nameless columns by position; refuse a name that occurs twice, or only numbers."""
    for j, name in enumerate(names):
        names[j] = name or f"column_{j + 1}"
    seen: dict[str, int] = {}
    for j, name in enumerate(names):
        if name in seen:
            raise EtudeError(
                f"{path}: column names must be unique, got {name!r} for columns "
                f"{seen[name] + 1} and {j + 1}; rename one"
            )
        seen[name] = j
    counted = [str(j) for j in range(len(names) + 1)]  # what pandas writes for unnamed columns
    if all(is_number(name) for name in names) and names not in (counted[:-1], counted[1:]):
        raise EtudeError(
            f"{path}: the first line must name the columns, got the numbers "
            f"{', '.join(names[:3])}; add a line of names"
        )


def is_number(text: str) -> bool:
    """Whether `text` reads as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def cells_per_record(path: Path, separator: str) -> np.ndarray:
    """How many cells each record has, the header's first; 0 for a record without a character.

    A line's end or a separator between quotation marks does not count: the parity of the marks
    before a byte tells whether it lies between two.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    counts: list[np.ndarray] = []
    inside = 0  # parity of the quotation marks so far
    separators = length = 0  # of the record that is being read
    lines, previous = 0, 0  # line ends so far, last byte of the chunk before
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                bad = error.object[error.start]
                refuse_bytes(path, lines + error.object.count(b"\n", 0, error.start) + 1, bad)
            if b"\0" in chunk:
                refuse_bytes(path, lines + chunk.count(b"\n", 0, chunk.find(b"\0")) + 1, 0)
            lines += chunk.count(b"\n")
            array = np.frombuffer(chunk, dtype=np.uint8)
            ends, cuts = array == NEWLINE, array == ord(separator)
            if inside or b'"' in chunk:
                marks = np.cumsum(array == QUOTE, dtype=np.int64) + inside
                outside = marks % 2 == 0
                ends, cuts, inside = ends & outside, cuts & outside, int(marks[-1] % 2)
            at = np.flatnonzero(ends)
            n_cuts = np.diff(np.searchsorted(np.flatnonzero(cuts), at), prepend=0)
            n_bytes = np.diff(at, prepend=-1) - 1
            if len(at):
                n_cuts[0] += separators
                n_bytes[0] += length
                before = np.where(at > 0, array[at - 1], previous)
                alone = (n_cuts == 0) & ((n_bytes == 0) | ((n_bytes == 1) & (before == RETURN)))
                counts.append(np.where(alone, 0, n_cuts + 1))
                separators, length = 0, 0
            tail = int(at[-1]) + 1 if len(at) else 0
            separators += int(np.count_nonzero(cuts[tail:]))
            length += len(chunk) - tail
            previous = chunk[-1]
            if length > LONGEST_LINE:
                refuse_long(path, lines + 1)
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        refuse_bytes(path, lines + 1, error.object[error.start])
    if inside:
        raise EtudeError(
            f"{path}: line {unpaired_line(path)} opens a quotation mark that nothing closes; "
            'close it, or write "" for a mark inside a quoted cell'
        )
    if length:
        counts.append(np.array([separators + 1]))
    return np.concatenate(counts) if counts else np.zeros(0, dtype=np.int64)


def unpaired_line(path: Path) -> int:
    """The first line with an odd number of quotation marks, counted from 1."""
    with path.open("rb") as file:
        return next(n for n, line in enumerate(file, 1) if line.count(b'"') % 2)


def refuse_bytes(path: Path, line: int, byte: int) -> NoReturn:
    """Not UTF-8, or a byte that no text has."""
    raise EtudeError(
        f"{path}: line {line} must be UTF-8 text, got the byte 0x{byte:02x}; "
        "save the file as UTF-8 (iconv -t UTF-8)"
    )


def refuse_long(path: Path, line: int) -> NoReturn:
    """A line, or a row whose quotation marks join several lines."""
    raise EtudeError(
        f"{path}: line {line} must be at most {LONGEST_LINE >> 20} MB long, it is longer; "
        "a table has one row a line, and every quotation mark has its pair"
    )


def read_parquet(path: Path, nested: str | None = None) -> pl.DataFrame:
    """The columns as numbers or strings (truth values as the words "false" and "true").

    `nested` names the one column of lists that is read, and left as it is; others are left out.

    Raises:
        EtudeError: it is not a Parquet file, or a column is neither numbers nor words.
    """
    if path.stat().st_size == 0:
        raise EtudeError(f"{path} is empty; it needs columns and rows")
    try:
        schema = pl.read_parquet_schema(path)
        if nested is not None:
            lists = (pl.List, pl.Array)
            schema = {n: d for n, d in schema.items() if n == nested or not isinstance(d, lists)}
        n_rows = int(pl.scan_parquet(path).select(pl.len()).collect().item())
        if n_rows * len(schema) > MOST_CELLS:
            raise EtudeError(
                f"{path} must have at most {MOST_CELLS:,} cells, it declares "
                f"{n_rows:,} rows of {len(schema)}; take a part"
            )
        for name, dtype in schema.items():
            words = dtype in (pl.String, pl.Categorical, pl.Enum, pl.Boolean)
            if name != nested and not (dtype.is_numeric() or words or dtype == pl.Null):
                raise EtudeError(
                    f"{path}: column {name!r} must hold numbers or words, got {dtype}; "
                    "convert it or leave it out"
                )
        frame = pl.read_parquet(path, columns=list(schema))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        reason = (str(error).splitlines() or ["?"])[0]
        raise EtudeError(f"{path}: not readable as Parquet ({reason}); write it anew") from None
    if frame.height == 0:
        raise EtudeError(f"{path} has columns but no rows")
    casts = [
        pl.col(name).cast(pl.Float64 if dtype.is_numeric() else pl.String)
        for name, dtype in schema.items()
        if name != nested
    ]
    return frame.select(casts if nested is None else [*casts, nested])
