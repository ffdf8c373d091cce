"""``etude data``: what data is there, and what etude sees in it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["command", "info", "ls"]

MOST_LINES = 40  # of a table on the screen; --json has them all


@click.group(name="data")
def command() -> None:
    """Show what data is there, and what etude sees in it.

    \b
    Examples:
      etude data ls
      etude data info wine
      etude data info customers.csv --target left --as postcode=category
    """


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ls(as_json: bool) -> None:
    """List the data sets: those built in, and those below the folder ETUDE_DATA.

    \b
    Example:
      etude data ls
    """
    from etude.lab.data import list_datasets

    found = list_datasets()
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    table = make_table("name", ">rows", ">columns", ">classes", "what")
    for item in found:
        what = item["what"] or item["kind"]
        if item["licence"]:
            what += f" ({item['licence']})"
        if not item["available"]:
            what += ", not on this machine"
        counts = [count(item[key]) for key in ("rows", "columns", "classes")]
        add(table, item["name"], *counts, what)
    show(table)


@command.command()
@click.argument("source")
@click.option("--target", metavar="COLUMN", help="The column to predict [default: the last one].")
@click.option(
    "--as", "kinds", multiple=True, metavar="COLUMN=KIND",
    help="Read a column as number, category, text or ignore; repeatable.",
)  # fmt: skip
@click.option(
    "--missing", default="error", show_default=True, metavar="error|drop|median",
    help="What happens to empty cells.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(
    source: str, target: str | None, kinds: tuple[str, ...], missing: str, as_json: bool
) -> None:
    """Show what etude sees in SOURCE: a name, a file, or a folder of images in class folders.

    \b
    Examples:
      etude data info wine
      etude data info customers.csv --target left --as postcode=category
    """
    from etude.lab.data import describe

    found = describe(source, target=target, kinds=parse_kinds(kinds), missing=missing)
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    for line in summary(found):
        click.echo(line)
    if found["columns"] or found["ignored"]:
        show(columns_table(found))
    if found["classes"]:
        show(classes_table(found))


def parse_kinds(pairs: tuple[str, ...]) -> dict[str, str]:
    """``("age=number",)`` as ``{"age": "number"}``; a column's own name may have a ``=``.

    Raises:
        EtudeError: a pair has no ``=``.
    """
    from etude.core import EtudeError

    kinds = {}
    for pair in pairs:
        name, equals, kind = pair.rpartition("=")
        if not equals or not name:
            raise EtudeError(f"--as must be COLUMN=KIND, such as age=number, got {pair!r}")
        kinds[name] = kind
    return kinds


def summary(found: dict[str, Any]) -> list[str]:
    """The lines above the tables."""
    shape = found["image_shape"]
    lines = [
        f"{found['source']}: {found['rows']:,} rows, {found['features']:,} features"
        + (f" (images of {' x '.join(map(str, shape))})" if shape else "")
        + (f", tokens {' x '.join(map(str, found['tokens']))}" if found["tokens"] else "")
    ]
    if found["target"]:
        why = f" ({found['target_why']})" if found["target_why"] else ""
        lines.append(f"target: {found['target']}{why}, {len(found['classes'])} classes")
    else:
        lines.append("target: none")
    if found["why"]:
        lines.append(f"features: {found['why']}")
    if found["dropped_rows"]:
        lines.append(f"rows with empty cells, left out: {found['dropped_rows']:,}")
    lines.append(f"content: sha256 {found['hash']}")
    return lines


def columns_table(found: dict[str, Any]) -> Table:
    """One line a column: what it is, and why."""
    table = make_table("column", "read as", ">width", "why")
    for column in found["columns"][:MOST_LINES]:
        why = column["why"]
        if "fill" in column:
            why += f"; empty cells become {column['fill']}"
        add(table, column["name"], column["kind"], count(column["width"]), why)
    for column in found["ignored"][:MOST_LINES]:
        add(table, column["name"], "ignore", "0", column["why"])
    left = max(len(found["columns"]) - MOST_LINES, 0) + max(len(found["ignored"]) - MOST_LINES, 0)
    if left:
        add(table, f"and {left:,} more", "", "", "--json shows all")
    return table


def classes_table(found: dict[str, Any]) -> Table:
    """One line a class."""
    table = make_table("class", ">rows", ">share")
    for item in found["classes"][:MOST_LINES]:
        share = item["rows"] / found["rows"]
        add(table, item["name"], count(item["rows"]), f"{share:.1%}")
    left = len(found["classes"]) - MOST_LINES
    if left > 0:
        add(table, f"and {left:,} more", "", "--json shows all")
    return table


def count(value: int | None) -> str:
    """A number with thousands apart; a question mark where it is not known."""
    return "?" if value is None else f"{value:,}"


def make_table(*names: str) -> Table:
    """A plain table; a name that begins with ``>`` is aligned right."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in names:
        right = name.startswith(">")
        table.add_column(
            name.removeprefix(">"), justify="right" if right else "left", overflow="fold",
            no_wrap=right,
        )  # fmt: skip
    return table


def add(table: Table, *cells: str) -> None:
    """A row of plain text: what a file holds is no markup, and no control character."""
    from rich.text import Text

    table.add_row(*(Text("".join(c if c.isprintable() else "?" for c in s)) for s in cells))


def show(table: Table) -> None:
    """Print at the width of the screen, at most 80."""
    from rich.console import Console

    console = Console()
    console.print(table, width=min(console.width, 80))
