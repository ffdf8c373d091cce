"""What commands print of papers: tables of 80 columns, JSON, a bar."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from etude.papers.entry import Entry

__all__ = ["answer", "print_json", "progress", "show"]

WIDTH = 80


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr of a terminal; a function that sets what it says."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.progress import TimeRemainingColumn as Left

    columns = (TextColumn("{task.description}", markup=False), BarColumn(20))
    console = Console(stderr=True)
    with Progress(
        *columns, TaskProgressColumn(), Left(), console=console, transient=True,
        disable=not sys.stderr.isatty(),
    ) as bar:  # fmt: skip
        task = bar.add_task("reading", total=None)
        yield lambda text, at, total: bar.update(
            task, description=text[-WIDTH:], completed=at, total=total or None
        )


def print_json(facts: object) -> None:
    """JSON in UTF-8 in which what is not printable is escaped."""
    text = json.dumps(facts, indent=2, ensure_ascii=False)
    click.echo("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def answer(
    found: list[Entry], facts: dict[str, Any], as_json: bool, scores: list[float] | None = None
) -> None:
    """Print the papers; exit status 1 where there is none."""
    if as_json:
        rows = [asdict(entry) for entry in found]
        for row, number in zip(rows, scores or (), strict=False):
            row["score"] = round(number, 6)
        print_json(facts | {"papers": rows})
    elif found:
        show(found)
    else:
        click.echo("no paper found")
    if not found:
        click.get_current_context().exit(1)


def show(found: list[Entry]) -> None:
    """Print a table of papers."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from etude.papers.entry import line

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, expand=True)
    table.add_column("paper", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("date", no_wrap=True)
    table.add_column("votes", no_wrap=True, justify="right")
    for entry in found:
        # a database is written by others too: no markup, and no control character
        title, where = line(entry.title, 300), line(f"{entry.id}  {entry.slug}", 100)
        cell = Text.assemble(title, "\n", (where, "cyan"))
        table.add_row(cell, Text(line(entry.date, 10)), f"{entry.votes:,}")
    console = Console(highlight=False)
    console.print(table, width=min(console.width, WIDTH))
