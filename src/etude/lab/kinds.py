"""What a raw column is: numbers, a category, text, or class labels; and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NoReturn

import numpy as np
import polars as pl

from etude.core import EtudeError

__all__ = ["KINDS", "Column", "decide", "read_labels"]

KINDS = ("number", "category", "text", "ignore")
EMPTY = ("", "NA", "N/A", "NULL", "null", "NaN", "nan", "?")  # missing, in a column of numbers
MOST_WORDS = 50  # of a category that nobody asked for
WORD_SHARE = 0.2  # of the rows
FEW_WORDS = 10  # so few are a category in a small table too, where half of the rows repeat one
NUMBER_SHARE = 0.5  # from here on a word among numbers is a mistake and not a category
MOST_CATEGORIES = 1000
MOST_INTEGER_CLASSES = 50
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class Column:
    """One raw column, read.

    Attributes:
        numbers: (N,) float64, NaN where missing; None unless `kind` is "number".
        words: (N,) strings, null where missing; None where `kind` is "number".
    """

    name: str
    kind: str
    why: str
    numbers: np.ndarray | None = None
    words: pl.Series | None = None

    @property
    def missing(self) -> np.ndarray:
        """(N,) bool, True where the cell is empty."""
        gaps: np.ndarray = np.zeros(0, dtype=bool)
        if self.numbers is not None:
            gaps = np.isnan(self.numbers)
        elif self.words is not None:
            gaps = self.words.is_null().to_numpy()
        return gaps

    def take(self, rows: np.ndarray) -> Column:
        """The column at the rows where the (N,) bool mask `rows` is True."""
        if self.numbers is not None:
            return replace(self, numbers=self.numbers[rows])
        return self if self.words is None else replace(self, words=self.words.filter(rows))


def decide(series: pl.Series, *, where: str, kinds: Mapping[str, str]) -> Column:
    """Read one feature column of numbers or strings as the kind that it is, or that `kinds` says.

    Raises:
        EtudeError: a word stands among numbers, a number is infinite, or nothing is in it.
    """
    name, asked = series.name, kinds.get(series.name)
    if asked == "ignore":
        return Column(name=name, kind="ignore", why="as asked")
    values, unread = (None, None) if asked in ("category", "text") else to_numbers(series)
    if values is not None and unread is not None:
        n_words, n_numbers = int(unread.sum()), int((~np.isnan(values)).sum())
        if n_words == 0 and n_numbers == 0:
            refuse_empty(where, name)
        if n_words and (asked == "number" or n_numbers >= NUMBER_SHARE * (n_words + n_numbers)):
            row = int(np.flatnonzero(unread)[0])
            raise EtudeError(
                f"{where}: row {row + 1}, column {name!r} must be a number as {n_numbers} other "
                f"cells are, got {short(series[row])}; correct the cell, or read the words as they "
                f"are: --as {name}=category"
            )
        if n_words == 0:
            check_finite(values, where, name)
            why = "as asked" if asked else number_note(values, name)
            if not asked and name.startswith("column_") and "counts up" in why:
                return Column(name=name, kind="ignore", why="it has no name and counts the rows")
            return Column(name=name, kind="number", why=why, numbers=values)
    words = to_words(series)
    n_words, n_rows = words.n_unique() - bool(words.null_count()), len(words) - words.null_count()
    if n_rows == 0:
        refuse_empty(where, name)
    few = n_words <= MOST_WORDS and n_words <= WORD_SHARE * n_rows
    few = few or (n_words <= FEW_WORDS and 2 * n_words <= n_rows)
    kind = asked or ("category" if few else "text")
    why = "as asked" if asked else f"{n_words:,} different values in {n_rows:,} cells"
    if kind == "text" and not asked and not words.str.contains(r"\s").any():
        why += f"; looks like an id (--as {name}=ignore leaves it out)"
    if kind == "category" and n_words > MOST_CATEGORIES:
        raise EtudeError(
            f"{where}: column {name!r} must have at most {MOST_CATEGORIES} categories, got "
            f"{n_words:,}; read it with --as {name}=text or leave it out with --as {name}=ignore"
        )
    return Column(name=name, kind=kind, why=why, words=words)


def to_numbers(series: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """(N,) float64, NaN where missing or no number; and (N,) bool, True where it is a word."""
    if series.dtype != pl.String:
        return series.to_numpy().astype(np.float64), np.zeros(len(series), dtype=bool)
    numbers = series.cast(pl.Float64, strict=False)
    if numbers.null_count() > series.null_count():
        # Cells that polars does not read: spaces around, "5." and the words for "missing".
        stripped = series.str.strip_chars()
        numbers = stripped.str.strip_chars_end(".").cast(pl.Float64, strict=False)
        unread = numbers.is_null() & stripped.is_not_null() & ~stripped.is_in(EMPTY)
        return numbers.to_numpy().astype(np.float64), unread.to_numpy()
    return numbers.to_numpy().astype(np.float64), np.zeros(len(series), dtype=bool)


def to_words(series: pl.Series) -> pl.Series:
    """Strings without spaces around; a cell of spaces only is null; 3.0 becomes "3"."""
    if series.dtype == pl.String:
        words = series.str.strip_chars()
    else:
        words = pl.Series(series.name, [integer_name(v) for v in series.to_list()], dtype=pl.String)
    return words.replace("", None)


def integer_name(value: float | None) -> str | None:
    """The shortest decimal form: an integer has no point."""
    if value is None or value != value:
        return None
    return str(int(value)) if value == int(value) else repr(value)


def check_finite(values: np.ndarray, where: str, name: str) -> None:
    """Refuse infinite numbers, and those that float32 cannot hold."""
    with np.errstate(invalid="ignore"):
        bad = np.abs(values) > LARGEST
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise EtudeError(
            f"{where}: row {row + 1}, column {name!r} must be a finite float32 number, got "
            f"{float(values[row])!r}; correct the cell, or leave the column out: --as {name}=ignore"
        )


def number_note(values: np.ndarray, name: str) -> str:
    """Why it is a column of numbers, and what is odd about it."""
    known = values[~np.isnan(values)]
    why = "every value is a number"
    if len(known) > 1 and (known == known[0]).all():
        return f"{why}; all are {known[0]:g}, it says nothing"
    if len(known) > 3 and (np.diff(known) == 1).all():
        return f"{why}; it counts up like a row number (--as {name}=ignore leaves it out)"
    return why


def refuse_empty(where: str, name: str) -> NoReturn:
    """A column without a value."""
    raise EtudeError(
        f"{where}: column {name!r} must have values, every cell is empty; "
        f"leave it out: --as {name}=ignore"
    )


def short(value: object) -> str:
    """The value as a message quotes it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def read_labels(
    series: pl.Series, *, where: str, forced: bool = False
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class ids (N,) int64, -1 where the cell is empty, and the sorted class names.

    Words are sorted as strings, integers as numbers. `forced` takes any numbers as classes.

    Raises:
        EtudeError: the target is continuous, has one class, or nearly as many as rows.
    """
    name = series.name
    values, unread = to_numbers(series)
    known = values[~np.isnan(values)]
    numeric = not unread.any() and len(known) > 0
    if numeric:
        check_finite(values, where, name)
    if numeric and not forced:
        whole, n_distinct = bool((known == np.round(known)).all()), len(np.unique(known))
        if not whole or n_distinct > MOST_INTEGER_CLASSES:
            raise EtudeError(
                f"{where}: the target {name!r} must be classes (words or at most "
                f"{MOST_INTEGER_CLASSES} integers), got {n_distinct:,} different numbers; name "
                f"another --target, cut it into classes, or --as {name}=category"
            )
    if numeric:
        levels = [integer_name(v) for v in np.unique(known).tolist()]
        words = to_words(pl.Series(name, values))
    else:
        words = to_words(series)
        levels = words.drop_nulls().unique().sort().to_list()
    classes = tuple(str(level) for level in levels)
    n_labels = len(words) - words.null_count()
    if len(classes) < 2:
        only = f"only {classes[0]!r}" if classes else "empty cells only"
        raise EtudeError(
            f"{where}: the target {name!r} must have two classes or more, got {only}; "
            "add rows of another class or name another --target"
        )
    if len(classes) > MOST_CATEGORIES or 2 * len(classes) > n_labels:
        raise EtudeError(
            f"{where}: the target {name!r} must be classes that repeat, got {len(classes):,} "
            f"different words in {n_labels:,} rows; name another --target"
        )
    ids = {label: k for k, label in enumerate(classes)}
    y = np.array([-1 if w is None else ids[w] for w in words.to_list()], dtype=np.int64)
    return y, classes
